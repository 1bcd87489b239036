"""Small image files that are hostile, unusual or damaged, with the treatment that each must get."""

import dataclasses
import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

KEPT, SKIPPED, EITHER = "kept", "skipped", "kept or skipped"
"""Treatments of an image. `EITHER`: what is kept must look as the image does."""

_RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)


@dataclasses.dataclass(frozen=True)
class HostileImage:
    """An image file and how it must be treated.

    Attributes:
      name: of the file.
      content: its bytes.
      treatment: one of KEPT, SKIPPED and EITHER.
      size: the (width, height) of a kept image; unchecked when None.
      mean: the mean of a kept image's values, within `tolerance`; unchecked when None.
      tolerance: of the mean.
    """

    name: str
    content: bytes
    treatment: str
    size: tuple[int, int] | None = None
    mean: float | None = None
    tolerance: float = 8.0


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """Encodes an image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 60, height: int = 40) -> Image.Image:
    """Returns an image of noise, always the same."""
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Returns a chunk of a PNG file with its checksum."""
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(
    width: int, height: int, rows: bytes, depth: int = 8, color: int = 0, *extra: bytes
) -> bytes:
    """Returns a PNG file whose header may promise anything."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = [png_chunk(b"IHDR", header), *extra, png_chunk(b"IDAT", zlib.compress(rows, 9))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + png_chunk(b"IEND", b"")


def hostile_images() -> list[HostileImage]:
    """Returns all images of the corpus."""
    return [*_other_formats(), *_bombs(), *_damaged(), *_unusual(), *_deep(), *_transparent()]


def _other_formats() -> Iterator[HostileImage]:
    """Yields files of formats that are not read, whatever their names say."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n"
    yield HostileImage("postscript.eps", eps, SKIPPED)
    yield HostileImage("postscript.jpg", eps, SKIPPED)
    dos_eps = struct.pack("<IIIIIIIH", 0xC6D3D0C5, 30, len(eps), 0, 0, 0, 0, 0xFFFF)
    yield HostileImage("postscript_dos.png", dos_eps + eps, SKIPPED)
    for kind in ("PPM", "PCX", "TGA", "ICO", "SGI", "DDS", "JPEG2000", "IM", "DIB", "PDF"):
        try:
            yield HostileImage(f"a.{kind.lower()}", encode(noise(64, 64), kind), SKIPPED)
        except (KeyError, OSError):
            continue  # this Pillow cannot write it
    yield HostileImage("bits.xbm", encode(noise().convert("1"), "XBM"), SKIPPED)
    yield HostileImage("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", SKIPPED)
    yield HostileImage("page.jpg", b"<!DOCTYPE html><html>404 Not Found</html>", SKIPPED)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"
    yield HostileImage("pointer.png", pointer, SKIPPED)
    yield HostileImage("empty.png", b"", SKIPPED)
    yield HostileImage("text.png", b"no", SKIPPED)
    yield HostileImage("film.fli", b"\x00\x00\x00\x00\x12\xaf" + bytes(200), SKIPPED)
    yield HostileImage("stars.fits", b"SIMPLE  =                    T".ljust(2880), SKIPPED)
    yield HostileImage("layers.psd", b"8BPS\x00\x01" + bytes(6) + b"\x00\x03" + bytes(60), SKIPPED)


def _bombs() -> Iterator[HostileImage]:
    """Yields small files that promise, or decode to, gigabytes."""
    line = bytes(1 + 60_000 // 8)
    yield HostileImage("bomb_1bit.png", png(60_000, 60_000, line * 2_000, depth=1), SKIPPED)
    yield HostileImage("header.png", png(2**31 - 1, 2**31 - 1, b"\0"), SKIPPED)
    yield HostileImage("wide.png", png(2**30, 1, b"\0"), SKIPPED)
    gif = b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\x80\0\0" + bytes(3) + b"\xff" * 3
    gif += b"," + struct.pack("<HHHH", 0, 0, 65_535, 65_535) + b"\0\x02\x02\x4c\x01\0;"
    yield HostileImage("bomb.gif", gif, SKIPPED)
    bmp = bytearray(encode(noise(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    yield HostileImage("bomb.bmp", bytes(bmp), SKIPPED)
    tiff = encode(noise(), "TIFF")
    for tag, value in ((256, 60), (257, 40)):  # width and length
        entry = next(
            entry
            for kind, code in ((3, "<HHIHxx"), (4, "<HHII"))
            if (entry := struct.pack(code, tag, kind, 1, value)) in tiff
        )
        tiff = tiff.replace(entry, struct.pack("<HHII", tag, 4, 1, 100_000))
    yield HostileImage("bomb.tiff", tiff, SKIPPED)
    webp = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\xff\xff\xff\xff"
    riff = b"RIFF" + struct.pack("<I", 4 + len(webp)) + b"WEBP" + webp
    yield HostileImage("bomb.webp", riff, SKIPPED)
    text = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(200_000_000), 9))
    plain = bytes(64 * 65)
    yield HostileImage("text_bomb.png", png(64, 64, plain, 8, 0, text), EITHER, (64, 64), 0.0)
    profile = png_chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(200_000_000), 9))
    yield HostileImage("profile_bomb.png", png(64, 64, plain, 8, 0, profile), EITHER, (64, 64), 0.0)
    pixels = np.zeros((4, 4), np.uint8)
    frames = [Image.fromarray(pixels + number) for number in range(200)]
    many = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield HostileImage("many_frames.gif", many, KEPT, (4, 4))


