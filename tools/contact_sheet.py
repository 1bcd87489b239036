"""Contact sheets: rows of images, with a name before each row and a text above each column."""

import dataclasses
import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

_GAP, _NAME_WIDTH, _LINE = 4, 96, 13
_CHARACTER = 6.2
"""Mean width of a character of Pillow's own font, in pixels."""
_MOST_LINES = 4


@dataclasses.dataclass(frozen=True)
class SheetRow:
    """A row of a contact sheet.

    Attributes:
      name: stands before the images.
      images: of one size in all rows; None leaves a place empty.
    """

    name: str
    images: Sequence[UInt8[np.ndarray, "h w 3"] | None]


def draw(rows: Sequence[SheetRow], texts: Sequence[str] = ()) -> Image.Image:
    """Draws a contact sheet.

    Args:
      rows: at least one, each with at least one image.
      texts: above the columns; none if empty. Long ones are cut off.
    """
    size = max(len(image) for row in rows for image in row.images if image is not None)
    columns = max(len(row.images) for row in rows)
    lines = [_wrap(text, size) for text in texts]
    top = _GAP + _LINE * max(map(len, lines), default=0)
    step = size + _GAP
    sheet = Image.new("RGB", (_NAME_WIDTH + columns * step, top + len(rows) * step), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column, found in enumerate(lines):
        for number, line in enumerate(found):
            pen.text((_NAME_WIDTH + column * step, number * _LINE), line, "black", font)
    for number, row in enumerate(rows):
        y = top + number * step
        for part, line in enumerate(_wrap(row.name, _NAME_WIDTH - _GAP)):
            pen.text((_GAP, y + part * _LINE), line, "black", font)
        for column, image in enumerate(row.images):
            if image is not None:
                sheet.paste(Image.fromarray(image), (_NAME_WIDTH + column * step, y))
    return sheet


def _wrap(text: str, width: int) -> list[str]:
    """Breaks a text into lines that fit a width in pixels."""
    characters = max(int(width / _CHARACTER), 1)
    return textwrap.wrap(text, characters, max_lines=_MOST_LINES, placeholder=" ...")
