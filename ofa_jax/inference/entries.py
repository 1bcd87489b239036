"""A request as a source stores it, and how its image is found, read and decoded.

An image is a path below the folder of the input, or base64. Only regular files are opened, and only
below that folder unless it is allowed; nothing is fetched from the network.
"""

import binascii
import dataclasses
import functools
import os
import re
from typing import Any, Protocol

from PIL import Image

from ofa_jax.data.sources.tsv_file import decode_base64
from ofa_jax.inference.requests import Box
from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.images import AS_SEEN, DecodeOptions
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.utils import files
from ofa_jax.utils.bad_input import INVALID_RECORD, Reason, Treatment, declare, note
from ofa_jax.utils.excerpts import truncate
from ofa_jax.utils.text_files import replace_surrogates

NO_IMAGE_THERE = declare(
    "image is not there",
    Treatment.SKIPPED,
    "The image of a request is neither a file nor base64, or it cannot be opened or is not a "
    "regular file.",
    __name__,
)
IMAGE_OUTSIDE = declare(
    "image outside the input's folder",
    Treatment.SKIPPED,
    "The path of a request's image leads out of the folder of the input (`..`, an absolute path, "
    "or a symbolic link). `allow_outside_images = True` of the inputs allows it.",
    __name__,
)
LONE_SURROGATES = declare(
    "lone surrogate in a request",
    Treatment.REPLACED,
    "Half of a character, which is no text: U+FFFD takes its place in an instruction, and an id "
    "gets it as `\\ud83d`.",
    __name__,
)
NAME_NOT_UTF8 = declare(
    "file name is not UTF-8",
    Treatment.REPLACED,
    "The id of an image has its other bytes as `\\xe9`; the file itself is read.",
    __name__,
)

_MAX_PATH_LENGTH = 4096
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A request as a source stores it.

    Attributes:
      id: id in the source; its location where it has none.
      instruction: in plain spelling, see `ofa_jax.preprocessing.instructions`.
      image: a path, base64, or None.
      region: x0, y0, x1, y1 in pixels of the image, or None.
      folder: folder of relative paths.
      task: selects the decode preset; None for that of the instruction.
      is_path: whether `image` is a path in any case.
      allow_outside: whether the path may lead out of the folder.
    """

    id: str
    instruction: str
    image: str | None = None
    region: Box | None = None
    folder: str = "."
    task: str | None = None
    is_path: bool = False
    allow_outside: bool = False

    def open_image(self, options: DecodeOptions = AS_SEEN) -> Image.Image | None:
        """Returns the decoded image.

        Raises:
          InvalidRecordError: it is neither a file nor base64, or cannot be decoded.
        """
        encoded = self.read_image(options)
        if encoded is None:
            return None
        try:
            return images.decode(encoded, options)
        except InvalidRecordError:
            # The name of a missing file without a dot may be base64, too.
            if self._is_short() and self._find_file() is None:
                raise self._missing() from None
            raise

    def read_image(self, options: DecodeOptions = AS_SEEN) -> bytes | None:
        """Returns the encoded image.

        Raises:
          InvalidRecordError: `image` is neither a file nor base64.
        """
        if self.image is None:
            return None
        if (path := self._find_file()) is not None:
            return self._read_file(path, options)
        text = self.image.strip()
        if self.is_path or not text:
            raise self._missing()
        if _URL.match(text):
            raise InvalidRecordError(
                f"its image {truncate(text)!r} is a URL: download it, as nothing is fetched from "
                "the network",
                NO_IMAGE_THERE,
            )
        if text.startswith("data:"):
            text = text.partition("base64,")[2]
        try:
            # The name of a missing file is rarely base64, which has no dots and a multiple of four
            # characters.
            return decode_base64("".join(text.split()).encode("ascii"))
        except (InvalidRecordError, UnicodeEncodeError, binascii.Error):
            raise self._missing() from None

    def _is_short(self) -> bool:
        """Returns whether `image` may be a path."""
        return self.image is not None and len(self.image) < _MAX_PATH_LENGTH

    def _find_file(self) -> str | None:
        """Returns the path of what exists under the name `image`; None if nothing does."""
        if self.image is None or not self._is_short():
            return None
        text = self.image if self.is_path else self.image.strip()
        path = os.path.join(self.folder, text)
        try:
            return path if text and os.path.lexists(path) else None
        except ValueError:  # null bytes, or surrogates that are in no file name
            return None

    def _read_file(self, path: str, options: DecodeOptions) -> bytes:
        """Reads a file that exists."""
        shown = truncate(str(self.image).strip())
        if not self.allow_outside and not _is_below(path, self.folder):
            raise InvalidRecordError(
                f"its image {shown!r} is outside the folder {self.folder}: move it there, or set "
                "allow_outside_images = True of the inputs",
                IMAGE_OUTSIDE,
            )
        try:
            encoded = files.read_bytes(path, options.max_encoded_bytes)
        except OSError as error:
            raise InvalidRecordError(
                f"its image {shown} cannot be read ({error.strerror})", NO_IMAGE_THERE
            ) from error
        return encoded

    def _missing(self) -> InvalidRecordError:
        shown = truncate(str(self.image).strip())
        what = "not a file" if self.is_path else "neither a file nor base64"
        return InvalidRecordError(f"its image {shown!r} is {what}", NO_IMAGE_THERE)


class InvalidEntry(InvalidRecordError):
    """An invalid entry whose id is known.

    Attributes:
      id: id of the entry.
    """

    def __init__(self, entry_id: str, problem: str, reason: Reason = INVALID_RECORD):
        super().__init__(problem, reason)
        self.id = entry_id

    def __reduce__(self) -> tuple:
        return InvalidEntry, (self.id, str(self), self.reason)


class RequestSource(Protocol):
    """Requests by index; picklable."""

    def __len__(self) -> int:
        """Returns the number of requests."""
        ...

    def __getitem__(self, index: int) -> Entry:
        """Returns a request.

        Raises:
          InvalidRecordError: it is invalid; `InvalidEntry` if its id is known.
        """
        ...

    def location(self, index: int) -> str:
        """Returns where a request is in the source, which replaces a missing id."""
        ...


def clean_instruction(instruction: str) -> str:
    """Replaces the lone surrogates of an instruction, and reports it."""
    cleaned = replace_surrogates(instruction)
    if cleaned != instruction:
        note(LONE_SURROGATES, "Lone surrogates in the instruction were replaced by U+FFFD")
    return cleaned


def clean_text(text: str) -> str:
    r"""Returns a text that can be written: its lone surrogates as `\ud83d`."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def clean_id(entry_id: Any) -> str:
    """Returns an id as text that can be written, and reports what was changed."""
    escaped = clean_text(str(entry_id))
    if escaped != str(entry_id):
        note(LONE_SURROGATES, "Lone surrogates in the id are written as \\uXXXX")
    return escaped


def escape_name(name: str) -> str:
    r"""Returns a file name as text that can be written: bytes that are not UTF-8 as `\xe9`."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace").decode()


def _is_below(path: str, folder: str) -> bool:
    """Returns whether a path is below a folder once symbolic links are followed."""
    root = _real_folder(folder)
    return os.path.commonpath([root, os.path.realpath(path)]) == root


@functools.lru_cache(maxsize=64)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)
