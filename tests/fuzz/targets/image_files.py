"""Images: mutated files of all kinds are decoded, or skipped for a reason."""

import pathlib
import random

import numpy as np
from hostile_images import SKIPPED, encode, hostile_images, noise
from PIL import Image

from fuzz import cases
from fuzz.mutations import mutate_bytes
from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.records import InvalidRecordError

_KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_MODES = ("RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "I;16", "F", "I")


class ImageFiles(cases.Target):
    """Decodes one image, and resizes it as the objectives do."""

    name = "images"

    def prepare(self, folder: pathlib.Path) -> None:
        """Encodes an image of noise in all modes and formats that Pillow can write."""
        del folder
        self._good = [item.content for item in hostile_images() if len(item.content) < 20_000]
        self._hostile = {item.content for item in hostile_images() if item.treatment == SKIPPED}
        for mode in _MODES:
            values = np.random.default_rng(1).integers(0, 256, (24, 40), np.uint8)
            image = noise(40, 24).convert(mode) if ";" not in mode else None
            if image is None:
                image = Image.fromarray(values.astype(np.uint16) * 257)
            for kind in _KINDS:
                try:
                    self._good.append(encode(image, kind))
                except (OSError, ValueError):
                    continue

    def run(self, rng: random.Random, folder: pathlib.Path) -> str:
        """Decodes a mutated image."""
        content = mutate_bytes(rng, rng.choice(self._good))
        (folder / "image").write_bytes(content)
        image, error = cases.attempt(lambda: images.decode(content), InvalidRecordError)
        if error is not None:
            cases.check_record_error(error)
            return cases.REFUSED
        assert image is not None
        cases.check(image.mode == "RGB", f"the image has the mode {image.mode}")
        cases.check(min(image.size) > 0, f"the image has the size {image.size}")
        cases.check(content not in self._hostile, "a file that must be skipped is decoded")
        window, _ = images.resize_shorter_side(image, images.NO_BOXES, 32, 64)
        cropped, _ = images.center_crop(window, images.NO_BOXES, 32)
        cases.check(images.to_array(cropped).shape == (32, 32, 3), "the crop has another size")
        images.resize_to_square(image, 32)
        return cases.ACCEPTED


TARGETS = {"images": ImageFiles}
