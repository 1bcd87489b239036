"""The output files of batch inference, each of which is complete or does not exist.

    OUTPUT_DIR/job.json                           the job's configuration; a restart must match it
    OUTPUT_DIR/answers-00003-of-00010.jsonl       one line for each input of the shard, in order
    OUTPUT_DIR/images/00003/000012.png            the image of its line 12, for image codes

A shard is a fixed range of inputs, whatever the number of hosts: host h of H writes the shards h,
h + H, h + 2H ... A file is written under a temporary name, flushed to the disk and renamed, so a
file under its final name is never computed again. Temporary files of a killed job are overwritten.
"""

import dataclasses
import json
import os
import pathlib
import socket
from collections.abc import Mapping, Sequence
from typing import Any

_TEMPORARY = ".unfinished"
_JOB_FILE = "job.json"


class ShardError(ValueError):
    """An output file was changed after it was written."""


@dataclasses.dataclass(frozen=True)
class Shards:
    """The shards of a job.

    Attributes:
      directory: a folder that all hosts share, or one of each host's own.
      num_inputs: inputs of the job.
      size: inputs of a shard; the last one may have fewer.
    """

    directory: pathlib.Path
    num_inputs: int
    size: int

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-self.num_inputs // self.size)

    def inputs(self, shard: int) -> range:
        """Returns the inputs of a shard."""
        return range(shard * self.size, min((shard + 1) * self.size, self.num_inputs))

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
        for name, encoded in (images or {}).items():
            write_durably(self.directory / name, encoded)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_durably(self.path(shard), text.encode())

    def count_lines(self, shards: Sequence[int]) -> tuple[int, int]:
        """Counts the lines of finished shards, and those of them that are errors.

        Raises:
          ShardError: a shard has more or fewer lines than inputs.
        """
        total = errors = 0
        for shard in shards:
            lines = 0
            with self.path(shard).open("rb") as file:
                for line in file:
                    lines += 1
                    errors += "error" in json.loads(line)
            if lines != len(self.inputs(shard)):
                raise ShardError(
                    f"{self.path(shard)} has {lines} lines for {len(self.inputs(shard))} inputs: "
                    "delete it, and start the job again."
                )
            total += lines
        return total, errors


def write_job_file(directory: pathlib.Path, job: Mapping[str, Any]) -> None:
    """Writes a job's configuration if there is none yet; see `check_job_file`."""
    check_job_file(directory, job)
    path = directory / _JOB_FILE
    if not path.exists():
        # Several hosts may write it at the same time.
        writer = f".{socket.gethostname()}-{os.getpid()}"
        write_durably(path, (json.dumps(job, indent=2) + "\n").encode(), writer)


def check_job_file(directory: pathlib.Path, job: Mapping[str, Any]) -> None:
    """Checks a job's configuration against that of the job started in its directory, if any.

    Args:
      directory: the output directory.
      job: name -> JSON-serialisable value.

    Raises:
      ValueError: they differ.
    """
    path = directory / _JOB_FILE
    current = json.loads(json.dumps(job))
    started = json.loads(path.read_text()) if path.exists() else current
    for name in sorted({*started, *current}):
        if started.get(name) != current.get(name):
            raise ValueError(
                f"The job in {directory} was started with {name} = {started.get(name)}, but now "
                f"it is {current.get(name)}: choose another OUTPUT_DIR, or restore the value."
            )


def write_durably(path: pathlib.Path, content: bytes, writer: str = "") -> None:
    """Writes a file that is complete or absent, even if the machine loses power.

    Unlike `utils.files` it flushes the file and its folder to the disk, so it needs a disk or a
    mount.

    Args:
      path: the file; its folder is created.
      content: the whole content.
      writer: distinguishes processes that write the same file at the same time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{writer}{_TEMPORARY}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _flush_folder(path.parent)


def _flush_folder(folder: pathlib.Path) -> None:
    """Flushes the entries of a folder, so that a renamed file keeps its name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
