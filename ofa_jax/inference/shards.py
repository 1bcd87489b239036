"""Answers on disk, in files that are complete or not there.

    OUTPUT_DIR/job.json                           what is asked of whom; the same when it goes on
    OUTPUT_DIR/answers-00003-of-00010.jsonl       one line for each input of the shard, in order
    OUTPUT_DIR/images/00003/000012.png            the image of its line 12, where codes are asked

A shard is a fixed range of inputs, whatever hosts there are: host h of H writes the shards h,
h + H, h + 2H ... A file is written under another name, flushed to the disk and renamed, so one that
has its name is never computed again. What a kill leaves behind is overwritten.
"""

import dataclasses
import json
import os
import pathlib
import socket
from collections.abc import Mapping, Sequence
from typing import Any

_UNFINISHED = ".unfinished"
_JOB = "job.json"


class ShardError(ValueError):
    """A file of answers is not as it was written."""


@dataclasses.dataclass(frozen=True)
class Shards:
    """The shards of a job.

    Attributes:
      directory: on a disk that all hosts share, or one of each host's own.
      num_inputs: of the job.
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
        """The inputs of a shard."""
        return range(shard * self.size, min((shard + 1) * self.size, self.num_inputs))

    def share(self, host: int, num_hosts: int) -> range:
        """The shards of a host."""
        return range(host, self.count, num_hosts)

    def path(self, shard: int) -> pathlib.Path:
        """The file of a shard."""
        return self.directory / f"answers-{shard:05d}-of-{self.count:05d}.jsonl"

    def image_name(self, shard: int, line: int) -> str:
        """The file of a line's image, relative to the directory."""
        return f"images/{shard:05d}/{line:06d}.png"

    def unfinished(self, shards: Sequence[int]) -> list[int]:
        """Those that have no file yet."""
        return [shard for shard in shards if not self.path(shard).exists()]

    def write(
        self,
        shard: int,
        lines: Sequence[Mapping[str, Any]],
        images: Mapping[str, bytes] | None = None,
    ) -> None:
        """Writes a shard; its images first.

        Raises:
          OSError: the disk is full, most likely; what is there stays valid.
        """
        if len(lines) != len(self.inputs(shard)):
            raise ValueError(
                f"Shard {shard} has {len(self.inputs(shard))} inputs, not {len(lines)}."
            )
        for name, encoded in (images or {}).items():
            write_atomically(self.directory / name, encoded)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_atomically(self.path(shard), text.encode())

    def tally(self, shards: Sequence[int]) -> tuple[int, int]:
        """How many lines finished shards have, and how many of them are errors.

        Raises:
          ShardError: a shard has more or fewer lines than inputs: it was changed by hand.
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
                    "delete it, and start the job again to have it made anew."
                )
            total += lines
        return total, errors


def begin(directory: pathlib.Path, job: Mapping[str, Any]) -> None:
    """Writes down what is asked, where nothing was begun; see `compare`."""
    compare(directory, job)
    path = directory / _JOB
    if not path.exists():
        # Several hosts may do this at once.
        who = f".{socket.gethostname()}-{os.getpid()}"
        write_atomically(path, (json.dumps(job, indent=2) + "\n").encode(), who)


def compare(directory: pathlib.Path, job: Mapping[str, Any]) -> None:
    """Compares what is asked with what was begun there, if anything was.

    Args:
      directory: of the answers.
      job: name -> plain value.

    Raises:
      ValueError: something else was begun.
    """
    path = directory / _JOB
    wanted = json.loads(json.dumps(job))
    begun = json.loads(path.read_text()) if path.exists() else wanted
    for name in sorted({*begun, *wanted}):
        if begun.get(name) != wanted.get(name):
            raise ValueError(
                f"The job in {directory} was begun with {name} = {begun.get(name)}, and is "
                f"{wanted.get(name)} now: choose another OUTPUT_DIR, or go on as it was begun."
            )


def write_atomically(path: pathlib.Path, content: bytes, who: str = "") -> None:
    """A file that is there as a whole or not at all, even if the machine loses power.

    Args:
      path: of the file; its folder is made.
      content: all of it.
      who: writes it, where several may at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}{who}{_UNFINISHED}")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    _flush_folder(path.parent)


def _flush_folder(folder: pathlib.Path) -> None:
    """The new name is on the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
