"""Encoding images to codes, and reading the written files in training."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from shown_progress import assert_shown, every_line

from ofa_jax.data.sources.tsv_records import TsvRecords
from ofa_jax.preprocessing import images
from tools import make_codes

SIZE = 32  # four codes of 4 pixels in the middle, a side


def make_image(seed, size=(SIZE, SIZE)):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    file = io.BytesIO()
    small.resize(size).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def lines(tmp_path):
    """Writes seven lines; two are invalid."""
    files = [
        make_image(0),
        make_image(1, (48, 40)),
        b"no image",
        *(make_image(n) for n in (2, 3, 4)),
    ]
    rows = [f"{n}\t{base64.b64encode(p).decode()}\ta caption, {n}" for n, p in enumerate(files)]
    path = tmp_path / "images.tsv"
    path.write_text("\n".join([*rows, "torn"]) + "\n")
    return path


def call(lines, output, vqgan_path, *options):
    return make_codes.main(
        [
            f"--vqgan={vqgan_path}",
            f"--image_size={SIZE}",
            "--batch_size=2",
            *options,
            str(lines),
            str(output),
        ]
    )


def test_the_middle_gets_the_codes_that_training_reads(lines, vqgan, vqgan_path, tmp_path, capsys):
    with every_line() as shown:
        assert call(lines, tmp_path / "coded.tsv", vqgan_path) == 0
    assert_shown(shown, "encoding images", "7 images")
    output = capsys.readouterr().out
    assert "5 images with codes; 2 lines skipped." in output
    assert "1 skipped: image of another format" in output
    assert "1 skipped: wrong number of columns" in output
    records = TsvRecords.open(str(tmp_path / "coded.tsv"), "images")
    assert [records[n]["id"] for n in range(len(records))] == ["0", "1", "3", "4", "5"]
    for number in range(len(records)):
        record = records[number]
        whole = images.to_array(images.resize_and_center_crop(images.decode(record["image"]), SIZE))
        middle = whole[None, 8:24, 8:24]
        np.testing.assert_array_equal(record["codes"], vqgan.encode(middle).reshape(-1))


def test_text_to_image_gets_all_codes(lines, vqgan, vqgan_path, tmp_path):
    options = ["--layout=text_to_image"]
    assert call(lines, tmp_path / "all.tsv", vqgan_path, *options) == 0
    record = TsvRecords.open(str(tmp_path / "all.tsv"), "text_to_image")[0]
    assert record["captions"] == ["a caption, 0"] and record["codes"].shape == (64,)
    known = images.to_array(images.decode(make_image(0)))
    np.testing.assert_array_equal(record["codes"], vqgan.encode(known[None]).reshape(-1))


def test_errors_are_reported_and_no_file_is_left(lines, vqgan_path, tmp_path, capsys):
    output = tmp_path / "coded.tsv"
    for options, sentence in (
        (["--part=3/3"], "`python -m ofa_jax.jobs encode_images --input"),
        (["--code_size=6"], "--code_size is 6: give a multiple of 4 pixels"),
        (["--batch_size=0"], "--batch_size is 0; give at least 1"),
    ):
        assert call(lines, output, vqgan_path, *options) == 2
        assert sentence in capsys.readouterr().err
    torn = tmp_path / "torn.tsv"
    torn.write_text("0\tbm8gaW1hZ2U=\n")
    assert call(torn, output, vqgan_path) == 2
    assert "Not one line of" in capsys.readouterr().err
    assert call(lines, output, tmp_path / "missing.ckpt") == 2
    assert "missing.ckpt" in capsys.readouterr().err
    lines.write_text("only an id\nand another\n")
    assert call(lines, output, vqgan_path) == 2
    assert "have 1 columns; for images they are id, image" in capsys.readouterr().err
    assert not list(tmp_path.glob("*coded*")) and not list(tmp_path.glob(".*coded*"))
    output.write_text("there")
    assert call(lines, output, vqgan_path) == 2
    assert "exists already" in capsys.readouterr().err
