"""Predictions as JSON lines: written in parts, so that an evaluation that is killed goes on.

    <folder>/part-00003.process-0001.jsonl     what one process has asked of a range of examples
    <folder>/predictions.jsonl                 all of them in the order of the examples, at the end

A file is there as a whole or not at all. All hosts share the folder, and so the parts of all hosts
come together without being sent.
"""

import collections
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from ofa_jax.utils.files import write_text

Line = Mapping[str, Any]
"""index, id, instruction, references, prediction, score; or index, id, error."""

PREDICTIONS = "predictions.jsonl"


class PredictionFiles:
    """The predictions of a task on a checkpoint."""

    def __init__(self, folder: epath.Path, num_examples: int, part_size: int):
        """Makes the folder.

        Args:
          folder: of this task and checkpoint alone.
          num_examples: of all parts.
          part_size: examples of each part but the last.
        """
        self._folder = folder
        self._num_examples = num_examples
        self._part_size = part_size
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def path(self) -> epath.Path:
        """Where all of them will be."""
        return self._folder / PREDICTIONS

    def _examples(self, part: int) -> range:
        start = part * self._part_size
        return range(start, min(start + self._part_size, self._num_examples))

    def unfinished(self) -> list[int]:
        """The parts that are still to be made, and nothing of them is there. All hosts must ask."""
        num_parts = -(-self._num_examples // self._part_size)
        missing = np.zeros(num_parts, bool)
        if jax.process_index() == 0:
            missing[self._clean(num_parts)] = True
        if jax.process_count() > 1:
            missing = multihost_utils.broadcast_one_to_all(missing)
        return np.flatnonzero(missing).tolist()

    def _clean(self, num_parts: int) -> list[int]:
        """Removes what is incomplete, or of another division into parts."""
        if self.path.exists():
            if _indices(self.path) == list(range(self._num_examples)):
                return []
            self.path.unlink()
        files = collections.defaultdict(list)
        for path in self._folder.glob("part-*.jsonl"):
            files[int(path.name.split(".")[0].removeprefix("part-"))].append(path)
        missing = []
        for part in sorted({*range(num_parts), *files}):
            found = sorted(index for path in files[part] for index in _indices(path))
            if found and found == list(self._examples(part)):
                continue
            for path in files[part]:
                path.unlink()
            if part < num_parts:
                missing.append(part)
        return missing

    def write(self, part: int, lines: Iterable[Line]) -> None:
        """Writes this host's lines of a part."""
        name = f"part-{part:05d}.process-{jax.process_index():04d}.jsonl"
        _write(self._folder / name, lines)

    def merge(self) -> list[Line]:
        """Puts the parts together, in the order of the examples. One host does it, after all wrote.

        Returns:
          All lines.

        Raises:
          ValueError: some are missing: the hosts do not share the folder.
        """
        if self.path.exists():
            return read(self.path)
        parts = sorted(self._folder.glob("part-*.jsonl"))
        lines = sorted((line for path in parts for line in read(path)), key=lambda x: x["index"])
        if [line["index"] for line in lines] != list(range(self._num_examples)):
            raise ValueError(
                f"{self._folder} holds {len(lines)} predictions instead of {self._num_examples}: "
                "is it a folder that all hosts share?"
            )
        _write(self.path, lines)
        for path in parts:
            path.unlink()
        return lines


def read(path: epath.Path) -> list[Line]:
    """The lines of a file."""
    # Not splitlines: texts may have other line breaks in them.
    return [json.loads(line) for line in path.read_bytes().decode("utf-8").split("\n") if line]


def _indices(path: epath.Path) -> Sequence[int]:
    try:
        return [line["index"] for line in read(path)]
    except (ValueError, KeyError):  # not a file of ours
        return []


def _write(path: epath.Path, lines: Iterable[Line]) -> None:
    """All at once."""
    text = "".join(json.dumps(line, ensure_ascii=False, default=_plain) + "\n" for line in lines)
    write_text(path, text)


def _plain(value: Any) -> Any:
    """numpy's arrays and scalars as JSON takes them."""
    return value.tolist()
