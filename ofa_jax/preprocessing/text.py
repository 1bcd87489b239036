"""Cleaning of captions and questions before tokenisation, as in the reference implementation."""

import re

_LEADING = ",.!?*#:;~"
_BLANKS = re.compile(r"\s{2,}")


def clean_caption(text: str, max_words: int | None = None) -> str:
    """Lower-cases a caption, drops leading punctuation, splits at hyphens and slashes, and trims.

    >>> clean_caption("...A man in a RED-shirt  and <PERSON>")
    'a man in a red shirt and person'

    Args:
      text: any string.
      max_words: keeps at most this many words (split at single spaces).
    """
    return _clean(text, max_words, person=True)


def clean_question(text: str, max_words: int | None = None) -> str:
    """Cleans a question or an answer as `clean_caption` does, but keeps `<person>`.

    >>> clean_question("Is the <person>'s hat red/white ?")
    "is the <person>'s hat red white ?"
    """
    return _clean(text, max_words, person=False)


def _clean(text: str, max_words: int | None, person: bool) -> str:
    """Cleans a text; replaces `<person>` if `person` is set."""
    text = text.lower().lstrip(_LEADING).replace("-", " ").replace("/", " ")
    if person:
        text = text.replace("<person>", "person")
    # Only runs of white space become one space: a single tab or line break inside is kept.
    text = _BLANKS.sub(" ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])
