"""Decodes image files of a closed list of formats to RGB, as people see them, within limits.

A file is recognised by its content, never by its name. Formats whose decoders run programs or are
rarely tested, such as PostScript, are not opened. Of an animation or a file of several pages the
first image is decoded. Limits on pixels and memory hold before memory is taken.
"""

import io
import re
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import AvifImagePlugin, ExifTags, Image, ImageCms, UnidentifiedImageError

from ofa_jax.utils.bad_input import InvalidRecordError, Treatment, declare
from ofa_jax.utils.decode_options import AS_SEEN, DecodeOptions
from ofa_jax.utils.wrong_files import describe_placeholder

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""The formats that are opened, by Pillow's names."""
_FORMAT_NAMES = "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"

UNREADABLE = declare(
    "unreadable image",
    Treatment.SKIPPED,
    "The bytes are not a complete image, or their pixels have no meaning as colours.",
    __name__,
)
OTHER_FORMAT = declare(
    "image of another format",
    Treatment.SKIPPED,
    f"Only {_FORMAT_NAMES} files are decoded, recognised by their content. Others, such as "
    "PostScript, PDF, SVG and HEIC, are never opened.",
    __name__,
)
TOO_MANY_PIXELS = declare(
    "image has too many pixels",
    Treatment.SKIPPED,
    "It has more than `DecodeOptions.max_pixels` pixels, or decoding it would take more memory "
    "than `DecodeOptions.max_decoded_bytes`, by its header. Nothing is decoded.",
    __name__,
)
TOO_MANY_BYTES = declare(
    "image file is too large",
    Treatment.SKIPPED,
    "The file has more than `DecodeOptions.max_encoded_bytes` bytes.",
    __name__,
)
UNKNOWN_RANGE = declare(
    "image has an unknown range of values",
    Treatment.SKIPPED,
    "Its pixels are floating-point or 32-bit numbers that lie neither in 0..1 nor in 0..255 nor "
    "(whole numbers) in 0..65535, so black and white are not known. Save it with 8 or 16 bits.",
    __name__,
)

# The limits are those of `DecodeOptions`; Pillow's own is off, as in the reference implementation.
Image.MAX_IMAGE_PIXELS = None
# Loader threads already use all cores, and each thread of the decoder takes memory.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# Pillow warns of every odd tag; what matters is whether the image can be decoded.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# What is named in the error, by the first bytes; Pillow's own message shows a memory address.
_OTHER_KINDS = (
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"\x00\x00\x01\x00", "an icon"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"PK\x03\x04", "a zip archive"),
    (b"version https://git-lfs", "a Git LFS pointer (run `git lfs pull`)"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "XML"),
    (b"<svg", "SVG"),
)
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis")
_OUR_KINDS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II", b"MM")
_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Bytes per pixel of Pillow's storage; all other modes take four.
_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
# Bytes per pixel that a decoder takes besides: canvases of animations, planes, strips.
_DECODER_BYTES = {"WEBP": 12, "AVIF": 12, "TIFF": 4, "GIF": 1}
# Resizing takes up to 32 bytes for each pixel of a side, for the weights of its kernel.
_BYTES_PER_SIDE = 32
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 258, 262, 322, 323


_Result = TypeVar("_Result")


def decode(
    encoded: bytes, options: DecodeOptions = AS_SEEN, at_least: int | None = None
) -> Image.Image:
    """Decodes an image file to RGB.

    Args:
      encoded: the content of the file.
      options: how it is decoded, and the limits.
      at_least: a JPEG may be decoded at a half, a quarter or an eighth of its size, as long as both
        sides have this many pixels; None for its own size.

    Raises:
      InvalidRecordError: the bytes are not a complete image of one of the FORMATS, or one that is
        too large.
    """
    return _guarded(lambda: _to_rgb(_reduced(_open(encoded, options), at_least), options))


def _reduced(image: Image.Image, at_least: int | None) -> Image.Image:
    """Lets a JPEG that was opened be decoded at a reduced scale."""
    if at_least is not None and image.format == "JPEG":
        image.draft(None, (at_least, at_least))
    return image


def to_rgb(image: Image.Image, options: DecodeOptions = AS_SEEN) -> Image.Image:
    """Converts an image of any mode to RGB, as `decode` does.

    Raises:
      InvalidRecordError: it is too large, or its pixels have no meaning as colours.
    """
    return _guarded(lambda: _to_rgb(_checked(image, options), options))


def read_size(encoded: bytes, options: DecodeOptions = AS_SEEN) -> tuple[int, int]:
    """Returns (width, height) of the image that `decode` returns, from the header alone.

    Raises:
      InvalidRecordError: see `decode`.
    """

    def size() -> tuple[int, int]:
        image = _open(encoded, options)
        width, height = image.size
        turned = options.honour_orientation and _orientation(image) >= 5
        return (height, width) if turned else (width, height)

    return _guarded(size)


