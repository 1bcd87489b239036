"""Examples for the demo page: the run's own validation examples, from its galleries."""

import dataclasses
import io
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging
from PIL import Image, UnidentifiedImageError

from ofa_jax.inference.presets import PRESETS
from ofa_jax.reports.run_files import Gallery, read_galleries
from ofa_jax.serving.uploads import decode_data_uri

_PER_TASK = 3
_BINS = re.compile(r"(?:<bin_\d+>\s*){4}")


@dataclasses.dataclass(frozen=True)
class PageExample:
    """A question that the page offers.

    Attributes:
      title: of its task.
      task: a key of `presets.PRESETS`; empty for that of the instruction.
      instruction: in plain spelling, with `{region}`.
      image: the content of an image file; None without one.
      region: x0, y0, x1, y1 in pixels of that image, or None.
      target: the true answer.
    """

    title: str
    task: str
    instruction: str
    image: bytes | None = None
    region: tuple[float, float, float, float] | None = None
    target: str = ""


def find_examples(checkpoint: str) -> list[PageExample]:
    """Returns examples of every task that the run of a checkpoint has a gallery of.

    Args:
      checkpoint: a run directory, one of its checkpoints, or an official checkpoint, which has
        none.
    """
    path = pathlib.Path(checkpoint)
    if not path.is_dir():
        return []
    for folder in (path, *path.resolve().parents[:2]):
        if galleries := read_galleries(folder):
            return list(_choose(galleries))
    return []


def _choose(galleries: Sequence[Gallery]) -> Iterator[PageExample]:
    """Yields some examples of each task."""
    latest = {gallery.task: gallery for gallery in galleries}
    # An evaluation has other examples than the validations of training; one of them is enough.
    for task, gallery in sorted(latest.items()):
        count = len(gallery.examples)
        for place in sorted({round(i * (count - 1) / 2) for i in range(min(_PER_TASK, count))}):
            try:
                yield _make_example(task, gallery.examples[place])
            except (KeyError, TypeError, ValueError, UnidentifiedImageError, OSError) as error:
                logging.warning("An example of %s is left out: %s", task, error)


def _make_example(task: str, shown: Mapping[str, Any]) -> PageExample:
    """Returns a gallery's example as the page needs it."""
    image, region = None, None
    if shown.get("image"):
        image = decode_data_uri(shown["image"])
        size = Image.open(io.BytesIO(image)).size
        if shown.get("given_boxes"):
            corners = shown["given_boxes"][0]["corners"]
            region = _scale(corners, size, (shown["width"], shown["height"]))
    instruction = " ".join(_BINS.sub(" {region} ", str(shown["instruction"]), count=1).split())
    if region is None:
        instruction = instruction.replace("{region}", "").strip()
    return PageExample(
        title=task.replace("_", " "),
        task=task if task in PRESETS else "",
        instruction=instruction,
        image=image,
        region=region,
        target=str(shown.get("target", "")),
    )


def _scale(
    corners: Sequence[float], size: tuple[int, int], stored: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Converts a box in a stored image of (width, height) to the smaller copy."""
    factors = (size[0] / stored[0], size[1] / stored[1]) * 2
    x0, y0, x1, y1 = (float(c) * factor for c, factor in zip(corners, factors, strict=True))
    x0, x1 = (min(max(x, 0.0), float(size[0])) for x in (x0, x1))
    y0, y1 = (min(max(y, 0.0), float(size[1])) for y in (y0, y1))
    if x0 >= x1 or y0 >= y1:
        raise ValueError("its region has no area")
    return round(x0, 1), round(y0, 1), round(x1, 1), round(y1, 1)
