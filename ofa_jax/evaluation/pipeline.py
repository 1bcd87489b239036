"""Decodes many batches: the host prepares and parses batches while the device decodes another.

source ─▶ host: features of batch b + 1 ─▶ device: decode batch b ─▶ host: parse batch b - 1
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from ofa_jax.evaluation.batch_decoder import BatchDecoder, DecodedBatch
from ofa_jax.evaluation.eval_sources import EvalBatch

DATA, DECODING, COMPILATION = "data", "decoding", "compilation"
"""Kinds of time: waiting for batches, waiting for the device, and compiling."""


def row_seeds(batch: EvalBatch) -> list[int]:
    """Returns what the samples of each row follow from: the index of its example."""
    return [0 if example is None else example.index for example in batch.examples]


Measure = Callable[[str], AbstractContextManager[Any]]


def decode_batches(
    decoder: BatchDecoder,
    variables: Any,
    batches: Iterable[EvalBatch],
    measure: Measure = contextlib.nullcontext,
) -> Iterator[tuple[EvalBatch, DecodedBatch]]:
    """Yields batches with their hypotheses, in order.

    Args:
      decoder: decodes a batch.
      variables: {"params", "batch_stats"}, on the mesh.
      batches: the batches to decode.
      measure: kind of time -> a context manager that measures a block of this kind, for example
        `GoodputTimer.measure`.
    """
    iterator = iter(batches)
    waiting = None
    while True:
        with measure(DATA):
            batch = next(iterator, None)
        if batch is None:
            break
        with measure(COMPILATION if waiting is None else DECODING):
            seeds = row_seeds(batch)
            pending = decoder.start(variables, batch.features, batch.number, seeds)
        if waiting is not None:
            with measure(DECODING):
                decoded = decoder.finish(waiting[1])
            yield waiting[0], decoded
        waiting = batch, pending
    if waiting is not None:
        with measure(DECODING):
            decoded = decoder.finish(waiting[1])
        yield waiting[0], decoded
