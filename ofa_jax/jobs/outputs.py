"""The output folder of an offline job: shards that are complete or absent, and their dead letters.

While a job runs:

    OUTPUT_DIR/job.json                          what the job depends on; a restart must match it
    OUTPUT_DIR/.shards/00003-of-00010            a finished shard
    OUTPUT_DIR/.shards/00003-of-00010.json       written after it: its records, size and SHA-256
    OUTPUT_DIR/dead_letters/00003-of-00010.jsonl    the records of the shard that were left out

A shard is a fixed range of records, written under a name of the process's own that begins with a
dot and ends in `.tmp`, flushed to the disk and renamed. So a worker that is killed leaves nothing
under a final name, a bundle that Beam runs twice writes the same file again, and a restarted job
keeps the shards whose checksum is right. At the end the shards with records get their final names,
and `SHA256SUMS`, in the format of sha256sum, lists all files.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from ofa_jax.inference.shards import compare_jobs, job_digest
from ofa_jax.utils import files
from ofa_jax.utils.bad_input import InvalidRecordError, Treatment, declare
from ofa_jax.utils.text_files import DamagedFileError, read_json

__all__ = ["CHECKSUMS", "DEAD_LETTERS", "JOB_FILE", "DeadLetters", "JobOutput", "Manifest"]

DAMAGED_JOB_SHARD = declare(
    "damaged shard of a job",
    Treatment.RECOVERED,
    "A finished shard of an offline job is not as it was written: it is written again.",
    __name__,
)

JOB_FILE, CHECKSUMS, DEAD_LETTERS, _SHARDS = "job.json", "SHA256SUMS", "dead_letters", ".shards"
_TEMPORARY = re.compile(r"\..+\.tmp")
_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a finished shard holds.

    Attributes:
      shard: its number.
      records: that were written.
      skipped: reason -> records that were left out.
      num_bytes: of the file.
      sha256: of the file.
      details: what the job adds, JSON.
    """

    shard: int
    records: int
    skipped: Mapping[str, int]
    num_bytes: int
    sha256: str
    details: Mapping[str, Any]


