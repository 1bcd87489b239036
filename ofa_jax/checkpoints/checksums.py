"""Checksums of a checkpoint's files, which reveal corruption before training continues.

The file SHA256SUMS in the checkpoint's folder has the format of sha256sum:

    cd MODEL_DIR/checkpoints/STEP && sha256sum --check SHA256SUMS
"""

import concurrent.futures
import hashlib
from collections.abc import Iterator

from etils import epath

from ofa_jax.utils import files

__all__ = ["FILE", "find_damage", "has_checksums", "write"]

FILE = "SHA256SUMS"
_CHUNK = 1 << 22


def write(folder: epath.Path) -> None:
    """Writes the checksums of all files in the subfolders of `folder`, atomically.

    Files beside `SHA256SUMS` are left out: Orbax changes them when it commits the checkpoint.
    """
    items = [path for path in folder.iterdir() if path.is_dir()]
    names = sorted(str(path.relative_to(folder)) for item in items for path in _files(item))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        digests = pool.map(_digest, (folder / name for name in names))
        lines = [f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True)]
    files.write_text(folder / FILE, "".join(lines))


def has_checksums(folder: epath.Path) -> bool:
    """Returns whether a checkpoint has checksums."""
    return (folder / FILE).exists()


def find_damage(folder: epath.Path) -> str | None:
    """Describes the first file that does not match its checksum.

    Args:
      folder: a checkpoint with checksums.

    Returns:
      None if all files match.
    """
    expected = {}
    for line in (folder / FILE).read_text().splitlines():
        digest, separator, name = line.partition("  ")
        if len(digest) != 64 or not separator:
            return f"{FILE} is damaged"
        expected[name] = digest
    if not expected:
        return f"{FILE} is empty"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        problems = pool.map(lambda name: _problem(folder / name, expected[name]), expected)
        found = [
            f"{name} {problem}" for name, problem in zip(expected, problems, strict=True) if problem
        ]
    return found[0] if found else None


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    """Yields all files below a folder."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _problem(path: epath.Path, expected: str) -> str | None:
    """Describes why a file does not match; None if it does."""
    if not path.exists():
        return "is missing"
    try:
        return None if _digest(path) == expected else "is not as it was written"
    except OSError as error:
        return f"cannot be read ({error})"


def _digest(path: epath.Path) -> str:
    """Returns the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()
