"""Galleries for TensorBoard: images with boxes drawn, and a table of the texts.

    truth in green, prediction in red, regions of the instruction in yellow

Images are read back from the gallery's data URIs and stand in frames of one size, as TensorBoard
wants them. Image outputs are the row: truth, its reconstruction, prediction.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from absl import logging
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageOps

from ofa_jax.evaluation.gallery import GalleryExample, LabelledBox

GIVEN, TRUE, PREDICTED = (224, 161, 0), (27, 158, 63), (214, 39, 40)
"""Colours of boxes, as in the report."""
_SIDE = 256
"""Pixels of the longer side of an image; TensorBoard keeps images as large as they are written."""


class Writer(Protocol):
    """What writes the events, see `event_writer.EventWriter`."""

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "n h w 3"]]) -> None:
        """Writes the images of a step."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes the texts of a step, in Markdown."""


def write(writer: Writer, step: int, tag: str, examples: Sequence[GalleryExample]) -> None:
    """Writes a gallery, nothing if it has no examples; a failure is only logged.

    Args:
      writer: of events.
      step: of the checkpoint.
      tag: of the images; that of the table ends with "/table".
      examples: of one task.
    """
    if not examples:
        return
    try:
        if (images := as_images(examples)) is not None:
            writer.write_images(step, {tag: images})
        writer.write_texts(step, {f"{tag}/table": as_table(examples)})
    except Exception as error:  # noqa: BLE001  a drawing's error must not end a run
        logging.warning("No images of %s were written for TensorBoard.", tag, exc_info=error)


def as_images(examples: Sequence[GalleryExample]) -> UInt8[np.ndarray, "n h w 3"] | None:
    """Returns the images of all examples in frames of one size; None if they have none."""
    drawn = [image for example in examples if (image := draw(example)) is not None]
    if not drawn:
        return None
    size = max(image.width for image in drawn), max(image.height for image in drawn)
    frames = [Image.new("RGB", size) for _ in drawn]
    for frame, image in zip(frames, drawn, strict=True):
        frame.paste(image, (0, 0))
    return np.stack([np.asarray(frame) for frame in frames])


def draw(example: GalleryExample) -> Image.Image | None:
    """Returns the image of an example with its boxes; None without one."""
    outputs = (example.truth_image, example.reconstruction, example.predicted_image)
    parts = [_open(uri) for uri in outputs if uri is not None]
    if example.image is not None and not parts:
        parts = [_with_boxes(_open(example.image), example)]
    if not parts:
        return None
    row = Image.new("RGB", (sum(part.width for part in parts), max(part.height for part in parts)))
    left = 0
    for part in parts:
        row.paste(part, (left, 0))
        left += part.width
    return row


def as_table(examples: Sequence[GalleryExample]) -> str:
    """Returns instruction, target, prediction, metric and score of each example in Markdown."""
    rows = [
        "| record | instruction | target | prediction | metric | score |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for example in examples:
        metric = "" if example.quality is None else f"{example.metric} {example.quality:.3g}"
        score = "" if example.score is None else f"{example.score:.3g}"
        cells = (example.id, example.instruction, example.target, example.prediction)
        rows.append(f"| {' | '.join(map(_cell, cells))} | {metric} | {score} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    """Returns a text that stays within its cell, and shows <bin_1> as it is."""
    text = " ".join(text.split()).encode("utf-8", "replace").decode()
    for character, code in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("`", "&#96;")):
        text = text.replace(character, code)
    return text


def _open(uri: str) -> Image.Image:
    """Returns the image of a data URI, as large as it is shown."""
    encoded = base64.b64decode(uri.split(",", 1)[1])
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    enlarged = max(image.size) < _SIDE
    resampling = Image.Resampling.NEAREST if enlarged else Image.Resampling.BICUBIC
    return ImageOps.contain(image, (_SIDE, _SIDE), resampling)


def _with_boxes(image: Image.Image, example: GalleryExample) -> Image.Image:
    """Returns an image with the example's boxes, which are in pixels of the stored image."""
    pen, scale = ImageDraw.Draw(image), image.width / example.width
    for boxes, colour in (
        (example.given_boxes, GIVEN),
        (example.target_boxes, TRUE),
        (example.predicted_boxes, PREDICTED),
    ):
        for box in boxes:
            pen.rectangle(_on_screen(box, scale, image.size), outline=colour, width=2)
    return image


def _on_screen(
    box: LabelledBox, scale: float, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Returns x0 y0 x1 y1 of a box in the pixels of the image, kept within it."""
    limits = (size[0] - 1, size[1] - 1) * 2
    x0, y0, x1, y1 = (
        min(max(corner * scale, 0.0), float(limit))
        for corner, limit in zip(box.corners, limits, strict=True)
    )
    return x0, y0, max(x0, x1), max(y0, y1)
