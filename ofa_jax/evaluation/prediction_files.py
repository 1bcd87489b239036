"""Predictions as JSON lines, written in parts so that a killed evaluation can be resumed.

    <folder>/part-00003.process-0001.jsonl     predictions of one process for a range of examples
    <folder>/predictions.jsonl                 all predictions in the order of the examples

A file is complete or it does not exist. All hosts share the folder, so the parts of all hosts are
merged without communication.
"""

import collections
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from ofa_jax.utils import files

Line = Mapping[str, Any]
"""index, id, instruction, references, prediction, score; or index, id, error."""

PREDICTIONS = "predictions.jsonl"


class PredictionFiles:
    """The prediction files of one task on one checkpoint."""

    def __init__(self, folder: epath.Path, num_examples: int, part_size: int):
        """Creates the folder.

        Args:
          folder: a folder for this task and checkpoint alone.
          num_examples: number of examples in all parts.
          part_size: examples of each part except the last.
        """
        self._folder = folder
        self._num_examples = num_examples
        self._part_size = part_size
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def path(self) -> epath.Path:
        """The file of all predictions."""
        return self._folder / PREDICTIONS

    def _examples(self, part: int) -> range:
        """Returns the examples of a part."""
        start = part * self._part_size
        return range(start, min(start + self._part_size, self._num_examples))

    def unfinished(self) -> list[int]:
        """Deletes partial files; returns the indices of unfinished parts; a collective call."""
        num_parts = -(-self._num_examples // self._part_size)
        missing = np.zeros(num_parts, bool)
        if jax.process_index() == 0:
            missing[self._clean(num_parts)] = True
        if jax.process_count() > 1:
            missing = multihost_utils.broadcast_one_to_all(missing)
        return np.flatnonzero(missing).tolist()

    def _clean(self, num_parts: int) -> list[int]:
        """Deletes partial files and parts of another size; returns the unfinished parts."""
        if self.path.exists():
            if _indices(self.path) == list(range(self._num_examples)):
                return []
            self.path.unlink()
        part_files = collections.defaultdict(list)
        for path in self._folder.glob("part-*.jsonl"):
            part_files[int(path.name.split(".")[0].removeprefix("part-"))].append(path)
        missing = []
        for part in sorted({*range(num_parts), *part_files}):
            found = sorted(index for path in part_files[part] for index in _indices(path))
            if found and found == list(self._examples(part)):
                continue
            for path in part_files[part]:
                path.unlink()
            if part < num_parts:
                missing.append(part)
        return missing

    def write(self, part: int, lines: Iterable[Line]) -> None:
        """Writes this host's lines of a part."""
        name = f"part-{part:05d}.process-{jax.process_index():04d}.jsonl"
        _write(self._folder / name, lines)

    def merge(self) -> list[Line]:
        """Merges the parts in the order of the examples.

        One host calls it after all hosts have written their parts.

        Returns:
          All lines.

        Raises:
          ValueError: some are missing, because the hosts do not share the folder.
        """
        if self.path.exists():
            return read_lines(self.path)
        parts = sorted(self._folder.glob("part-*.jsonl"))
        lines = sorted((line for path in parts for line in read_lines(path)), key=_index)
        if [line["index"] for line in lines] != list(range(self._num_examples)):
            raise ValueError(
                f"{self._folder} holds {len(lines)} predictions instead of {self._num_examples}: "
                "give a folder that all hosts share."
            )
        _write(self.path, lines)
        for path in parts:
            path.unlink()
        return lines


def read_lines(path: epath.Path) -> list[Line]:
    """Reads the lines of a prediction file."""
    # Not splitlines: texts may contain other line breaks.
    return [json.loads(line) for line in path.read_bytes().decode("utf-8").split("\n") if line]


def _index(line: Line) -> int:
    return line["index"]


def _indices(path: epath.Path) -> Sequence[int]:
    """Returns the examples in a file; none if it is not a prediction file."""
    try:
        return [line["index"] for line in read_lines(path)]
    except (ValueError, KeyError):
        return []


def _write(path: epath.Path, lines: Iterable[Line]) -> None:
    """Writes lines atomically."""
    files.write_text(
        path,
        "".join(json.dumps(line, ensure_ascii=False, default=_to_plain) + "\n" for line in lines),
    )


def _to_plain(value: Any) -> Any:
    """Converts numpy arrays and scalars for JSON."""
    return value.tolist()
