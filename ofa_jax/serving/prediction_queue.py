"""A queue that puts the requests of many threads into batches of one model.

    queue = PredictionQueue(predictor)
    future = queue.submit(PredictionRequest("what does the image describe?", encoded_image))
    future.result().text

    threads of clients: check, decode, resize, encode ─▶ waiting ─▶ one worker: batch, decode

A request waits as small arrays of the model's size, never as the image that was sent. All shapes
are those of the `Predictor`, so that nothing is compiled again for another number of requests.
"""

import collections
import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from PIL import Image

from ofa_jax.inference.predictions import Prediction
from ofa_jax.serving import limits as serving_limits
from ofa_jax.serving.limits import Limits
from ofa_jax.serving.prediction_requests import (
    BatchPredictor,
    Counts,
    DrainingError,
    PredictionRequest,
    QueueFullError,
    UnexpectedError,
    check_limits,
)
from ofa_jax.utils.bad_input import collect
from ofa_jax.utils.decode_options import AS_SEEN, DecodeOptions

_MAX_CANDIDATE_LISTS = 64
"""Other lists of candidates are other programs; after this many all programs are dropped."""


@dataclasses.dataclass(eq=False)
class _Waiting:
    """An accepted request."""

    prepared: Any
    warnings: tuple[str, ...]
    future: "concurrent.futures.Future[Prediction]"
    arrived: float