def _damaged() -> Iterator[HostileImage]:
    """Yields files that are cut off or changed."""
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF"):
        whole = encode(noise(), kind)
        for share in (0.1, 0.6):
            cut = whole[: int(len(whole) * share)]
            yield HostileImage(f"cut_{share}.{kind.lower()}", cut, SKIPPED)
    whole = encode(noise(), "PNG")
    place = whole.index(b"IDAT") + 20
    flipped = whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :]
    yield HostileImage("flipped.png", flipped, SKIPPED)
    yield HostileImage("no_pixels.png", png(0, 5, b""), SKIPPED)
    yield HostileImage("negative.bmp", _bmp_of_size(-60, 40), SKIPPED)
    yield HostileImage("trailing.jpg", encode(noise(), "JPEG") + b"\0" * 99, KEPT, (60, 40))


def _bmp_of_size(width: int, height: int) -> bytes:
    content = bytearray(encode(noise(), "BMP"))
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


def _unusual() -> Iterator[HostileImage]:
    """Yields valid files that cameras, scanners and browsers write."""
    plain = noise()
    mean = float(np.asarray(plain).mean())
    yield HostileImage("png_named.jpg", encode(plain, "PNG"), KEPT, (60, 40), mean)
    yield HostileImage("webp_named.png", encode(plain, "WEBP", lossless=True), KEPT, (60, 40), mean)
    yield HostileImage("plain.avif", encode(plain, "AVIF"), KEPT, (60, 40), mean, 15)
    yield HostileImage("cmyk.jpg", encode(plain.convert("CMYK"), "JPEG"), KEPT, (60, 40), mean, 30)
    yield HostileImage("phone.jpg", _two_in_one(plain), KEPT, (60, 40), mean, 15)
    yield HostileImage("bits.png", encode(plain.convert("1"), "PNG"), KEPT, (60, 40), mean, 20)
    palette = plain.quantize(8)
    yield HostileImage("palette.gif", encode(palette, "GIF"), KEPT, (60, 40), mean, 20)
    for kind in ("GIF", "WEBP", "PNG"):
        frames = [Image.new("RGB", (60, 40), value) for value in ("red", "lime", "blue")]
        film = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        yield HostileImage(f"film.{kind.lower()}", film, KEPT, (60, 40), 85.0)
    yield HostileImage("lab.tiff", encode(plain.convert("LAB"), "TIFF"), EITHER, (60, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(Image.new("RGB", (80, 40)), "JPEG", exif=exif)
    yield HostileImage("turned.jpg", turned, KEPT)
    exif[0x0112] = 77
    yield HostileImage("turned_by_77.jpg", encode(plain, "JPEG", exif=exif), KEPT, (60, 40))
    broken = b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(8)
    yield HostileImage("broken_exif.jpg", encode(plain, "JPEG", exif=broken), KEPT, (60, 40))
    yield HostileImage("one_pixel.png", encode(Image.new("RGB", (1, 1)), "PNG"), KEPT, (1, 1))


def _two_in_one(image: Image.Image) -> bytes:
    """Returns a JPEG with a second image inside, as phones write (MPO)."""
    return encode(image, "MPO", save_all=True, append_images=[image.resize((30, 20))])


def _deep() -> Iterator[HostileImage]:
    """Yields a grey ramp in depths that 8 bits do not hold."""
    grey16 = Image.fromarray((_RAMP * 65_535).astype(np.uint16))
    middle = 127.5
    for kind in ("PNG", "TIFF"):
        yield HostileImage(f"grey16.{kind.lower()}", encode(grey16, kind), EITHER, (64, 64), middle)
    big_endian = Image.frombytes("I;16B", (64, 64), (_RAMP * 65_535).astype(">u2").tobytes())
    yield HostileImage("grey16b.tiff", encode(big_endian, "TIFF"), EITHER, (64, 64), middle)
    for name, values in {
        "float.tiff": _RAMP.astype(np.float32),
        "integer.tiff": (_RAMP * 65_535).astype(np.int32),
    }.items():
        content = encode(Image.fromarray(values), "TIFF")
        yield HostileImage(name, content, EITHER, (64, 64), middle)
    for name, value in {"infinite.tiff": np.inf, "nan.tiff": np.nan, "huge.tiff": 1e38}.items():
        values = _RAMP.astype(np.float32)
        values[0, 0] = value
        yield HostileImage(name, encode(Image.fromarray(values), "TIFF"), EITHER, (64, 64))
    rows = b"".join(b"\0" + (line * 65_535).astype(">u2").tobytes() for line in _RAMP)
    yield HostileImage("deep_grey.png", png(64, 64, rows, 16, 0), EITHER, (64, 64), middle)
    colors = np.repeat(_RAMP[..., None], 3, 2)
    rows = b"".join(b"\0" + (line * 65_535).astype(">u2").tobytes() for line in colors)
    yield HostileImage("deep_color.png", png(64, 64, rows, 16, 2), EITHER, (64, 64), middle)


def _transparent() -> Iterator[HostileImage]:
    """Yields images with transparency; `test_hostile_files` checks their composition."""
    drawing = np.zeros((64, 64, 4), np.uint8)
    drawing[16:48, 16:48, 3] = 255
    for kind in ("PNG", "WEBP", "TIFF"):
        content = encode(Image.fromarray(drawing), kind)
        yield HostileImage(f"transparent.{kind.lower()}", content, KEPT, (64, 64))
    palette = Image.new("P", (64, 64))
    palette.putpalette([0, 0, 0, 255, 0, 0])
    for transparency in (0, b"\0\xff"):
        content = encode(palette, "PNG", transparency=transparency)
        name = f"palette_{type(transparency).__name__}.png"
        yield HostileImage(name, content, KEPT, (64, 64))
    grey = Image.fromarray(drawing).convert("LA")
    yield HostileImage("transparent_grey.png", encode(grey, "PNG"), KEPT, (64, 64))
