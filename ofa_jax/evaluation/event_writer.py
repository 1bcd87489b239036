"""Writes TensorBoard and other events; a full disk costs events, never what a command is for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from jaxtyping import UInt8
from numpy import ndarray

from ofa_jax.evaluation.event_files import EventFile
from ofa_jax.utils import files
from ofa_jax.utils.bad_input import Treatment, declare

__all__ = ["EventWriter", "LoggedScalars", "Writers", "open_tensorboard"]

EVENTS_NOT_WRITTEN = declare(
    "events cannot be written",
    Treatment.RECOVERED,
    "TensorBoard's events cannot be written, mostly because the disk is full. One sentence says "
    "so, training or evaluation goes on, and the next event tries again.",
    __name__,
)


class EventWriter:
    """A metric writer that opens its file with the first event, and survives failures.

    After a failure the file is opened anew with the next event. Each series of failures is logged
    once.
    """

    def __init__(
        self,
        directory: epath.Path,
        activity: str = "training",
        log: Callable[[str], None] = logging.warning,
        what: str = "TensorBoard's events",
        open_writer: Callable[[], Any] | None = None,
    ) -> None:
        """Opens nothing yet.

        Args:
          directory: where the events go; only the first host writes them.
          activity: what goes on after a failure, for the message.
          log: is called with a sentence about each series of failures.
          what: is written, for the message.
          open_writer: opens another writer than TensorBoard's, with the methods of clu's.
        """
        self._what = what
        self._open_writer = open_writer or self._open_tensorboard
        self._directory = directory
        self._activity = activity
        self._log = log
        self._writer: Any = None
        self._failed = False

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the values of a step to the disk."""
        self._write("write_scalars", step, scalars)

    def write_images(self, step: int, images: Mapping[str, UInt8[ndarray, "n h w 3"]]) -> None:
        """Writes the images of a step to the disk."""
        self._write("write_images", step, images)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes the texts of a step, in Markdown, to the disk."""
        self._write("write_texts", step, texts)

    def _open_tensorboard(self) -> Any:
        return open_tensorboard(str(self._directory), jax.process_index() == 0)

    def _write(self, method: str, step: int, values: Mapping[str, Any]) -> None:
        """Calls a method of the writer and flushes; a failure is logged."""
        try:
            if self._writer is None:
                self._writer = self._open_writer()
            getattr(self._writer, method)(step, values)
            self._writer.flush()
            self._failed = False
        except Exception as error:  # noqa: BLE001  TensorFlow and file systems raise many types
            self._writer = None
            if not self._failed:
                self._failed = True
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
                self._log(
                    f"{self._what} are no longer written to {self._directory} ({reason}); "
                    f"{self._activity} goes on, and the next event tries again."
                )

    def flush(self) -> None:
        """Does nothing: every event is on the disk already."""

    def close(self) -> None:
        """Ends the writer, if it has written anything; a failure is logged."""
        close = getattr(self._writer, "close", None)
        if close is None:
            return
        try:
            close()
        except Exception as error:  # noqa: BLE001  as above
            self._log(f"{self._what} may be incomplete in {self._directory} ({error}).")
        self._writer = None


class LoggedScalars:
    """Logs scalars as clu's writers do; all that the hosts after the first do with events."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs the values of a step, at the level INFO."""
        values = (f"{name}={float(value):.6g}" for name, value in sorted(scalars.items()))
        logging.info("[%d] %s", step, ", ".join(values))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Logs the names of images."""
        logging.info("[%d] images: %s", step, ", ".join(images))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Logs texts."""
        logging.info("[%d] texts: %s", step, texts)

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class Writers:
    """Gives every event to several writers; has the methods of clu's writers that a run calls."""

    def __init__(self, writers: Sequence[Any]) -> None:
        self._writers = tuple(writers)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the values of a step."""
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: Mapping[str, UInt8[ndarray, "n h w 3"]]) -> None:
        """Writes the images of a step."""
        for writer in self._writers:
            writer.write_images(step, images)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes the texts of a step, in Markdown."""
        for writer in self._writers:
            writer.write_texts(step, texts)

    def flush(self) -> None:
        """Lets every writer write what it has."""
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Ends every writer."""
        for writer in self._writers:
            writer.close()


def open_tensorboard(directory: str, writes: bool = True) -> Any:
    """Opens a writer of TensorBoard's events, with the methods of clu's writers.

    Args:
      directory: a local folder; or a bucket, for which clu's own writer and TensorFlow are
        imported.
      writes: whether this host writes; the others log at most.
    """
    if not writes:
        return LoggedScalars()
    if files.is_local(directory):
        return Writers([LoggedScalars(), EventFile(directory)])
    from clu import metric_writers

    return metric_writers.create_default_writer(directory, asynchronous=False)
