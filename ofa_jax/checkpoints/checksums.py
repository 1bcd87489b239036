"""Checksums of a checkpoint's files: storage that lies is found out before training goes on.

They stand in the checkpoint's folder in the format of sha256sum, so that a person can check too:

    cd MODEL_DIR/checkpoints/STEP && sha256sum --check SHA256SUMS
"""

import concurrent.futures
import hashlib
from collections.abc import Iterator

from etils import epath

from ofa_jax.utils import files

FILE = "SHA256SUMS"
_CHUNK = 1 << 22


def write(folder: epath.Path) -> None:
    """Writes the checksums of all files in the subfolders of `folder`, all at once.

    The files beside `SHA256SUMS` are left out: Orbax still writes to them when it makes a
    checkpoint valid.
    """
    items = [path for path in folder.iterdir() if path.is_dir()]
    names = sorted(str(path.relative_to(folder)) for item in items for path in _files(item))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        digests = pool.map(_digest, (folder / name for name in names))
        lines = [f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True)]
    files.write_text(folder / FILE, "".join(lines))


def has_checksums(folder: epath.Path) -> bool:
    """Whether there is something to check against."""
    return (folder / FILE).exists()


def damage(folder: epath.Path) -> str | None:
    """What is wrong with the first file that is not as it was written; None if all are.

    Args:
      folder: of a checkpoint that has checksums.
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
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _problem(path: epath.Path, expected: str) -> str | None:
    if not path.exists():
        return "is missing"
    try:
        return None if _digest(path) == expected else "is not as it was written"
    except OSError as error:
        return f"cannot be read ({error})"


def _digest(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()
