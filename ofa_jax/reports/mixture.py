"""Samples a task or mixture as training reads it: shares, lengths, findings and some examples."""

import collections
import dataclasses
import itertools
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio

from ofa_jax.data import seqio_bridge
from ofa_jax.data.features import Example
from ofa_jax.data.sampling import WeightedTask
from ofa_jax.data.sources.base import is_endless
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.utils.bad_input import Finding, collect
from ofa_jax.utils.progress import substage

FEATURES = ("inputs", "targets")


@dataclasses.dataclass(frozen=True)
class TaskSample:
    """The first examples of a task, as in training.

    Attributes:
      name: of the task.
      share: of the mixture's examples.
      num_records: of the split; None if unknown or without end.
      in_exact_order: whether the task has records with random access.
      examples: the sample.
      findings: about records that were skipped, and parts that were dropped or replaced.
      vocabulary: of the targets.
      rate: in the mixture; None if unknown.
    """

    name: str
    share: float
    num_records: int | None
    in_exact_order: bool
    examples: Sequence[Example]
    findings: Sequence[Finding]
    vocabulary: seqio.Vocabulary
    rate: float | None = None

    @property
    def reasons(self) -> Mapping[str, int]:
        """Name of a reason -> number of its findings."""
        return collections.Counter(finding.reason.name for finding in self.findings)

    def lengths(self, feature: str) -> np.ndarray:
        """Returns the length in tokens of a feature of every example, int64 [n]."""
        return np.array([len(example[feature]) for example in self.examples], np.int64)


@dataclasses.dataclass(frozen=True)
class Fit:
    """How the lengths of a sample fit a configured length.

    Attributes:
      length: the configured length in tokens.
      cut: share of the examples that are longer.
      padded: share of the positions that are padding.
    """

    length: int
    cut: float
    padded: float

    @classmethod
    def of(cls, lengths: np.ndarray, length: int) -> "Fit":
        """Computes the shares for lengths in tokens, int64 [n]."""
        used = np.minimum(lengths, length).mean()
        return cls(length, float((lengths > length).mean()), float(1 - used / length))


def length_summary(lengths: np.ndarray) -> str:
    """Returns the median, the 95th percentile and the largest of some lengths."""
    return f"{np.median(lengths):.0f} / {np.percentile(lengths, 95):.0f} / {lengths.max()}"


def sample_mixture(
    name: str,
    split: str,
    count: int,
    seed: int,
    settings: Any = None,
    lengths: Mapping[str, Mapping[str, int]] | None = None,
) -> list[TaskSample]:
    """Draws the first examples of every task of a mixture.

    Args:
      name: of a task or mixture in seqio's registry.
      split: of the data.
      count: number of examples of each task.
      seed: of the preprocessors' draws.
      settings: of the run; None for default settings.
      lengths: task -> feature -> configured length, for tf.data preprocessors that ask for it;
        nothing is cut. May lack tasks.

    Raises:
      ValueError: there is no such mixture, or a task yields nothing.
    """
    rates = seqio_bridge.rates(name, settings)
    total = sum(rates.values())
    samples = []
    with substage("sampling", len(rates), "tasks") as stage:
        for task, rate in sorted(rates.items()):
            own_lengths = (lengths or {}).get(task)
            sample = _sample_task(task, rate / total, split, count, seed, settings, own_lengths)
            samples.append(dataclasses.replace(sample, rate=rate))
            stage.advance()
    return samples


def _sample_task(
    name: str,
    share: float,
    split: str,
    count: int,
    seed: int,
    settings: Any,
    lengths: Mapping[str, int] | None,
) -> TaskSample:
    """Draws the first examples of a task."""
    task = seqio.TaskRegistry.get(name)
    findings: list[Finding] = []
    weighted = seqio_bridge.weighted_tasks(name, split, settings)
    if weighted is None:
        with collect() as found:
            examples = _sequential_examples(name, split, count, seed, lengths)
        findings += [dataclasses.replace(finding, task=name) for finding in found]
        num_records = task.source.num_input_examples(split)
    else:
        # Without TensorFlow around it, a mistake in the function has a short traceback.
        (own,) = weighted
        examples = _collect(itertools.islice(_examples(own, seed, findings), count), name, count)
        num_records = None if is_endless(own.records) else len(own.records)
    if not examples:
        reason = f", e.g. {findings[0].detail}" if findings else ""
        raise ValueError(f"The task {name} yields nothing on the split {split!r}{reason}.")
    return TaskSample(
        name,
        share,
        num_records,
        weighted is not None,
        examples,
        findings,
        task.output_features["targets"].vocabulary,
    )


def _collect(examples: Iterable[Example], name: str, count: int) -> list[Example]:
    """Returns the examples of a task, at most `count`, and shows how many there are."""
    collected = []
    with substage(name, count, "examples") as stage:
        for example in examples:
            collected.append(example)
            stage.advance()
    return collected


def _sequential_examples(
    name: str, split: str, count: int, seed: int, lengths: Mapping[str, int] | None
) -> list[Example]:
    """Returns the first examples of a task with tf.data preprocessors.

    Raises:
      ValueError: the preprocessors fail, for example because they need lengths.
    """
    try:
        examples = seqio_bridge.examples_in_order(name, lengths, split, seed)
        return _collect(itertools.islice(examples, count), name, count)
    except ValueError:
        raise
    except Exception as error:
        traceback.print_exc()
        advice = "" if lengths else "; give --lengths if its preprocessors need them"
        raise ValueError(
            f"{name} cannot be read, see above: {type(error).__name__}: {error}{advice}."
        ) from error


def _examples(task: WeightedTask, seed: int, findings: list[Finding]) -> Iterator[Example]:
    """Yields the examples of valid records, and collects the findings about all of them.

    Raises:
      ValueError: the preprocess function has a mistake, whose traceback is printed.
    """
    for index in range(len(task.records)):
        with collect() as found:
            try:
                rng = np.random.default_rng([seed, index])
                example = task.preprocess(task.records[index], rng)
            except InvalidRecordError as error:
                found.append(Finding(error.reason, str(error)))
                example = None
            except Exception as error:
                # Training would skip the record; here the author wants to see the mistake.
                traceback.print_exc()
                raise ValueError(
                    f"{task.name} fails on record {index}, see above: "
                    f"{type(error).__name__}: {error}"
                ) from error
        findings += [
            Finding(finding.reason, f"{task.name}, record {index}: {finding.detail}", task.name)
            for finding in found
        ]
        if example is not None:
            yield example
