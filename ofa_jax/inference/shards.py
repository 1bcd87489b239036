"""The output files of batch inference, each of which is complete or does not exist.

    OUTPUT_DIR/job.json                           the job's configuration; a restart must match it
    OUTPUT_DIR/answers-00003-of-00010.jsonl       one line for each input of the shard, in order
    OUTPUT_DIR/images/00003/000012.png            the image of its line 12, for image codes
    OUTPUT_DIR/.checks/00003-of-00010.json        what the file had when it was written

A shard is a fixed range of inputs, whatever the number of hosts: host h of H writes the shards h,
h + H, h + 2H ... A file is written under a temporary name of the process's own, flushed to the disk
and renamed. A file under its final name is not computed again, unless it is damaged: a restarted
job compares its own files with `.checks` before it believes them.
"""

import array
import dataclasses
import json
import os
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ofa_jax.utils import files
from ofa_jax.utils.bad_input import Treatment, declare
from ofa_jax.utils.excerpts import truncate
from ofa_jax.utils.text_files import DamagedFileError, read_json

DAMAGED_SHARD = declare(
    "damaged output file",
    Treatment.RECOVERED,
    "An output file of batch inference is not as it was written: its inputs are decoded again.",
    __name__,
)
DAMAGED_JOB = declare(
    "damaged job.json",
    Treatment.RECOVERED,
    "It is written again if the finished output files belong to the job; otherwise the command is "
    "refused.",
    __name__,
)

_JOB_FILE, _CHECKS = "job.json", ".checks"
_MAX_SHOWN = 300
"""Characters of a value in the message about a job that was started with another one."""
_TEMPORARY = re.compile(r"\..+(\.tmp|\.unfinished)")


class ShardError(ValueError):
    """An output file was changed after it was written."""


