"""Recognises by its first bytes what a file really is, so that an error names the true reason."""

import os
import pathlib
import stat

from ofa_jax.utils.excerpts import truncate

HEAD_BYTES = 1024
"""Bytes of a file that `describe` looks at."""

_LFS = b"version https://git-lfs.github.com/spec/"
_SIGNATURES = (
    (b"\x1f\x8b", "is compressed with gzip: unpack it first (gunzip, or tar -xzf)"),
    (b"BZh", "is compressed with bzip2: unpack it first (bunzip2, or tar -xjf)"),
    (b"\xfd7zXZ\x00", "is compressed with xz: unpack it first (unxz, or tar -xJf)"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it first (unzstd)"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it first"),
    (b"Rar!\x1a\x07", "is a RAR archive: unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as TensorFlow and Keras write it"),
    (b"\x93NUMPY", "is a single numpy array (.npy)"),
    (b"\x89PNG\r\n\x1a\n", "is a PNG image"),
    (b"\xff\xd8\xff", "is a JPEG image"),
    (b"%PDF", "is a PDF document"),
    (b"GGUF", "is a GGUF file, as llama.cpp writes it"),
    (b"PAR1", "is a Parquet file"),
    (b"PK\x03\x04", "is a zip archive"),
    (b"PK\x05\x06", "is an empty zip archive"),
)
_PAGE_STARTS = (b"<!doctype html", b"<html", b"<head")


def describe(path: str | os.PathLike[str]) -> str | None:
    """Describes what a file really is.

    Args:
      path: of a local file that another reader refused, or that is about to be opened.

    Returns:
      The predicate of a sentence whose subject is the file, such as "is empty: ..."; None if its
      first bytes tell nothing.
    """
    path = pathlib.Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "is not a regular file" if not path.is_dir() else "is a folder"
        with path.open("rb") as file:
            return describe_bytes(file.read(HEAD_BYTES))
    except OSError:
        return None


def describe_bytes(head: bytes) -> str | None:
    """Describes what a file really is by its first bytes; see `describe`."""
    if placeholder := describe_placeholder(head):
        return placeholder
    for signature, description in _SIGNATURES:
        if head.startswith(signature):
            return description
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 2**32:
        return "is a safetensors file"
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it first (tar -xf)"
    if not any(head):
        return "begins with zeros only: its download or copy was interrupted; copy it again"
    if head.lstrip()[:1] in (b"{", b"["):
        return "is a JSON file"
    return None


def describe_placeholder(head: bytes) -> str | None:
    """Describes a file that stands where another one should be, whatever its kind.

    Args:
      head: the first bytes of a file.

    Returns:
      As `describe`, for an empty file, a pointer of Git LFS, or the page of a failed download; None
      for any other content.
    """
    if not head:
        return "is empty: its download or copy did not finish; get it again"
    if pointer := describe_pointer(head):
        return pointer
    page = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if page.startswith(_PAGE_STARTS):
        return (
            "is a web page (HTML): the download gave a page instead of the file; download it again"
        )
    if page.startswith(b"<?xml"):
        return (
            "is an XML document, such as a server answers with instead of a file; download it again"
        )
    return None


def describe_pointer(head: bytes) -> str | None:
    """Describes a pointer of Git LFS as `describe` does; None for any other content."""
    if not head.startswith(_LFS):
        return None
    return (
        "is a pointer of Git LFS, not the file itself: run `git lfs pull` in the folder it was "
        "cloned to, or download the file itself"
    )


def check_placeholder(path: str | os.PathLike[str]) -> None:
    """Raises ValueError if a file is empty, a pointer of Git LFS, or a web page."""
    try:
        with pathlib.Path(path).open("rb") as file:
            problem = describe_placeholder(file.read(HEAD_BYTES))
    except OSError:
        return
    if problem is not None:
        raise ValueError(f"{path} {problem}.") from None


def shorten(text: object, length: int = 80) -> str:
    """Returns text from a file so that it can be printed: escaped, and of bounded length."""
    if not isinstance(text, str):
        plain = text is None or isinstance(text, int | float)
        return str(text)[:length] if plain else f"a {type(text).__name__}"
    shown = text[: length + 1]
    if not (shown.isascii() and shown.isprintable()):
        shown = ascii(shown)[1:-1]
    return truncate(shown, length)
