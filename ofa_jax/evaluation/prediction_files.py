"""Predictions as JSON lines, written in parts so that a killed evaluation can be resumed.

    <folder>/part-00003.process-0001.jsonl     predictions of one process for a range of examples
    <folder>/predictions.jsonl                 all predictions in the order of the examples

A file is complete or it does not exist. What is read is checked nevertheless, because a disk or a
person may have damaged it since: a file whose lines are not those of its examples is made anew. All
hosts share the folder, so the parts of all hosts are merged without communication.
"""

import collections
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from ofa_jax.utils import files
from ofa_jax.utils.bad_input import Treatment, declare
from ofa_jax.utils.json_values import to_json

Line = Mapping[str, Any]
"""index, id, instruction, references, prediction, score, sometimes notes; or index, id, error and
reason."""

PREDICTIONS = "predictions.jsonl"
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading a damaged line may raise."""
_PART = re.compile(r"part-(\d+)\.process-\d+\.jsonl")

DAMAGED = declare(
    "damaged predictions",
    Treatment.RECOVERED,
    "A file of predictions, or of a part of them, does not hold the lines of its examples, or "
    "`predictions.jsonl` has changed since its metrics were computed. The predictions of its "
    "examples are made anew.",
    __name__,
)


class PredictionFiles:
    """The prediction files of one task on one checkpoint."""

    def __init__(
        self,
        folder: epath.Path,
        num_examples: int,
        part_size: int,
        is_valid: Callable[[Line], bool] = lambda line: True,
        digest: str | None = None,
        log: Callable[[str], None] = logging.warning,
    ):
        """Creates nothing yet.

        Args:
          folder: a folder for this task and checkpoint alone.
          num_examples: number of examples in all parts.
          part_size: examples of each part except the last.
          is_valid: returns whether a line has what the metrics need.
          digest: of `predictions.jsonl` when it was last used; None if unknown.
          log: is called with a sentence about each damaged file.
        """
        self._folder = folder
        self._num_examples = num_examples
        self._part_size = part_size
        self._is_valid = is_valid
        self._known_digest = digest
        self._log = log

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
        """Deletes damaged files and parts of another size; returns the unfinished parts."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)  # of a process that was killed
        if self.path.exists():
            problem = self._find_problem()
            if problem is None:
                return []
            # Lines that can still be read may be damaged, too.
            self._log(f"{self.path} {problem} ({DAMAGED.name}): they are made anew.")
        part_files = collections.defaultdict(list)
        for path in self._folder.glob("part-*.jsonl"):
            if (match := _PART.fullmatch(path.name)) is not None:
                part_files[int(match[1])].append(path)
        missing = []
        for part in sorted({*range(num_parts), *part_files}):
            examples = self._examples(part)
            found = sorted(index for path in part_files[part] for index in self._indices(path))
            if found and found == list(examples):
                continue
            if found:
                self._log(
                    f"The predictions of part {part} in {self._folder} are incomplete: they are "
                    "made anew."
                )
            for path in part_files[part]:
                path.unlink()
            if part < num_parts:
                missing.append(part)
        self.path.unlink(missing_ok=True)
        return missing

    def is_complete(self) -> bool:
        """Returns whether all predictions are there and unchanged."""
        return self.path.exists() and self._find_problem() is None

    def _find_problem(self) -> str | None:
        """Describes what is wrong with the file of all predictions; None if nothing is."""
        content = self.path.read_bytes()
        lines = _intact_lines(content, self._is_valid)
        whole = content.endswith(b"\n") and content.count(b"\n") == len(lines)
        if not whole or len(lines) != self._num_examples:
            return f"does not hold {self._num_examples} predictions"
        if self._known_digest not in (None, _digest(content)):
            return "has changed since its metrics were computed"
        return None

    def _indices(self, path: epath.Path) -> Sequence[int]:
        """Returns the examples in a part; none if it is damaged."""
        try:
            lines = read_lines(path)
            if lines and all(map(self._is_valid, lines)):
                return [_index(line) for line in lines]
        except _DAMAGE:
            pass
        self._log(f"{path} is damaged ({DAMAGED.name}): its predictions are made anew.")
        return []

    def write(self, part: int, lines: Iterable[Line]) -> None:
        """Writes this host's lines of a part."""
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"part-{part:05d}.process-{jax.process_index():04d}.jsonl"
        _write(self._folder / name, lines)

    def merge(self) -> tuple[list[Line], str]:
        """Merges the parts in the order of the examples.

        One host calls it after all hosts have written their parts.

        Returns:
          All lines, and the digest of the file.

        Raises:
          ValueError: some are missing, because the hosts do not share the folder.
        """
        parts = sorted(self._folder.glob("part-*.jsonl"))
        if not self.path.exists():
            lines = sorted((line for path in parts for line in read_lines(path)), key=_index)
            if [line["index"] for line in lines] != list(range(self._num_examples)):
                raise ValueError(
                    f"{self._folder} holds {len(lines)} predictions instead of "
                    f"{self._num_examples}: give a folder that all hosts share."
                )
            _write(self.path, lines)
        for path in parts:
            path.unlink()
        content = self.path.read_bytes()
        return _parse(content), _digest(content)


def read_lines(path: epath.Path) -> list[Line]:
    """Reads the lines of a prediction file."""
    return _parse(path.read_bytes())


def _parse(content: bytes) -> list[Line]:
    # Not splitlines: texts may contain other line breaks.
    return [json.loads(line) for line in content.decode("utf-8").split("\n") if line]


def _intact_lines(content: bytes, is_valid: Callable[[Line], bool]) -> list[Line]:
    """Returns the lines from the first example on, up to the first that is damaged."""
    lines: list[Line] = []
    for text in content.split(b"\n"):
        try:
            line = json.loads(text.decode("utf-8"))
            if not (_index(line) == len(lines) and is_valid(line)):
                break
        except _DAMAGE:
            break
        lines.append(line)
    return lines


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _index(line: Line) -> int:
    """Returns the index of a line; raises TypeError if it is no whole number."""
    if type(line["index"]) is not int:
        raise TypeError("an index is a whole number")
    return line["index"]


def _write(path: epath.Path, lines: Iterable[Line]) -> None:
    """Writes lines atomically, as strict JSON."""
    texts = (
        json.dumps(to_json(line), ensure_ascii=False, allow_nan=False) + "\n" for line in lines
    )
    files.write_text(path, "".join(texts))