def is_stored_otherwise(encoded: bytes) -> bool:
    """Returns whether `AS_SEEN` and `AS_STORED` give other pixels, from the header alone.

    An image is rotated or mirrored by its EXIF data, or it has transparency.

    Raises:
      InvalidRecordError: see `decode`.
    """

    def differs() -> bool:
        image = _open(encoded, AS_SEEN)
        return _orientation(image) != 1 or _has_transparency(image)

    return _guarded(differs)


def _guarded(function: Callable[[], _Result]) -> _Result:
    """Calls a function that uses Pillow; raises InvalidRecordError for whatever it raises."""
    try:
        return function()
    except InvalidRecordError:
        raise
    except Exception as error:  # noqa: BLE001  Pillow's decoders raise exceptions of any type
        raise InvalidRecordError(
            f"its image cannot be decoded ({type(error).__name__}: {_ADDRESS.sub('', str(error))})",
            UNREADABLE,
        ) from error


# ------------------------------------------------------------------------- opening, within limits


def _open(encoded: bytes, options: DecodeOptions) -> Image.Image:
    """Opens an image; reads its header only. Raises InvalidRecordError."""
    if not isinstance(encoded, bytes | bytearray | memoryview):
        raise InvalidRecordError(
            f"its image is not bytes but a {type(encoded).__name__}", UNREADABLE
        )
    if len(encoded) > options.max_encoded_bytes:
        raise InvalidRecordError(
            f"its image has {len(encoded):,} bytes; the limit is {options.max_encoded_bytes:,}",
            TOO_MANY_BYTES,
        )
    # Pillow allocates the canvas of a WebP image when it opens it.
    if (size := _webp_size(bytes(encoded[:30]))) is not None:
        _check_pixels(*size, options)
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except UnidentifiedImageError:
        raise _unidentified(bytes(encoded[:64])) from None
    return _checked(image, options)


