"""Tests decoding of images: as people see them, of a closed list of formats, within limits."""

import dataclasses
import io
import struct
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.boxes import as_boxes
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.utils.decode_options import AS_SEEN, AS_STORED, DecodeOptions

# Pillow's warnings are ignored where images are decoded, but pytest has filters of its own.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")

RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)
GREY = np.rint(RAMP * 255).astype(np.uint8)
ORIENTATION = 0x0112


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation):
    data = Image.Exif()
    data[ORIENTATION] = orientation
    return data


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def reason(encoded, options=AS_SEEN):
    with pytest.raises(InvalidRecordError) as caught:
        images.decode(encoded, options)
    assert " at 0x" not in str(caught.value)
    return caught.value.reason.name


def tiff(values, bits=16, photometric=1, sample_format=1, order="<"):
    """Returns an uncompressed grey TIFF with tags that Pillow does not write."""
    content = values.tobytes()
    height, width = values.shape[0], values.shape[1] * values.itemsize * 8 // bits
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    tags |= {278: height, 279: len(content), 339: sample_format}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    magic = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(content))
    return magic + content + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


# ------------------------------------------------------------------------------- deep and coloured

GREY16 = np.rint(RAMP * 65535).astype(np.uint16)
DEEP = {
    "16-bit PNG": encode(Image.fromarray(GREY16), "PNG"),
    "16-bit TIFF": encode(Image.fromarray(GREY16), "TIFF"),
    "16-bit TIFF, compressed": encode(Image.fromarray(GREY16), "TIFF", compression="tiff_lzw"),
    "16-bit TIFF, big-endian": tiff(GREY16.astype(">u2"), order=">"),
    "16-bit TIFF, white is zero": tiff(65535 - GREY16, photometric=0),
    "whole numbers up to 65535": encode(Image.fromarray(GREY16.astype(np.int32)), "TIFF"),
    "whole numbers up to 255": encode(Image.fromarray(GREY.astype(np.int32)), "TIFF"),
    "floats up to 1": encode(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
    "floats up to 255": encode(Image.fromarray((RAMP * 255).astype(np.float32)), "TIFF"),
    "floats, compressed": encode(
        Image.fromarray(RAMP.astype(np.float32)), "TIFF", compression="tiff_adobe_deflate"
    ),
}


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("options", [AS_SEEN, AS_STORED], ids=["seen", "stored"])
def test_a_grey_ramp_of_more_than_8_bits_looks_like_one_of_8(name, options):
    image = images.decode(DEEP[name], options)
    assert image.mode == "RGB"
    difference = np.abs(np.asarray(image).astype(int) - GREY[..., None])
    assert difference.max() <= 1


def test_a_ramp_of_12_bits_uses_the_whole_range():
    packed = np.tile(np.frombuffer(b"\xff\xff\xff", np.uint8), (8, 8))
    assert np.asarray(images.decode(tiff(packed, bits=12))).min() == 255


@pytest.mark.parametrize("color", [2, 6], ids=["RGB", "RGBA"])
def test_colors_of_16_bits_keep_their_upper_8(color):
    import zlib

    channels = {2: 3, 6: 4}[color]
    values = np.full((4, 4, channels), 65535, ">u2")
    values[..., 0] = 0x80FF
    rows = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", 4, 4, 16, color, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
    found = np.asarray(images.decode(png + chunk(b"IEND", b"")))
    np.testing.assert_array_equal(found[0, 0], [0x80, 255, 255])


@pytest.mark.parametrize(
    "values", [RAMP * np.nan, RAMP * np.inf, RAMP * 2000, RAMP - 0.5, RAMP * 65535]
)
def test_floats_of_an_unknown_range_are_refused_by_name(values):
    encoded = encode(Image.fromarray(values.astype(np.float32)), "TIFF")
    assert reason(encoded) == "image has an unknown range of values"


def test_whole_numbers_of_an_unknown_range_are_refused_by_name():
    for values in (GREY16.astype(np.int32) * 300, GREY.astype(np.int32) - 1):
        encoded = encode(Image.fromarray(values), "TIFF")
        assert reason(encoded) == "image has an unknown range of values"


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_of_a_tiff_becomes_the_same_rgb(mode):
    image = Image.new("RGB", (8, 8), (0, 0, 0)).convert(mode)
    assert np.asarray(images.decode(encode(image, "TIFF"))).max() <= 1


def test_cmyk_and_lab_have_their_colors():
    red = images.decode(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    np.testing.assert_allclose(np.asarray(red)[4, 4], [255, 0, 0], atol=4)
    grey = images.decode(encode(Image.frombytes("LAB", (4, 4), b"\x80\0\0" * 16), "TIFF"))
    np.testing.assert_allclose(np.asarray(grey)[2, 2], [119, 119, 119], atol=2)


# ----------------------------------------------------------------------------------- transparency

_DRAWING = np.zeros((64, 64, 4), np.uint8)
_DRAWING[16:48, 16:48, 3] = 255
DRAWING = Image.fromarray(_DRAWING)
_KEYED = Image.fromarray(np.where(_DRAWING[..., 3:] > 0, 0, 7).repeat(3, 2).astype(np.uint8))
_KEYED16 = Image.fromarray(np.where(_DRAWING[..., 3] > 0, 0, 300).astype(np.uint16))
TRANSPARENT = {
    "PNG": encode(DRAWING, "PNG"),
    "PNG of grey": encode(DRAWING.convert("LA"), "PNG"),
    "PNG with a palette": encode(DRAWING.quantize(), "PNG"),
    "PNG with a transparent colour": encode(_KEYED, "PNG", transparency=(7, 7, 7)),
    "PNG with a transparent grey": encode(_KEYED.convert("L"), "PNG", transparency=7),
    "PNG with a transparent deep grey": encode(_KEYED16, "PNG", transparency=300),
    "GIF": encode(DRAWING, "GIF"),
    "WebP": encode(DRAWING, "WEBP", lossless=True),
    "TIFF": encode(DRAWING, "TIFF"),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparency_is_composed_onto_white_or_ignored(name):
    seen = np.asarray(images.decode(TRANSPARENT[name]))
    expected = np.where(_DRAWING[..., 3:] > 0, 0, 255).repeat(3, 2)
    np.testing.assert_array_equal(seen, expected)
    ignored = np.asarray(images.decode(TRANSPARENT[name], AS_STORED))
    assert ignored.max() <= 7
    alone = DecodeOptions(honour_orientation=False)
    np.testing.assert_array_equal(np.asarray(images.decode(TRANSPARENT[name], alone)), seen)


def test_half_transparent_is_half_white():
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    np.testing.assert_array_equal(np.unique(images.to_array(images.to_rgb(image))), [127])


def test_opaque_images_are_the_same_with_all_options():
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "GIF"):
        encoded = encode(noise(40, 30), kind)
        expected = Image.open(io.BytesIO(encoded)).convert("RGB")
        for options in (AS_SEEN, AS_STORED):
            np.testing.assert_array_equal(
                np.asarray(images.decode(encoded, options)), np.asarray(expected)
            )


# ------------------------------------------------------------------------------------ orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_the_orientation_is_honoured_by_option(kind, orientation):
    """Compares with Pillow's own function, on an image whose corners differ."""
    from PIL import ImageOps

    stored = Image.new("RGB", (80, 40))
    stored.paste("red", (0, 0, 40, 20))
    stored.paste("blue", (40, 0, 80, 20))
    encoded = encode(stored, kind, exif=exif(orientation))
    seen, as_stored = images.decode(encoded), images.decode(encoded, AS_STORED)
    assert as_stored.size == (80, 40)
    assert images.read_size(encoded) == seen.size
    assert images.read_size(encoded, AS_STORED) == (80, 40)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(expected))
    opened = images.to_rgb(Image.open(io.BytesIO(encoded)))
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(expected))


