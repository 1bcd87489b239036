"""Cleaning of captions and questions, as the original does before tokenising."""

import re

_LEADING = ",.!?*#:;~"
_BLANKS = re.compile(r"\s{2,}")


def clean_caption(text: str, max_words: int | None = None) -> str:
    """Lower-cases a caption, drops leading punctuation, opens hyphens and slashes, trims.

    >>> clean_caption("...A man in a RED-shirt  and <PERSON>")
    'a man in a red shirt and person'

    Args:
      text: any string.
      max_words: keep at most so many words (as split at single spaces).
    """
    return _clean(text, max_words, person=True)


def clean_question(text: str, max_words: int | None = None) -> str:
    """The same for questions and answers, where `<person>` stays as it is.

    >>> clean_question("Is the <person>'s hat red/white ?")
    "is the <person>'s hat red white ?"
    """
    return _clean(text, max_words, person=False)


def _clean(text: str, max_words: int | None, person: bool) -> str:
    text = text.lower().lstrip(_LEADING).replace("-", " ").replace("/", " ")
    if person:
        text = text.replace("<person>", "person")
    # A single tab or line break inside stays: only runs of white space become one space.
    text = _BLANKS.sub(" ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])
