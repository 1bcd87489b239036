"""Cleaning of captions and questions before tokenisation, as in the reference implementation."""

import re
import unicodedata

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


def is_blank(text: str) -> bool:
    r"""Returns whether a text has nothing to show: white space and control characters only.

    >>> [is_blank(text) for text in (" \t", "\u200b", "...")]
    [True, True, False]
    """
    return not any(map(_is_shown, text))


def has_no_words(text: str) -> bool:
    """Returns whether a text has nothing but blanks and what cleaning drops at its start.

    >>> [has_no_words(text) for text in (" ...", "\u200b", "a dog.")]
    [True, True, False]
    """
    return not any(_is_shown(character) and character not in _LEADING for character in text)


def _is_shown(character: str) -> bool:
    """Returns whether a character is something to be learned: neither control nor white space."""
    if character.isalnum():
        return True
    return character != "\ufffd" and unicodedata.category(character)[0] not in "CZ"