class DeadLetters:
    """Collects the records of a shard that cannot be used, as lines of JSON."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self.skipped: dict[str, int] = {}

    def add(self, origin: str, index: int, error: InvalidRecordError) -> None:
        """Adds a record.

        Args:
          origin: its file and line, or alike.
          index: its number in the job's input.
          error: why it was left out.
        """
        reason = error.reason.name
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        line = {"origin": origin, "index": index, "reason": reason, "message": str(error)}
        self._lines.append(json.dumps(line, ensure_ascii=False) + "\n")

    @property
    def content(self) -> bytes:
        """The lines."""
        return "".join(self._lines).encode("utf-8", "backslashreplace")


@dataclasses.dataclass(frozen=True)
class JobOutput:
    """The folder of a job; picklable, as workers write to it.

    Attributes:
      directory: on a disk, a mount that all workers share, or in an object store.
      bounds: shard n has the records bounds[n] to bounds[n + 1] of the input.
      job: identifies the job, see `job_digest`.
    """

    directory: str
    bounds: tuple[int, ...]
    job: str

    @property
    def count(self) -> int:
        """Number of shards."""
        return len(self.bounds) - 1

    def records(self, shard: int) -> range:
        """Returns the numbers of a shard's records in the input."""
        return range(self.bounds[shard], self.bounds[shard + 1])

    def path(self, shard: int) -> epath.Path:
        """Returns the file of a finished shard until the job ends."""
        return epath.Path(self.directory) / _SHARDS / self._name(shard)

    def _name(self, shard: int) -> str:
        return f"{shard:05d}-of-{self.count:05d}"

    def _manifest_path(self, shard: int) -> epath.Path:
        return epath.Path(self.directory) / _SHARDS / f"{self._name(shard)}.json"

    def _letters_path(self, shard: int) -> epath.Path:
        return epath.Path(self.directory) / DEAD_LETTERS / f"{self._name(shard)}.jsonl"

    # ----------------------------------------------------------------------------- by the launcher

    def begin(self, description: Mapping[str, Any]) -> None:
        """Creates the folder, or checks that it belongs to the same job; call it under its lock.

        Args:
          description: what the job depends on, JSON.

        Raises:
          ValueError: another job was started there, or something else is there.
          OSError: it cannot be written to.
        """
        folder = epath.Path(self.directory)
        current = json.loads(json.dumps(description))
        path = folder / JOB_FILE
        if path.exists():
            started = read_json(path)
            if not isinstance(started, dict):
                raise DamagedFileError(f"{path} is not the configuration of a job.")
            compare_jobs(pathlib.Path(self.directory), started, current)
        elif foreign := sorted(p.name for p in folder.iterdir() if not _TEMPORARY.match(p.name)):
            raise ValueError(
                f"{folder} has files that this job did not write ({', '.join(foreign[:3])}): "
                "choose another --output_dir."
            )
        else:
            files.write_json(path, current)
        for name in (_SHARDS, DEAD_LETTERS):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for place in (folder, folder / _SHARDS, folder / DEAD_LETTERS):
            for item in list(place.iterdir()):
                if _TEMPORARY.fullmatch(item.name):  # of a killed process
                    item.unlink(missing_ok=True)

    def manifests(self) -> list[Manifest]:
        """Returns what all shards hold.

        Raises:
          RuntimeError: a shard is not finished.
        """
        found = [self.read_manifest(shard) for shard in range(self.count)]
        missing = [shard for shard, manifest in enumerate(found) if manifest is None]
        if missing:
            raise RuntimeError(
                f"{len(missing)} of {self.count} shards in {self.directory} are not finished: "
                "start the same command again."
            )
        return [manifest for manifest in found if manifest is not None]

    def rename(self, manifests: list[Manifest], name: Callable[[int, int], str]) -> list[Manifest]:
        """Gives the shards with records their final names; may be repeated if it was killed.

        Args:
          manifests: of all shards.
          name: (number, count) -> name of a file in the folder.

        Returns:
          Those of the shards with records, in the order of the final names.

        Raises:
          RuntimeError: a shard has vanished.
        """
        kept = [manifest for manifest in manifests if manifest.records]
        for number, manifest in enumerate(kept):
            target = epath.Path(self.directory) / name(number, len(kept))
            source = self.path(manifest.shard)
            if source.exists():
                source.replace(target)
            elif not target.exists():
                raise RuntimeError(f"{source} has vanished: start the same command again.")
        return kept

    def finish(self, names: Mapping[str, str]) -> None:
        """Writes SHA256SUMS, last of all files, and removes what only a restart needs.

        Args:
          names: file -> its SHA-256 where it is known; the other files are read.
        """
        folder = epath.Path(self.directory)
        lines = {
            str(path.relative_to(folder)): path
            for place in (folder, folder / DEAD_LETTERS)
            for path in place.iterdir()
            if path.is_file() and not path.name.startswith(".") and path.name != CHECKSUMS
        }
        text = "".join(
            f"{names.get(name) or _digest(path)}  {name}\n" for name, path in sorted(lines.items())
        )
        if not any((folder / DEAD_LETTERS).iterdir()):
            (folder / DEAD_LETTERS).rmdir()
        files.write_text(folder / CHECKSUMS, text)
        self.remove_unfinished()

    def remove_unfinished(self) -> None:
        """Removes what only a restart of an unfinished job needs."""
        if (epath.Path(self.directory) / _SHARDS).exists():
            (epath.Path(self.directory) / _SHARDS).rmtree()

    def is_complete(self) -> bool:
        """Returns whether the job has ended."""
        return (epath.Path(self.directory) / CHECKSUMS).exists()

    # ------------------------------------------------------------------------------- by the workers

    def is_finished(self, shard: int) -> bool:
        """Returns whether a shard is there as it was written, or has its final name already."""
        manifest = self.read_manifest(shard)
        if manifest is None:
            return False
        path = self.path(shard)
        if not path.exists():
            # Without records it has no file; with records, the job was killed while it renamed.
            return not manifest.records or self._was_renaming()
        return path.stat().length == manifest.num_bytes and _digest(path) == manifest.sha256

    def _was_renaming(self) -> bool:
        """Returns whether files have their final names, which all shards must be finished for."""
        return all(self.read_manifest(shard) is not None for shard in range(self.count))

    def read_manifest(self, shard: int) -> Manifest | None:
        """Returns what a shard holds; None if it is not finished, or was of another job."""
        try:
            stored = read_json(self._manifest_path(shard))
        except (OSError, DamagedFileError):
            return None
        if not isinstance(stored, dict) or stored.pop("job", None) != self.job:
            return None
        try:
            return Manifest(**stored)
        except TypeError:
            return None

    @contextlib.contextmanager
    def write(self, shard: int) -> Iterator[tuple[pathlib.Path, DeadLetters, dict[str, Any]]]:
        """Yields a temporary file on a disk; at the end the shard is finished.

        The block writes the file, adds dead letters, and sets `records` and other details in the
        dict. If it raises, nothing is left.
        """
        letters, details = DeadLetters(), {"records": 0}
        with files.atomic_path(self.path(shard)) as temporary:
            with _on_disk(temporary) as local:
                yield local, letters, details
                if not local.exists():
                    local.touch()
                size, digest = local.stat().st_size, _digest(epath.Path(local))
            if letters.skipped:
                with files.atomic_path(self._letters_path(shard)) as path:
                    path.write_bytes(letters.content)
            else:
                self._letters_path(shard).unlink(missing_ok=True)
        records = details.pop("records")
        manifest = Manifest(shard, records, letters.skipped, size, digest, details)
        content = {"job": self.job} | dataclasses.asdict(manifest)
        files.write_json(self._manifest_path(shard), content)


def new_output(directory: str, bounds: list[int], description: Mapping[str, Any]) -> JobOutput:
    """Returns the output of a job with this description; nothing is written."""
    described = {**description, "bounds": bounds}
    return JobOutput(os.fspath(directory), tuple(bounds), job_digest(described))


@contextlib.contextmanager
def _on_disk(path: epath.Path) -> Iterator[pathlib.Path]:
    """Yields a path on a disk; what is written there is copied to `path` if that is elsewhere."""
    if files.is_local(path):
        yield pathlib.Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = pathlib.Path(folder) / "shard"
        yield local
        epath.Path(local).copy(path, overwrite=True)


def _digest(path: epath.Path) -> str:
    """Returns the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()
