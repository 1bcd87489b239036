"""Makes synthetic records of the published stream `pairs`, for measurements of the loader.

The images are JPEGs of quality 90, crops of real photographs with the noise of a camera.
"""

import base64
import contextlib
import csv
import io
import json
import pathlib

import numpy as np
from PIL import Image

from ofa_jax.data.sources.array_records import OfaArrayRecords
from ofa_jax.scenes.sprites import package_folder

from . import convert_tsv

PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
)
"""Of skimage/data, see ATTRIBUTION.md."""

WIDTH, HEIGHT, QUALITY, NOISE = 640, 480, 90, 3.0
TYPES = ("caption", "qa", "visual_grounding")


def photograph(rng: np.random.Generator) -> bytes:
    """Returns a JPEG of a random crop of a random photograph, with some noise."""
    name = PHOTOGRAPHS[int(rng.integers(len(PHOTOGRAPHS)))]
    path = package_folder("skimage") / "data" / name
    with Image.open(path, formats=("PNG", "JPEG")) as stored:
        image = stored.convert("RGB")
    largest = min(image.width / WIDTH, image.height / HEIGHT)
    scale = largest * rng.uniform(0.6, 1.0)
    size = np.array([WIDTH, HEIGHT]) * scale
    left, top = rng.uniform(0, 1, 2) * (np.array(image.size) - size)
    window = (left, top, left + size[0], top + size[1])
    image = image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, window)
    noisy = np.asarray(image) + rng.normal(0, NOISE, (HEIGHT, WIDTH, 3))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _row(number: int, rng: np.random.Generator) -> list[str]:
    """Returns a line of the official vision-language file."""
    kind = TYPES[number % len(TYPES)]
    x0, y0 = rng.uniform(0, WIDTH / 2), rng.uniform(0, HEIGHT / 2)
    x1, y1 = x0 + rng.uniform(30, WIDTH / 2), y0 + rng.uniform(30, HEIGHT / 2)
    caption, question, refs = {
        "caption": ("A man in a red shirt rides a wave on a yellow board, and smiles.", "", ""),
        "qa": ("", "How many people are standing next to the motorcycle?", "1.0|!+2&&0.3|!+3"),
        "visual_grounding": (
            "the cup on the left of the table",
            "",
            f"{x0:.1f},{y0:.1f},{x1:.1f},{y1:.1f}",
        ),
    }[kind]
    image = base64.urlsafe_b64encode(photograph(rng)).decode()
    return [str(number), image, caption, question, refs, "man&&board", "coco", kind]


def make_records(folder: pathlib.Path, count: int, seed: int = 0) -> OfaArrayRecords:
    """Writes records to ArrayRecord files in a folder.

    Raises:
      RuntimeError: they could not be converted.
    """
    with (folder / "pairs.tsv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, lineterminator="\n")
        for number in range(count):
            writer.writerow(_row(number, np.random.default_rng([seed, number])))
    negatives = folder / "negative_sample"
    negatives.mkdir()
    (negatives / "all_captions.txt").write_text(
        "".join(f"an image of {number} birds on a wire\n" for number in range(1000))
    )
    (negatives / "object.txt").write_text("cat\ndog\nbus\n")
    (negatives / "type2ans.json").write_text(json.dumps({"other": [str(n) for n in range(100)]}))
    with contextlib.redirect_stdout(io.StringIO()):
        code = convert_tsv.main(
            [
                f"--output_dir={folder / 'records'}",
                "--num_workers=0",
                f"--vision_language={folder / 'pairs.tsv'}",
                f"--negative_samples={negatives}",
            ]
        )
    if code:
        raise RuntimeError("the records could not be converted, see above.")
    return OfaArrayRecords(str(folder / "records"))
