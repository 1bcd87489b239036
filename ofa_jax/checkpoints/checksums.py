"""Checksums of a checkpoint's files, which reveal corruption before training continues.

The file SHA256SUMS in the checkpoint's folder has the format of sha256sum:

    cd MODEL_DIR/checkpoints/STEP && sha256sum --check SHA256SUMS

Damage of that file is damage of the checkpoint, too: it must list exactly the files that are there,
and only files that are there are opened, whatever names it lists.
"""

import concurrent.futures
import hashlib
import re
from collections.abc import Iterator

from etils import epath

from ofa_jax.utils import files
from ofa_jax.utils.wrong_files import shorten

__all__ = ["FILE", "find_damage", "has_checksums", "write"]

FILE = "SHA256SUMS"
_CHUNK = 1 << 22
_MAX_BYTES = 1 << 28
"""Largest size of SHA256SUMS that is read: some two million files."""
_MAX_DEPTH = 32
_LINE = re.compile("([0-9a-f]{64})  (.+)")
_NOT_OURS = re.compile(r"\.DS_Store|\._.*|\.nfs[0-9a-f]+|Thumbs\.db|desktop\.ini")
"""Files that systems add to any folder; they need no checksum."""


def write(folder: epath.Path) -> None:
    """Writes the checksums of all files in the subfolders of `folder`, atomically.

    Files beside `SHA256SUMS` are left out: Orbax changes them when it commits the checkpoint.
    """
    names = sorted(_file_names(folder))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        digests = pool.map(_digest, (folder / name for name in names))
        lines = [f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True)]
    files.write_text(folder / FILE, "".join(lines))


def has_checksums(folder: epath.Path) -> bool:
    """Returns whether a checkpoint has checksums."""
    return (folder / FILE).exists()


def find_damage(folder: epath.Path) -> str | None:
    """Describes the first file that does not match its checksum, or has none.

    Args:
      folder: a checkpoint with checksums.

    Returns:
      None if SHA256SUMS lists the files of the checkpoint and all of them match.
    """
    expected = _read(folder / FILE)
    if isinstance(expected, str):
        return expected
    try:
        present = set(_file_names(folder))
    except OSError as error:
        return f"its files cannot be listed ({error})"
    # A file with a checksum is opened only if it was found in the folder: `../` and devices are
    # never followed.
    if missing := sorted(expected.keys() - present):
        return f"{shorten(missing[0], 1000)} is missing"
    if unknown := sorted(present - expected.keys()):
        return f"{FILE} has no line for {unknown[0]}"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        problems = pool.map(lambda name: _problem(folder / name, expected[name]), expected)
        found = [
            f"{name} {problem}" for name, problem in zip(expected, problems, strict=True) if problem
        ]
    return found[0] if found else None


def _read(path: epath.Path) -> dict[str, str] | str:
    """Returns file -> digest, in the order of the lines; or what is wrong with the file."""
    try:
        text = files.read_bytes(path, _MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError:
        return f"{FILE} is damaged"
    except OSError as error:
        return f"{FILE} cannot be read ({error})"
    if not text:
        return f"{FILE} is empty"
    expected: dict[str, str] = {}
    lines = text.split("\n")
    for line in lines[:-1]:
        matched = _LINE.fullmatch(line)
        if matched is None or matched[2] in expected:
            return f"{FILE} is damaged"
        expected[matched[2]] = matched[1]
    # A file that does not end with a line feed was cut off.
    return expected if expected and lines[-1] == "" else f"{FILE} is damaged"


def _file_names(folder: epath.Path) -> Iterator[str]:
    """Yields the names of all files in the subfolders of a folder, relative to it."""
    for item in folder.iterdir():
        if item.is_dir():
            for path in _files(item, _MAX_DEPTH):
                yield str(path.relative_to(folder))


def _files(folder: epath.Path, depth: int) -> Iterator[epath.Path]:
    """Yields all files below a folder; raises OSError for folders that are nested too deeply."""
    if depth == 0:
        raise OSError(f"{folder} is nested too deeply")
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path, depth - 1)
        elif not _NOT_OURS.fullmatch(path.name):
            yield path


def _problem(path: epath.Path, expected: str) -> str | None:
    """Describes why a file does not match; None if it does."""
    try:
        return None if _digest(path) == expected else "is not as it was written"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error})"


def _digest(path: epath.Path) -> str:
    """Returns the SHA-256 of a regular file."""
    digest = hashlib.sha256()
    local = files.is_local(path)
    with files.open_regular(path) if local else path.open("rb") as file:
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()
