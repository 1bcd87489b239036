"""Validation: loss and token accuracy of the model beside two baselines.

The baselines use only the training targets of the same objective: *unigram* predicts every token
from its frequency, *majority* always predicts the most frequent target.
"""

import collections
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Float64
from rich.console import Console
from rich.table import Table

from ofa_jax.training.metrics import TaskSums
from ofa_jax.utils import state_files
from ofa_jax.utils.wrong_files import shorten

ROW = {"loss", "unigram_loss", "token_accuracy", "majority_accuracy"}
"""Values of a task, see `summarise`."""
SMOOTHING = 0.01
"""Added to every token's count, so that an unseen token has a probability."""

TargetBatch = Mapping[str, np.ndarray]
"""Has at least `decoder_target_tokens` [B, T] and `task_ids` [B]."""

BaselineScores = tuple[
    Float64[np.ndarray, " tasks"], Float64[np.ndarray, " tasks"], Float64[np.ndarray, " tasks"]
]
"""See `Baselines.score`."""


class Baselines:
    """Counts of the training targets of each task."""

    def __init__(self, num_tasks: int, vocab_size: int, pad_id: int = 1):
        """Starts with no targets counted."""
        self._pad_id = pad_id
        self._counts = np.zeros((num_tasks, vocab_size), np.int64)
        self._targets: list[collections.Counter[bytes]] = [
            collections.Counter() for _ in range(num_tasks)
        ]

    def add(self, batch: TargetBatch) -> None:
        """Counts a training batch."""
        for task, tokens in self._targets_of(batch):
            np.add.at(self._counts[task], tokens[tokens != self._pad_id], 1)
            self._targets[task][tokens.tobytes()] += 1

    def _targets_of(self, batch: TargetBatch) -> Iterable[tuple[int, np.ndarray]]:
        """Yields (task id, target tokens) of the examples that have a target."""
        targets = np.asarray(batch["decoder_target_tokens"], np.int32)
        for task, tokens in zip(np.asarray(batch["task_ids"]), targets, strict=True):
            if (tokens != self._pad_id).any():
                yield int(task), tokens

    def score(self, batches: Iterable[TargetBatch]) -> BaselineScores:
        """Scores validation targets.

        Returns:
          float64 [K] each: the sum of the unigram baseline's negative log-likelihoods in nats, the
          number of tokens that the majority target predicts at their position, the number of
          tokens.
        """
        num_tasks, vocab_size = self._counts.shape
        totals = self._counts.sum(1, keepdims=True) + SMOOTHING * vocab_size
        log_probs = np.log((self._counts + SMOOTHING) / totals)
        majority = [
            np.frombuffer(counter.most_common(1)[0][0], np.int32) if counter else None
            for counter in self._targets
        ]
        nll, correct, tokens_seen = np.zeros((3, num_tasks))
        for batch in batches:
            for task, tokens in self._targets_of(batch):
                scored = tokens != self._pad_id
                nll[task] -= log_probs[task, tokens[scored]].sum()
                tokens_seen[task] += scored.sum()
                if majority[task] is not None:
                    correct[task] += (scored & (majority[task] == tokens)).sum()
        return nll, correct, tokens_seen


def evaluate(
    eval_step: Callable[[Any, Mapping[str, Any], TaskSums], TaskSums],
    variables: Any,
    batches: Iterable[Mapping[str, Any]],
    num_tasks: int,
) -> TaskSums:
    """Returns the sums of all validation batches, on the host."""
    sums = TaskSums.zeros(num_tasks)
    for batch in batches:
        sums = eval_step(variables, batch, sums)
    return jax.tree.map(np.asarray, sums)


def summarise(
    sums: TaskSums,
    baselines: BaselineScores,
    task_names: Sequence[str],
) -> dict[str, dict[str, float]]:
    """Returns task -> loss, unigram_loss (nats per token), token_accuracy, majority_accuracy.

    Raises:
      ValueError: model and baselines did not see the same tokens, so they cannot be compared.
    """
    unigram, majority, tokens = baselines
    if not np.array_equal(tokens, sums.tokens):
        raise ValueError(f"Model and baselines saw different tokens ({sums.tokens} and {tokens}).")
    return {
        name: {
            "loss": float(sums.nll[k] / tokens[k]),
            "unigram_loss": float(unigram[k] / tokens[k]),
            "token_accuracy": float(sums.correct[k] / tokens[k]),
            "majority_accuracy": float(majority[k] / tokens[k]),
        }
        for k, name in enumerate(task_names)
        if tokens[k]
    }


METRICS = {"loss": min, "token_accuracy": max}
"""Metrics by which a checkpoint can be the best, and which value is better."""