def test_a_tiff_is_rotated_by_pillow_once():
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[ORIENTATION] = 6
    for compression in ("raw", "tiff_lzw"):
        encoded = encode(noise(80, 40), "TIFF", tiffinfo=info, compression=compression)
        assert images.decode(encoded).size == images.read_size(encoded) == (40, 80)


@pytest.mark.parametrize("orientation", [0, 9, 77, 65535])
def test_an_unknown_orientation_changes_nothing(orientation):
    assert images.decode(encode(noise(8, 4), "PNG", exif=exif(orientation))).size == (8, 4)


@given(st.binary(max_size=60))
def test_damaged_exif_data_changes_nothing(data):
    assert images.decode(encode(noise(8, 4), "JPEG", exif=b"Exif\0\0" + data)).size in (
        (8, 4),
        (4, 8),
    )


# ---------------------------------------------------------------------- formats and damaged files


@pytest.mark.parametrize(
    ("encoded", "kind"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n", "PostScript"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "HEIC"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (encode(noise(8, 8), "ICO"), "an icon"),
        (encode(noise(8, 8), "PPM"), "it is not a JPEG"),
        (encode(noise(8, 8), "JPEG2000"), "JPEG 2000"),
    ],
)
def test_other_formats_are_named_and_not_opened(encoded, kind):
    with pytest.raises(InvalidRecordError, match=kind) as caught:
        images.decode(encoded)
    assert caught.value.reason.name == "image of another format"