def _webp_size(header: bytes) -> tuple[int, int] | None:
    """Returns (width, height) from the first 30 bytes of a WebP file; None for another file."""
    if len(header) < 30 or header[:4] != b"RIFF" or header[8:12] != b"WEBP":
        return None
    if header[12:16] == b"VP8X":
        sides = (int.from_bytes(header[start : start + 3], "little") for start in (24, 27))
        width, height = (side + 1 for side in sides)
    elif header[12:16] == b"VP8L":
        bits = int.from_bytes(header[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        sides = (int.from_bytes(header[start : start + 2], "little") for start in (26, 28))
        width, height = (side & 0x3FFF for side in sides)
    return width, height


def _unidentified(start: bytes) -> InvalidRecordError:
    """Returns the error for bytes that are no image of one of the FORMATS."""
    if not start:
        return InvalidRecordError("its image cannot be decoded: it is empty", UNREADABLE)
    if problem := describe_placeholder(start):
        return InvalidRecordError(f"its image cannot be decoded: it {problem}", OTHER_FORMAT)
    if start.startswith(_OUR_KINDS) or start[4:12] == b"ftypavif":
        return InvalidRecordError("its image cannot be decoded: it is damaged", UNREADABLE)
    kinds = [kind for magic, kind in _OTHER_KINDS if start.lower().startswith(magic.lower())]
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS:
        kinds = ["HEIC"]
    found = f"it is {kinds[0]}, not" if kinds else "it is not"
    return InvalidRecordError(
        f"its image cannot be decoded: {found} a {_FORMAT_NAMES} file", OTHER_FORMAT
    )


def _checked(image: Image.Image, options: DecodeOptions) -> Image.Image:
    """Returns the image; raises InvalidRecordError if it is empty or exceeds the limits."""
    width, height = image.size
    if not width or not height:
        raise InvalidRecordError(f"its image has {width} x {height} pixels", UNREADABLE)
    _check_pixels(width, height, options)
    if image.format == "TIFF":
        # A tile is decompressed as a whole, however small the image is.
        tile_width = _tiff_tag(image, _TIFF_TILE_WIDTH) or 1
        tile_height = _tiff_tag(image, _TIFF_TILE_LENGTH) or 1
        _check_pixels(tile_width, tile_height, options)
    estimate = width * height * _bytes_per_pixel(image, options)
    estimate += _BYTES_PER_SIDE * max(width, height)
    if estimate > options.max_decoded_bytes:
        raise InvalidRecordError(
            f"its image of {width} x {height} pixels would take {estimate:,} bytes; the limit is "
            f"{options.max_decoded_bytes:,} (DecodeOptions.max_decoded_bytes)",
            TOO_MANY_PIXELS,
        )
    return image


def _check_pixels(width: int, height: int, options: DecodeOptions) -> None:
    """Raises InvalidRecordError if an image of this size has too many pixels."""
    if width * height > options.max_pixels:
        raise InvalidRecordError(
            f"its image has {width} x {height} pixels; the limit is {options.max_pixels:,} "
            "(DecodeOptions.max_pixels)",
            TOO_MANY_PIXELS,
        )


def _bytes_per_pixel(image: Image.Image, options: DecodeOptions) -> int:
    """Estimates the memory that decoding and converting an image takes, per pixel."""
    count = _STORED_BYTES.get(image.mode, 4) + _DECODER_BYTES.get(image.format or "", 0)
    if image.info.get("progressive"):
        count += 2 * len(image.getbands())  # the coefficients of all scans
    if image.mode != "RGB":
        count += 4
    if _is_deep(image):
        count += 12
    if options.compose_on_white and _has_transparency(image):
        count += 9  # RGBA, the mask and the white canvas
    if options.honour_orientation and {"exif", "xmp", "Raw profile type exif"} & set(image.info):
        count += 4
    return count


# ------------------------------------------------------------------------------------- converting


def _to_rgb(image: Image.Image, options: DecodeOptions) -> Image.Image:
    """Converts an image of any mode to RGB."""
    image.load()  # first: reading the EXIF data of a damaged PNG would hide that it is damaged
    orientation = _orientation(image) if options.honour_orientation else 1
    if image.mode in ("La", "RGBa"):  # colours are stored multiplied by alpha
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if _is_deep(image):
        image = _deep_to_grey(image)
    if image.mode == "LAB":
        image = _lab_to_rgb(image)
    if options.compose_on_white and _has_transparency(image):
        image = _compose_on_white(image)
    elif image.mode != "RGB":
        image = image.convert("RGB")
    return image.transpose(_TRANSPOSES[orientation]) if orientation in _TRANSPOSES else image


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation from 1 to 8; 1 if there is none, or it is damaged."""
    if image.format == "TIFF":
        return 1  # Pillow rotates these itself
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001  damaged EXIF data raises exceptions of any type
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _has_transparency(image: Image.Image) -> bool:
    return "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa")


def _compose_on_white(image: Image.Image) -> Image.Image:
    """Composes a transparent image onto white."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        # The transparent colour of a PNG with 16 bits, whose pixels Pillow has cut to 8.
        image.info["transparency"] = tuple(value >> 8 for value in key)
    image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


def _is_deep(image: Image.Image) -> bool:
    """Returns whether pixels have more than 8 bits; `Image.convert` would cut them off at 255."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _deep_to_grey(image: Image.Image) -> Image.Image:
    """Scales 16-bit, 32-bit and floating-point grey to 8 bits; with alpha for a transparent value.

    Raises:
      InvalidRecordError: the values of black and white are not known.
    """
    values = np.asarray(image)
    grey = _scale_to_8_bits(values, image)
    if _tiff_tag(image, _TIFF_PHOTOMETRIC) == 0:  # white is zero, which Pillow leaves as it is
        grey = 255 - grey
    result = Image.fromarray(grey)
    key = image.info.get("transparency")
    if isinstance(key, int):
        result.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return result


def _scale_to_8_bits(values: np.ndarray, image: Image.Image) -> UInt8[np.ndarray, "height width"]:
    """Returns grey values in 0..255; raises InvalidRecordError if their range is not known."""
    if image.mode.startswith("I;16"):
        # Pillow unpacks 12 bits without scaling them.
        white = 4095 if _tiff_tag(image, _TIFF_BITS) == 12 else 65535
        scaled = (values.astype(np.uint32) * 255 + white // 2) // white
        return scaled.clip(0, 255).astype(np.uint8)
    low, high = float(values.min()), float(values.max())
    slack = 0.0
    if image.mode == "F":
        known = {1.0: 255.0, 255.0: 1.0}  # white -> factor
        slack = 1 / 512  # resampling overshoots a little
    else:
        known = {255.0: 1.0, 65535.0: 255 / 65535}
    for highest, factor in known.items():
        if low >= -slack * highest and high <= (1 + slack) * highest:  # false for NaN
            return np.rint(values.astype(np.float32) * factor).clip(0, 255).astype(np.uint8)
    raise InvalidRecordError(
        f"its image has values from {low:g} to {high:g}, so black and white are not known: save "
        "it with 8 or 16 bits",
        UNKNOWN_RANGE,
    )


def _tiff_tag(image: Image.Image, tag: int) -> int | None:
    """Returns the (first) value of a tag of a TIFF image; None for other images."""
    tags = getattr(image, "tag_v2", None)
    value = None if tags is None else tags.get(tag)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else None


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    """Converts CIE L*a*b* (of TIFF) to sRGB."""
    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(*profiles, "LAB", "RGB")
    converted = ImageCms.applyTransform(image, transform)
    if converted is None:
        raise InvalidRecordError("its L*a*b* colours cannot be converted", UNREADABLE)
    return converted
