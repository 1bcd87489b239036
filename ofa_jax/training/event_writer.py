"""Writes TensorBoard events; a full disk costs events, never the run."""

from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from clu import metric_writers
from etils import epath

from ofa_jax.utils.bad_input import Treatment, declare

__all__ = ["EventWriter"]

EVENTS_NOT_WRITTEN = declare(
    "events cannot be written",
    Treatment.RECOVERED,
    "TensorBoard's events cannot be written, mostly because the disk is full. One sentence says "
    "so, training goes on, and the next period tries again.",
    __name__,
)


class EventWriter:
    """A metric writer that opens its file with the first event, and survives failures.

    After a failure the file is opened anew with the next event. Each series of failures is logged
    once.
    """

    def __init__(self, directory: epath.Path) -> None:
        """Opens nothing yet.

        Args:
          directory: where the events go; only the first host writes them.
        """
        self._directory = directory
        self._writer: Any = None
        self._failed = False

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the values of a step to the disk."""
        try:
            if self._writer is None:
                self._writer = metric_writers.create_default_writer(
                    str(self._directory), just_logging=jax.process_index() > 0, asynchronous=False
                )
            self._writer.write_scalars(step, scalars)
            self._writer.flush()
            self._failed = False
        except Exception as error:  # noqa: BLE001  TensorFlow and file systems raise many types
            self._writer = None
            if not self._failed:
                self._failed = True
                logging.warning(
                    "Events for TensorBoard cannot be written to %s (%s); training goes on, and "
                    "the next period tries again.",
                    self._directory,
                    (str(error).strip() or type(error).__name__).splitlines()[0][:300],
                )

    def flush(self) -> None:
        """Does nothing: every event is on the disk already."""
