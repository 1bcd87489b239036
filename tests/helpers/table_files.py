"""Makes small images and files of tables for the tests of data sources."""

import io
import json
import pathlib

import numpy as np
from PIL import Image

from ofa_jax.utils.bad_input import InvalidRecordError


def make_image(number=0, size=(60, 40), kind="PNG"):
    """Returns an encoded image whose colour depends on the number."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number * 40 % 256, 90, 200)).save(buffer, kind)
    return buffer.getvalue()


def write_images(folder, count):
    """Writes images/0.png and so on; returns their paths relative to the folder."""
    folder = pathlib.Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = [f"images/{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(make_image(number))
    return names


def write_lines(path, rows):
    """Writes rows as JSON lines; texts are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    pathlib.Path(path).write_text("\n".join(lines) + "\n")
    return path


def reasons(records):
    """Returns, for each record of a source, None or the reason why it is refused."""
    found = []
    for index in range(len(records)):
        try:
            records[index]
        except InvalidRecordError as error:
            assert "\n" not in str(error)
            found.append(error.reason.name)
        else:
            found.append(None)
    return found


def plain(record):
    """Returns a record with lists in place of arrays, and without the bytes of its image."""
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in record.items()
        if name != "image"
    }