class PredictionQueue:
    """Batches the requests of many threads; see the module's docstring.

    Attributes:
      predictor: decodes the batches.
      limits: of each request.
      max_waiting: requests that may be prepared or wait at a time.
    """

    def __init__(
        self,
        predictor: BatchPredictor,
        *,
        limits: Limits | None = None,
        max_waiting: int = 256,
        max_delay_s: float = 0.02,
        decode_options: DecodeOptions | None = None,
    ):
        """Starts the worker thread; compiles nothing.

        Args:
          predictor: a `Predictor`.
          limits: of uploads and texts; the defaults when None.
          max_waiting: requests that may be prepared or wait at a time; more are refused.
          max_delay_s: seconds that a request waits for others to fill its batch.
          decode_options: how images are decoded; those of the model's processor when None.

        Raises:
          ValueError: a number is out of its range.
        """
        if max_waiting < 1 or not max_delay_s >= 0:
            raise ValueError(
                f"max_waiting is {max_waiting} and max_delay_s {max_delay_s}; give at least 1 "
                "request and 0 seconds."
            )
        self.predictor, self.limits = predictor, limits or Limits()
        self.max_waiting, self._max_delay_s = max_waiting, max_delay_s
        self._decode_options = decode_options or _decode_options_of(predictor)
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._counts: collections.Counter[str] = collections.Counter()
        self._open = 0  # being prepared, waiting or being decoded
        self._accepting = True
        self._stopped = False
        self._seconds_per_batch = 1.0
        self._candidate_lists: set[Hashable] = set()
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="predictions", daemon=True)
        self._worker.start()

    def submit(self, request: PredictionRequest) -> "concurrent.futures.Future[Prediction]":
        """Prepares a request in this thread and puts it into the queue.

        Args:
          request: what to predict.

        Returns:
          Its prediction to be, or the error (ValueError) for which it has none. A future that is
          cancelled before its batch begins costs nothing more.

        Raises:
          RefusedError: the queue is full or draining.
          ValueError: the request cannot be used; of the class TooLargeError if it exceeds a limit.
        """
        self._reserve()
        try:
            with collect() as notes:
                prepared = self._prepare(request)
            warnings = [finding.detail for finding in notes]
            if (too_long := _describe_truncation(prepared)) is not None:
                warnings.append(too_long)
        except BaseException as error:
            with self._changed:
                self._open -= 1
                self._counts["invalid"] += 1
                self._changed.notify_all()
            if isinstance(error, OSError):
                raise ValueError(str(error)) from error
            raise
        waiting = _Waiting(prepared, tuple(warnings), concurrent.futures.Future(), time.monotonic())
        with self._changed:
            self._counts["accepted"] += 1
            self._waiting.append(waiting)
            self._changed.notify_all()
        return waiting.future

    def check_room(self) -> None:
        """Raises RefusedError if a request would be refused now."""
        with self._changed:
            self._check_room()

    def stop_accepting(self) -> None:
        """Refuses all further requests; a signal handler may call it."""
        self._accepting = False

    def drain(self, timeout: float | None = None) -> bool:
        """Accepts nothing more, and waits until everything accepted is answered.

        Args:
          timeout: seconds; None for any time. Then what is still waiting is failed.

        Returns:
          Whether everything was answered in time.
        """
        self.stop_accepting()
        with self._changed:
            finished = self._changed.wait_for(lambda: not self._open, timeout)
            self._stopped = True
            left = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for waiting in left:
            self._finish(waiting, DrainingError("The server stops: try again later.", 10))
        self._worker.join(timeout=5 if finished else 0)
        return finished

    @property
    def is_accepting(self) -> bool:
        """Whether requests are accepted."""
        return self._accepting

    @property
    def is_working(self) -> bool:
        """Whether the thread of the model has not ended; a program may be being compiled in it."""
        return self._worker.is_alive()

    @property
    def num_open(self) -> int:
        """The requests that are being prepared, wait, or are being decoded."""
        return self._open

    @property
    def counts(self) -> Counts:
        """What became of the requests so far."""
        with self._changed:
            counted = {field.name: self._counts[field.name] for field in dataclasses.fields(Counts)}
            done = sum(counted[name] for name in ("answered", "failed", "cancelled"))
            return Counts(**counted | {"waiting": counted["accepted"] - done})

    # ---------------------------------------------------------------------- threads of the clients

    def _reserve(self) -> None:
        """Takes a place in the queue. Raises RefusedError if there is none."""
        with self._changed:
            self._check_room()
            self._open += 1

    def _check_room(self) -> None:
        """Raises RefusedError if there is no place in the queue; the lock is held."""
        if not self._accepting:
            self._counts["refused"] += 1
            raise DrainingError("The server is stopping and accepts nothing more.", 10)
        if self._open >= self.max_waiting:
            self._counts["refused"] += 1
            raise QueueFullError(
                f"{self._open} requests wait already, the most that the server takes: try again "
                "in a few seconds.",
                self._seconds_until_room(),
            )

    def _seconds_until_room(self) -> int:
        """Estimates after how many seconds half of the queue is done."""
        batches = self._open / 2 / self.predictor.batch_size
        return int(min(60, max(1, batches * self._seconds_per_batch)))

    def _prepare(self, request: PredictionRequest) -> Any:
        """Checks a request against the limits, and converts it to features."""
        check_limits(request, self.limits)
        image = request.image
        if isinstance(image, bytes | bytearray | memoryview):
            image = serving_limits.decode_upload(bytes(image), self.limits, self._decode_options)
        elif image is not None and not isinstance(image, Image.Image | np.ndarray):
            raise ValueError(
                f"The image is a {type(image).__name__}; give the content of a file, a PIL image, "
                "an array uint8 [height, width, 3], or None."
            )
        elif image is not None:
            size = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
            serving_limits.check_pixels(size, self.limits)
        return self.predictor.prepare(
            image,
            request.instruction,
            task=request.task,
            region=request.region,
            candidates=request.candidates,
            score_all=request.score_all,
            decoding=request.decoding,
        )

    # ------------------------------------------------------------------------------- the worker

    def _work(self) -> None:
        """Decodes batch after batch until the queue is drained."""
        while (batch := self._next_batch()) is not None:
            batch = [waiting for waiting in batch if self._begin(waiting)]
            if batch:
                start = time.monotonic()
                self._forget_programs(batch[0].prepared)
                self._decode(batch)
                seconds = time.monotonic() - start
                self._seconds_per_batch += 0.2 * (seconds - self._seconds_per_batch)
            del batch  # the worker waits for the next one without holding on to this one

    def _next_batch(self) -> list[_Waiting] | None:
        """Waits for requests; returns those of the oldest one's group, or None at the end."""
        size = self.predictor.batch_size
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopped)
            self._drop_cancelled()
            if not self._waiting:
                return None if self._stopped else []
            group, until = self._waiting[0].prepared.group, self._waiting[0].arrived
            until += self._max_delay_s
            while (
                sum(waiting.prepared.group == group for waiting in self._waiting) < size
                and self._accepting
                and not self._stopped
                and (left := until - time.monotonic()) > 0
            ):
                self._changed.wait(left)
            batch = [waiting for waiting in self._waiting if waiting.prepared.group == group][:size]
            chosen = set(map(id, batch))
            self._waiting = collections.deque(w for w in self._waiting if id(w) not in chosen)
            return batch

    def _drop_cancelled(self) -> None:
        """Takes requests that nobody waits for out of the queue; the lock is held."""
        kept = [waiting for waiting in self._waiting if not waiting.future.cancelled()]
        if dropped := len(self._waiting) - len(kept):
            self._waiting = collections.deque(kept)
            self._counts["cancelled"] += dropped
            self._open -= dropped
            self._changed.notify_all()

    def _begin(self, waiting: _Waiting) -> bool:
        """Returns whether a request is still wanted."""
        if waiting.future.set_running_or_notify_cancel():
            return True
        self._count("cancelled")
        return False

    def _decode(self, batch: Sequence[_Waiting]) -> None:
        """Decodes a batch; if that fails as a whole, each of its requests alone."""
        self._counts["batches"] += 1
        try:
            found = self.predictor.decode([waiting.prepared for waiting in batch])
        except Exception as error:  # noqa: BLE001  the worker outlives every batch
            if len(batch) > 1:
                logging.warning("A batch failed; its requests are tried alone.", exc_info=error)
                for waiting in batch:
                    self._decode([waiting])
                return
            logging.error("A request failed.", exc_info=error)
            problem = error if isinstance(error, ValueError) else _unexpected(error)
            self._finish(batch[0], problem)
            return
        for waiting, prediction in zip(batch, found, strict=True):
            self._finish(waiting, prediction)

    def _finish(self, waiting: _Waiting, outcome: Prediction | Exception) -> None:
        """Gives a request its prediction or its error."""
        try:
            if isinstance(outcome, Exception):
                waiting.future.set_exception(outcome)
            else:
                if waiting.warnings:
                    outcome = dataclasses.replace(outcome, warnings=waiting.warnings)
                waiting.future.set_result(outcome)
        except concurrent.futures.InvalidStateError:  # cancelled while the queue was cleared
            self._count("cancelled")
            return
        self._count("failed" if isinstance(outcome, Exception) else "answered")

    def _count(self, name: str) -> None:
        """Counts a request that has left the queue."""
        with self._changed:
            self._counts[name] += 1
            self._open -= 1
            self._changed.notify_all()

    def _forget_programs(self, prepared: Any) -> None:
        """Drops all compiled programs once too many lists of candidates have had theirs."""
        if getattr(getattr(prepared, "call", None), "candidates", None) is None:
            return
        self._candidate_lists.add(prepared.group)
        if len(self._candidate_lists) > _MAX_CANDIDATE_LISTS:
            self._candidate_lists = {prepared.group}
            jax.clear_caches()


def _decode_options_of(predictor: Any) -> DecodeOptions:
    """Returns how the images of a predictor's model are decoded."""
    processor = getattr(getattr(predictor, "loaded", None), "processor", None)
    return getattr(processor, "decode_options", AS_SEEN)


def _describe_truncation(prepared: Any) -> str | None:
    """Returns the sentence for an instruction that was truncated; None for any other."""
    tokens, length = getattr(prepared, "num_tokens", 0), getattr(prepared, "length", 0)
    if tokens <= length:
        return None
    return f"The instruction has {tokens} tokens and was truncated to {length}"


def _unexpected(error: Exception) -> ValueError:
    """Returns the sentence that a client gets for an error of ours."""
    return UnexpectedError(
        f"The server failed on this request ({type(error).__name__}); its log says more."
    )