def check_metric(metric: str, where: str, task_names: Sequence[str] | None = None) -> None:
    """Raises ValueError for a metric that validation does not have.

    Args:
      metric: "loss", "token_accuracy", or one of them of an objective: "visual_grounding/loss".
      where: its name, for the message.
      task_names: of the run; None where they are not known yet.
    """
    task, _, name = metric.rpartition("/")
    if name not in METRICS:
        raise ValueError(
            f"{where} is {shorten(metric)!r}; give one of {', '.join(METRICS)}, or OBJECTIVE/loss."
        )
    if task and task_names is not None and task not in task_names:
        raise ValueError(
            f"{where} is {shorten(metric)!r}, but the run's tasks are {', '.join(task_names)}."
        )


class History:
    """The results of every validation of a run, in `validations.json`.

    Attributes:
      was_damaged: whether the results of earlier validations are lost.
    """

    def __init__(self, path: epath.Path, log: Callable[[str], None] = logging.warning):
        """Reads the results of earlier validations; a damaged file is set aside.

        Args:
          path: of the file.
          log: prints a message.
        """
        self._path, self._log = path, log
        self.was_damaged = False
        self._results: dict[int, Mapping[str, Mapping[str, float]]] = {}
        if path.exists():
            saved = state_files.read_own_json(path, _is_history, log)
            self.was_damaged = saved is None
            self._results = {int(k): _with_nan(v) for k, v in (saved or {}).items()}

    def add(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Adds or replaces a step's results; the first host writes them."""
        self._results[step] = results
        history = {str(k): self._results[k] for k in sorted(self._results)}
        state_files.write_own_json(self._path, history, self._log)

    def best(self, metric: str, steps: Sequence[int]) -> int | None:
        """Returns the best of some steps, the earliest of equal ones; None if none is known.

        Args:
          metric: see `check_metric`; without an objective, the mean of all.
          steps: the ones to choose from.
        """
        task, _, name = metric.rpartition("/")
        values = {}
        for step in steps:
            rows = self._results.get(step, {})
            chosen = [
                row.get(name, math.nan) for key, row in rows.items() if not task or key == task
            ]
            if chosen and all(map(math.isfinite, chosen)):
                values[step] = sum(chosen) / len(chosen)
        return METRICS[name](values, key=values.__getitem__) if values else None


def _is_history(value: Any) -> bool:
    """Returns whether a JSON value is {step: results}."""
    return isinstance(value, dict) and all(
        key.isascii() and key.isdecimal() and len(key) < 20 and _is_results(results)
        for key, results in value.items()
    )


def _is_results(value: Any) -> bool:
    """Returns whether a JSON value is {task: {metric: number, or null for one not finite}}."""
    return isinstance(value, dict) and all(
        isinstance(row, dict)
        and all(type(number) in (int, float, type(None)) for number in row.values())
        for row in value.values()
    )


def _with_nan(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns results as JSON has them with nan in place of null."""
    return {
        task: {name: math.nan if x is None else float(x) for name, x in row.items()}
        for task, row in results.items()
    }


def read_results(
    path: epath.Path,
    log: Callable[[str], None] = logging.warning,
    columns: Collection[str] = frozenset(ROW),
) -> dict[str, dict[str, float]] | None:
    """Reads the results of the last validation; None if there are none, or they are damaged.

    Args:
      path: of the file.
      log: prints a message.
      columns: metrics that every row must have.
    """

    def is_complete(value: Any) -> bool:
        return _is_results(value) and all(set(columns) <= row.keys() for row in value.values())

    results = state_files.read_own_json(path, is_complete, log)
    return None if results is None else _with_nan(results)


def write_results(
    path: epath.Path,
    results: Mapping[str, Mapping[str, float]],
    log: Callable[[str], None] = logging.warning,
) -> None:
    """Writes the results of a validation on the first host; a failure is logged."""
    state_files.write_own_json(path, results, log)


def print_table(results: Mapping[str, Mapping[str, float]], title: str, console: Console) -> None:
    """Prints one row per objective; a loss that does not beat its baseline is marked."""
    table = Table(title=title, title_justify="left")
    table.add_column("objective", no_wrap=True)
    columns = ("validation loss", "unigram baseline", "token accuracy", "majority baseline")
    for name in columns:
        table.add_column(name, justify="right")
    for name, row in results.items():
        learned = row["loss"] < row["unigram_loss"]
        loss = f"{row['loss']:.3f}" + ("" if learned else " !")
        table.add_row(
            name,
            loss if math.isfinite(row["loss"]) else "not finite !",
            f"{row['unigram_loss']:.3f}",
            f"{row['token_accuracy']:.1%}",
            f"{row['majority_accuracy']:.1%}",
        )
    console.print(table)
    console.print("Losses in nats per token; ! marks one that does not beat its baseline.")


def print_metrics(
    results: Mapping[str, Mapping[str, float]],
    columns: Sequence[str],
    title: str,
    console: Console,
) -> None:
    """Prints one row of metrics for each thing that was evaluated."""
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    for name, row in results.items():
        table.add_row(name, *(f"{row.get(column, math.nan):.4g}" for column in columns))
    console.print(table)