def test_no_program_is_started_on_postscript(tmp_path):
    """Runs in a process of its own, with a stand-in for Ghostscript on its path."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\necho called > {tmp_path}/called\n")
    program.chmod(0o755)
    code = (
        "from ofa_jax.preprocessing import images\n"
        "for start in (b'%!PS-Adobe-3.0 EPSF-3.0', b'\\xc5\\xd0\\xd3\\xc6' + bytes(26)):\n"
        "    try: images.decode(start + b'\\n%%BoundingBox: 0 0 9 9\\n%%EndComments\\n%%EOF\\n')\n"
        "    except ValueError as error: print(error)\n"
    )
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.count("PostScript") == 2
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("value", [None, "text", 7, ["a"], np.zeros(3, np.uint8)])
def test_what_is_not_bytes_is_not_an_image(value):
    assert reason(value) == "unreadable image"


def test_a_jpeg_with_a_second_image_in_it_is_read():
    encoded = encode(noise(40, 30), "MPO", save_all=True, append_images=[noise(4, 3)])
    assert images.decode(encoded).size == (40, 30)


_WHOLE = {
    kind: encode(noise(12, 9), kind)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
}


@given(
    st.sampled_from(sorted(_WHOLE)),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6),
    st.integers(0, 2**16),
)
def test_any_bytes_are_an_image_or_invalid(kind, changes, cut):
    """Tests that a mutated file gives RGB pixels or InvalidRecordError, and no warning."""
    content = bytearray(_WHOLE[kind])
    for place, value in changes:
        content[place % len(content)] = value
    content = bytes(content[: cut % (2 * len(content))])
    with warnings.catch_warnings():
        warnings.filterwarnings("error")
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        try:
            image = images.decode(content)
        except InvalidRecordError as error:
            assert " at 0x" not in str(error)
            return
    assert image.mode == "RGB"
    assert images.to_array(image).dtype == np.uint8


@given(st.binary(max_size=200))
def test_any_bytes_after_a_magic_number_are_an_image_or_invalid(data):
    for magic in (
        b"",
        b"RIFF\0\0\0\0WEBPVP8X",
        b"GIF89a",
        b"BM",
        b"II*\0\x08\0\0\0",
        b"\x89PNG\r\n\x1a\n",
    ):
        for function in (images.decode, images.read_size):
            try:
                function(magic + data)
            except InvalidRecordError as error:
                assert error.reason.name


# ----------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_pixels_and_bytes_are_limited_in_every_format(kind):
    encoded = encode(noise(40, 30), kind)
    fits = DecodeOptions(max_pixels=1200, max_encoded_bytes=len(encoded))
    assert images.decode(encoded, fits).size == (40, 30)
    too_many = "image has too many pixels"
    assert reason(encoded, dataclasses.replace(fits, max_pixels=1199)) == too_many
    assert reason(encoded, dataclasses.replace(fits, max_decoded_bytes=2000)) == too_many
    small = dataclasses.replace(fits, max_encoded_bytes=len(encoded) - 1)
    assert reason(encoded, small) == "image file is too large"


def test_a_webp_image_is_refused_before_its_canvas_is_made():
    for body in (
        b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\xff" * 2,
        b"VP8L" + struct.pack("<I", 10) + b"\x2f\xff\xff\xff\x0f" + bytes(5),
        b"VP8 " + struct.pack("<I", 20) + bytes(3) + b"\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(10),
    ):
        encoded = b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
        assert reason(encoded) == "image has too many pixels"


def test_a_small_tiff_with_a_huge_tile_is_refused():
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((16, 16), np.uint8), tile=(64, 64))
    options = DecodeOptions(max_pixels=1024)
    assert reason(buffer.getvalue(), options) == "image has too many pixels"
    assert images.decode(buffer.getvalue()).size == (16, 16)


def test_memory_of_transparency_and_progressive_images_counts():
    plain, progressive = (encode(noise(40, 30), "JPEG", progressive=flag) for flag in (False, True))
    options = DecodeOptions(max_decoded_bytes=1200 * 4 + 40 * 32)
    images.decode(plain, options)
    assert reason(progressive, options) == "image has too many pixels"
    transparent = encode(noise(40, 30).convert("RGBA"), "PNG")
    options = DecodeOptions(max_decoded_bytes=1200 * 8 + 40 * 32)
    assert reason(transparent, options) == "image has too many pixels"
    assert images.decode(transparent, dataclasses.replace(options, compose_on_white=False))


def test_images_that_a_caller_gives_have_the_same_limits():
    options = DecodeOptions(max_pixels=100)
    for image in (Image.new("RGB", (11, 10)), Image.new("RGB", (0, 5))):
        with pytest.raises(InvalidRecordError):
            images.to_rgb(image, options)
    assert images.to_rgb(Image.new("F", (10, 10), 0.5)).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (2, 10**6), (10**8, 1)])
def test_a_long_and_narrow_image_is_refused_before_it_is_resized(size):
    stored = Image.new("1", size)
    for resize in (
        lambda: images.large_scale_jitter(stored, as_boxes([0, 0, 1, 1]), 256, 0.5, (0.5, 0.5)),
        lambda: images.resize_and_center_crop(stored, 1200),
        lambda: images.resize_shorter_side(stored, images.NO_BOXES, 1200),
    ):
        with pytest.raises(InvalidRecordError) as caught:
            resize()
        assert caught.value.reason.name == "image is too long and narrow"
    # As a square, or with its longer side cut, it is small.
    cut, _ = images.resize_shorter_side(Image.new("RGB", (1, 3000)), images.NO_BOXES, 256, 512)
    assert cut.size == (256, 512)


@pytest.mark.parametrize(
    "change",
    [{"max_pixels": 0}, {"max_pixels": 1.5}, {"compose_on_white": 1}, {"max_pixels": True}],
)
def test_invalid_options_are_rejected(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}.* must be"):
        DecodeOptions(**change)
