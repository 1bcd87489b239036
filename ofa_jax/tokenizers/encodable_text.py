"""Bounds a text before it is encoded, and replaces what is not text."""

from ofa_jax.utils import text_files
from ofa_jax.utils.bad_input import Treatment, declare, note

# No piece of GPT-2's vocabulary is longer, and no use of a text is.
_MAX_PIECE, _MAX_CHARACTERS = 256, 1_000_000

NOT_TEXT = declare(
    "lone surrogate in a text",
    Treatment.REPLACED,
    "Half of a surrogate pair, which JSON can write but which is not a character, becomes U+FFFD.",
    __name__,
)
TOO_LONG = declare(
    "text is too long to encode",
    Treatment.REPLACED,
    "Only the first million characters of a text are encoded.",
    __name__,
)


def make_encodable(text: str, max_length: int | None) -> str:
    """Makes a text that a tokenizer can encode, of bounded length; notes what was changed.

    Args:
      text: any string.
      max_length: how many ids of it are wanted; None for all.
    """
    limit = _MAX_CHARACTERS
    if max_length is not None:
        # Of the ids that are wanted, none depends on what is cut off.
        limit = min(limit, _MAX_PIECE * (max_length + 1))
    if len(text) > limit:
        if max_length is None:
            note(TOO_LONG, f"a text has {len(text):,} characters")
        text = text[:limit]
    replaced = text_files.replace_surrogates(text)
    if replaced != text:
        note(NOT_TEXT, f"a text has a lone surrogate: {replaced[:50]!r}")
    return replaced
