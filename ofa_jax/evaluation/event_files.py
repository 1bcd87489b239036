"""Writes TensorBoard's event files without TensorFlow, with the events of clu's writer.

Importing TensorFlow takes longer than everything else before the first step of a run. TensorBoard's
own parts make the records, and Pillow the PNGs of images.
"""

import contextlib
import io
import itertools
import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

__all__ = ["EventFile"]

_numbers = itertools.count()
# As TensorFlow says, which readers may look at.
_VERSION, _WRITER = "brain.Event:2", "tensorflow.core.util.events_writer"


class EventFile:
    """An event file with the methods of clu's writers that a run calls.

    After an error of the file system it is closed: open another one.
    """

    def __init__(self, directory: str) -> None:
        """Opens a new file in a local folder, which is made if it is missing."""
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        os.makedirs(directory, exist_ok=True)
        now, host = time.time(), socket.gethostname()
        name = f"events.out.tfevents.{int(now):010d}.{host}.{os.getpid()}.{next(_numbers)}.v2"
        self._event = event_pb2.Event
        self._file = open(os.path.join(directory, name), "wb")  # noqa: SIM115  closed by `close`
        self._records = RecordWriter(self._file)
        source = event_pb2.SourceMetadata(writer=_WRITER)
        self._write(file_version=_VERSION, source_metadata=source)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the values of a step."""
        from tensorboard.plugins.scalar import summary_v2

        for tag, value in scalars.items():
            with np.errstate(over="ignore"):  # what is too large becomes inf
                number = np.float32(value)
            self._write(step=step, summary=summary_v2.scalar_pb(tag, number))

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "n h w 3"]]) -> None:
        """Writes the images of a step."""
        from tensorboard.compat.proto import summary_pb2
        from tensorboard.plugins.image import metadata
        from tensorboard.util import tensor_util

        for tag, batch in images.items():
            height, width = batch.shape[1:3]
            values = [str(width).encode(), str(height).encode(), *map(_as_png, batch)]
            summary = summary_pb2.Summary()
            summary.value.add(
                tag=tag,
                metadata=metadata.create_summary_metadata(display_name=None, description=None),
                tensor=tensor_util.make_tensor_proto(np.array(values, object)),
            )
            self._write(step=step, summary=summary)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes the texts of a step, in Markdown."""
        from tensorboard.plugins.text import summary_v2

        for tag, text in texts.items():
            self._write(step=step, summary=summary_v2.text_pb(tag, text))

    def flush(self) -> None:
        """Lets the operating system have everything that was written."""
        with self._closed_after_errors():
            self._file.flush()

    def close(self) -> None:
        """Closes the file; raises OSError if its end cannot be written."""
        self._file.close()

    def _write(self, **fields: Any) -> None:
        event = self._event(wall_time=time.time(), **fields)
        with self._closed_after_errors():
            self._records.write(event.SerializeToString())

    @contextlib.contextmanager
    def _closed_after_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            with contextlib.suppress(OSError):
                self._file.close()
            raise


def _as_png(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    output = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(output, "png")
    return output.getvalue()
