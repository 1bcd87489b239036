"""Images for the offline jobs, and a call of a job."""

import base64
import hashlib
import io
import pathlib

import numpy as np
from PIL import Image

from ofa_jax.jobs import command

SIZE = 32


def make_image(seed, size=(SIZE, SIZE)):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    file = io.BytesIO()
    small.resize(size).save(file, "PNG")
    return file.getvalue()


def write_lines(path, count=10):
    """Writes lines of id, image, caption; the third has no image, and a last one is torn."""
    images = [make_image(n, (SIZE, SIZE + 8 * (n % 2))) for n in range(count)]
    images[2] = b"no image"
    rows = [f"{n}\t{base64.b64encode(p).decode()}\ta caption, {n}" for n, p in enumerate(images)]
    path.write_text("\n".join([*rows, "torn"]) + "\n")
    return path


def encode(output, vqgan_path, *arguments):
    """Runs the job `encode_images` in this process; returns its exit code."""
    return command.main(
        [
            "encode_images",
            f"--vqgan={vqgan_path}",
            f"--image_size={SIZE}",
            "--batch_size=2",
            "--shard_size=4",
            f"--output_dir={output}",
            *map(str, arguments),
        ]
    )


def contents(folder):
    """Returns the content of all files of a folder by their relative path."""
    folder = pathlib.Path(folder)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_checksums(folder):
    """Asserts that SHA256SUMS lists every other file with its checksum."""
    found = contents(folder)
    lines = found.pop("SHA256SUMS").decode().splitlines()
    listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    assert listed == {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}
