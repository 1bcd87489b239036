"""Shortens what messages quote, so that a long value does not hide the sentence around it."""

__all__ = ["excerpt", "truncate"]


def truncate(text: str, length: int = 80) -> str:
    """Returns a text, or its beginning and "..." if it has more characters than `length`."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def excerpt(value: object, length: int = 80) -> str:
    """Returns the beginning of a value's text, with lone surrogates escaped: UTF-8 has none."""
    return truncate(str(value).encode("utf-8", "backslashreplace").decode(), length)
