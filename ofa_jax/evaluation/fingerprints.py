"""Fingerprints of what predictions depend on: the examples, their files and the weights.

An evaluation that is resumed on other data or other weights would mix predictions of both. The
fingerprints are small and quick, so they do not see every change: of examples a few are compared,
of large files their size, the time of their last change, and a few blocks.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ofa_jax.checkpoints import checksums, storage
from ofa_jax.interop import files as official
from ofa_jax.utils.files import is_local

_MAX_EXAMPLES = 16
_WHOLE_FILE = 64 << 20
_BLOCK, _BLOCKS = 1 << 16, 64


def of_examples(count: int, read: Callable[[int], Iterable[Any]]) -> str:
    """Returns the fingerprint of the first, the last and some examples between them.

    Args:
      count: number of examples.
      read: index -> what the prediction of an example depends on.
    """
    digest = hashlib.sha256(str(count).encode())
    for index in np.unique(np.linspace(0, count - 1, min(count, _MAX_EXAMPLES)).astype(int)):
        for part in read(int(index)):
            _update(digest, part)
    return digest.hexdigest()


def of_sequence(examples: Iterable[Mapping[str, Any]]) -> tuple[int, str]:
    """Returns the number of examples, and the fingerprint of their inputs."""
    count, digest = 0, hashlib.sha256()
    for example in examples:
        count += 1
        _update(digest, example["inputs"])
    return count, digest.hexdigest()


def of_records(records: Any) -> dict[str, list[Any]]:
    """Returns name -> [bytes, digest] of the files of records; empty if they have none.

    Large files have the time of their last change in place of the digest of all bytes.
    """
    paths = sorted(set(_files_of(records)))
    names = [os.path.basename(path) for path in paths]
    if len(set(names)) < len(names):
        names = [os.path.join(*path.split(os.sep)[-2:]) for path in paths]
    return {name: of_file(path) for name, path in zip(names, paths, strict=True)}


def of_weights(path: str) -> str | None:
    """Returns the fingerprint of a checkpoint; None if it has no checksums and is no file."""
    if official.is_official(path):
        return None if not os.path.isfile(path) else ",".join(map(str, of_file(path)))
    sums = storage.absolute_path(path) / checksums.FILE
    with contextlib.suppress(OSError):
        return hashlib.sha256(sums.read_bytes()).hexdigest()
    return None


def _files_of(records: Any, depth: int = 4) -> Iterator[str]:
    """Yields the local files that records are read from.

    Sources name them in the fields `path`, `paths`, `files` and `directory`, or wrap other sources.
    """
    if isinstance(records, str | os.PathLike):
        path = os.path.abspath(records)
        if not is_local(records):
            return
        if os.path.isdir(path):
            yield from (entry.path for entry in os.scandir(path) if entry.is_file())
        elif os.path.isfile(path):
            yield path
        return
    if depth == 0:
        return
    if isinstance(records, list | tuple):
        for own in records:
            yield from _files_of(own, depth - 1)
        return
    for name in ("path", "paths", "files", "directory", "records", "regions", "objects"):
        own = getattr(records, name, None)
        if own is not None and not callable(own) and not isinstance(own, Mapping):
            yield from _files_of(own, depth - 1)


def of_file(path: str) -> list[Any]:
    """Returns [bytes, digest] of a file, with the time of its last change if it is large."""
    status = os.stat(path)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        if status.st_size <= _WHOLE_FILE:
            return [status.st_size, hashlib.file_digest(file, "sha256").hexdigest()]
        for start in np.linspace(0, status.st_size - _BLOCK, _BLOCKS).astype(int):
            file.seek(int(start))
            digest.update(file.read(_BLOCK))
    return [status.st_size, f"{digest.hexdigest()} {status.st_mtime_ns}"]


def _update(digest: Any, value: Any) -> None:
    """Adds a value of a record to a digest, whatever it is."""
    if isinstance(value, np.ndarray | np.generic):
        value = np.ascontiguousarray(value)
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(repr(value.tolist()).encode() if value.dtype.hasobject else value.tobytes())
    elif isinstance(value, bytes):
        digest.update(b"bytes%d:" % len(value) + value)
    elif isinstance(value, str):
        _update(digest, value.encode("utf-8", "surrogatepass"))
    elif isinstance(value, Mapping):
        for name in sorted(value, key=repr):
            _update(digest, repr(name))
            _update(digest, value[name])
    elif isinstance(value, Sequence):
        digest.update(b"%d[" % len(value))
        for own in value:
            _update(digest, own)
    elif value is None or isinstance(value, bool | int | float):
        digest.update(repr(value).encode())
    else:
        digest.update(type(value).__name__.encode())  # its repr may hold a memory address