@dataclasses.dataclass(frozen=True)
class Shards:
    """The shards of a job.

    Attributes:
      directory: a folder that all hosts share, or one of each host's own.
      num_inputs: inputs of the job.
      size: inputs of a shard; the last one may have fewer.
      job: identifies the job, see `job_digest`; None to keep no checks.
    """

    directory: pathlib.Path
    num_inputs: int
    size: int
    job: str | None = None

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-self.num_inputs // self.size)

    def inputs(self, shard: int) -> range:
        """Returns the inputs of a shard."""
        return range(shard * self.size, min((shard + 1) * self.size, self.num_inputs))

    def batches(self, shard: int, batch_size: int) -> range:
        """Returns the batches of a shard; the last one may have fewer inputs."""
        inputs = self.inputs(shard)
        return range(inputs.start // batch_size, -(-inputs.stop // batch_size))

    def share(self, host: int, num_hosts: int) -> range:
        """Returns the shards of a host."""
        return range(host, self.count, num_hosts)

    def path(self, shard: int) -> pathlib.Path:
        """Returns the file of a shard."""
        return self.directory / f"answers-{shard:05d}-of-{self.count:05d}.jsonl"

    def image_name(self, shard: int, line: int) -> str:
        """Returns the file of a line's image, relative to the directory."""
        return f"images/{shard:05d}/{line:06d}.png"

    def unfinished(self, shards: Sequence[int]) -> list[int]:
        """Returns the shards that have no file yet."""
        return [shard for shard in shards if not self.path(shard).exists()]

    def damaged(self, shards: Sequence[int]) -> dict[int, str]:
        """Returns the finished shards that are not as they were written, and what is wrong."""
        found = {}
        for shard in shards:
            if self.path(shard).exists() and (problem := self._find_damage(shard)) is not None:
                found[shard] = problem
        return found

    def write(
        self,
        shard: int,
        lines: Sequence[Mapping[str, Any]],
        images: Mapping[str, bytes] | None = None,
    ) -> None:
        """Writes a shard, its images first.

        Args:
          shard: number of the shard.
          lines: one for each of its inputs.
          images: name of a file, see `image_name` -> its content.

        Raises:
          OSError: writing failed, for example because the disk is full; finished files stay.
        """
        if len(lines) != len(self.inputs(shard)):
            raise ValueError(
                f"Shard {shard} has {len(self.inputs(shard))} inputs, not {len(lines)}."
            )
        images = images or {}
        for name, encoded in images.items():
            write_durably(self.directory / name, encoded)
        text = "".join(
            json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines
        )
        content = text.encode("utf-8", "backslashreplace")
        if self.job is not None:
            check = {
                "job": self.job,
                "bytes": len(content),
                "crc32": zlib.crc32(content),
                "images": {name: len(encoded) for name, encoded in images.items()},
            }
            write_durably(self._check_path(shard), (json.dumps(check) + "\n").encode())
        write_durably(self.path(shard), content)

    def count_lines(self, shards: Sequence[int]) -> tuple[int, int]:
        """Counts the lines of finished shards, and those that are errors; see `count_all`."""
        counts = self.count_all(shards)
        return counts.lines, counts.errors

    def count_all(self, shards: Sequence[int]) -> "LineCounts":
        """Counts the lines of finished shards.

        Raises:
          ShardError: a shard has more or fewer lines than inputs, or one that is not JSON.
        """
        counts = LineCounts()
        for shard in shards:
            self._count_shard(shard, counts)
        return counts

    def _count_shard(self, shard: int, counts: "LineCounts") -> None:
        """Adds the lines of a finished shard to `counts`."""
        lines = 0
        with self.path(shard).open("rb") as file:
            for line in file:
                lines += 1
                try:
                    counts.add(json.loads(line.decode("utf-8")))  # bytes may be of any UTF
                except (ValueError, RecursionError, TypeError, AttributeError) as error:
                    raise ShardError(
                        f"{self.path(shard)} is damaged at line {lines}: delete it, and start the "
                        "job again."
                    ) from error
        if lines != len(self.inputs(shard)):
            raise ShardError(
                f"{self.path(shard)} has {lines} lines for {len(self.inputs(shard))} inputs: "
                "delete it, and start the job again."
            )

    # --------------------------------------------------------------------------------- checks

    def host_folder(self, host: int, num_hosts: int) -> pathlib.Path:
        """Returns the folder that a host locks."""
        return self.directory / _CHECKS / f"host-{host:05d}-of-{num_hosts:05d}"

    def _check_path(self, shard: int) -> pathlib.Path:
        return self.directory / _CHECKS / f"{shard:05d}-of-{self.count:05d}.json"

    def _find_damage(self, shard: int) -> str | None:
        """Describes what is wrong with the file of a shard; None if nothing is."""
        try:
            content = files.read_bytes(self.path(shard))
        except OSError as error:
            return f"it cannot be read ({error.strerror})"
        lines, inputs = content.count(b"\n"), len(self.inputs(shard))
        if lines != inputs or not content.endswith(b"\n"):
            return f"it has {lines} lines for {inputs} inputs"
        check = self._read_check(shard)
        if check is None:  # lost, or of an earlier version
            return None if _are_answers(content) else "it is not JSON lines"
        if check.get("job") != self.job:
            return "it is of another job"
        if (check.get("bytes"), check.get("crc32")) != (len(content), zlib.crc32(content)):
            return "it is not as it was written"
        images = check.get("images")
        for name, size in images.items() if isinstance(images, dict) else ():
            path = self.directory / str(name)
            if not path.is_file() or path.stat().st_size != size:
                return f"its image {name} is missing or not complete"
        return None

    def _read_check(self, shard: int) -> dict[str, Any] | None:
        """Returns the check of a shard; None if there is none that can be read."""
        if self.job is None:
            return None
        try:
            check = read_json(self._check_path(shard))
        except (OSError, DamagedFileError):
            return None
        return check if isinstance(check, dict) and isinstance(check.get("job"), str) else None

    def jobs_of_finished(self) -> set[str | None]:
        """Returns the jobs that the finished shards were written by; None for an unknown one."""
        finished = [shard for shard in range(self.count) if self.path(shard).exists()]
        checks = [self._read_check(shard) for shard in finished]
        return {None if check is None else check["job"] for check in checks}

    def delete_temporary(self, shards: Sequence[int]) -> None:
        """Deletes what killed processes left unfinished; call it under the host's lock."""
        for shard in shards:
            folders = {
                self.directory: self.path(shard).name,
                self._check_path(shard).parent: self._check_path(shard).name,
                (self.directory / self.image_name(shard, 0)).parent: "",
            }
            for folder, name in folders.items():
                for path in folder.glob(f".{name}*") if folder.is_dir() else ():
                    if _TEMPORARY.fullmatch(path.name):
                        path.unlink(missing_ok=True)


class LineCounts:
    """Counts of the lines of output files.

    Attributes:
      lines: all of them.
      errors: those that are errors.
      changed: those with warnings.
    """

    def __init__(self) -> None:
        self.lines = self.errors = self.changed = 0
        self._ids = array.array("q")  # hashes, as the ids of many lines would take much memory

    def add(self, line: Mapping[str, Any]) -> None:
        """Counts a line."""
        self.lines += 1
        self.errors += "error" in line
        self.changed += "warnings" in line
        self._ids.append(hash(line.get("id")))

    @property
    def repeated(self) -> int:
        """How many lines have the id of another line before them."""
        return len(self._ids) - len(np.unique(np.asarray(self._ids, np.int64)))


def _are_answers(content: bytes) -> bool:
    """Returns whether each line is a JSON object with an id."""
    try:
        lines = [json.loads(line) for line in content.decode("utf-8").split("\n") if line]
    except (ValueError, RecursionError):
        return False
    return all(isinstance(line, dict) and "id" in line for line in lines)


def write_job_file(directory: pathlib.Path, job: Mapping[str, Any]) -> None:
    """Writes a job's configuration if there is none yet; see `check_job_file`."""
    check_job_file(directory, job)
    path = directory / _JOB_FILE
    if not path.exists():
        # Several hosts may write it at the same time.
        replace_job_file(directory, job)


def replace_job_file(directory: pathlib.Path, job: Mapping[str, Any]) -> None:
    """Writes a job's configuration, also over an older or damaged one."""
    write_durably(directory / _JOB_FILE, (json.dumps(job, indent=2) + "\n").encode())


def read_job_file(directory: pathlib.Path) -> dict[str, Any] | None:
    """Reads the configuration of the job that was started in a directory; None if none was.

    Raises:
      DamagedFileError: it cannot be read.
    """
    path = directory / _JOB_FILE
    try:
        job = read_json(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read ({error.strerror}).") from error
    if not isinstance(job, dict):
        raise DamagedFileError(f"{path} is not the configuration of a job.")
    return job


def check_job_file(directory: pathlib.Path, job: Mapping[str, Any]) -> None:
    """Checks a job's configuration against that of the job started in its directory, if any.

    Args:
      directory: the output directory.
      job: name -> JSON-serialisable value.

    Raises:
      ValueError: they differ.
    """
    current = json.loads(json.dumps(job))
    started = read_job_file(directory)
    compare_jobs(directory, current if started is None else started, current)


def compare_jobs(
    directory: pathlib.Path, started: Mapping[str, Any], current: Mapping[str, Any]
) -> None:
    """Raises ValueError if a job was started with another configuration than the current one."""
    for name, before, now in _differences(started, current):
        old, new = (truncate(str(value), _MAX_SHOWN) for value in (before, now))
        raise ValueError(
            f"The job in {directory} was started with {name} = {old}, but now it is {new}: choose "
            "another OUTPUT_DIR, or restore the value."
        )


def _differences(
    started: Mapping[str, Any], current: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yields name, former and present value of what differs; a missing value is None."""
    for name in sorted({*started, *current}):
        before, now = started.get(name), current.get(name)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from _differences(before, now, f"{prefix}{name}.")
        elif before != now:
            yield f"{prefix}{name}", before, now


def job_digest(job: Mapping[str, Any]) -> str:
    """Returns what identifies a job's configuration."""
    return f"{zlib.crc32(json.dumps(job, sort_keys=True).encode()):08x}"


def write_durably(path: pathlib.Path, content: bytes) -> None:
    """Writes a file that is complete or absent, even if the machine loses power.

    Unlike `utils.files` it flushes the folder to the disk, too, so it needs a disk or a mount.

    Args:
      path: the file; its folder is created.
      content: the whole content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(content)
    _flush_folder(path.parent)


def _flush_folder(folder: pathlib.Path) -> None:
    """Flushes the entries of a folder, so that a renamed file keeps its name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
