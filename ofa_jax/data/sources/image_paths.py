"""Images that a record names by a path: found below a folder, and read as regular files.

A path is relative to the folder of the data. One that leads out of it (`..`, an absolute path, a
symbolic link) is refused unless the data set allows it; nothing is fetched from the network.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

from ofa_jax.data.sources.tsv_file import InvalidLineError, decode_base64
from ofa_jax.preprocessing.image_files import TOO_MANY_BYTES
from ofa_jax.preprocessing.record_fields import MISSING, WRONG_TYPE, kind_of
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.utils import files
from ofa_jax.utils.bad_input import Treatment, declare
from ofa_jax.utils.decode_options import AS_SEEN
from ofa_jax.utils.wrong_files import shorten

NO_IMAGE_FILE = declare(
    "image file is not there",
    Treatment.SKIPPED,
    "The image of a record is neither a file nor base64, or it cannot be opened or is not a "
    "regular file.",
    __name__,
)
OUTSIDE_FOLDER = declare(
    "image outside the data's folder",
    Treatment.SKIPPED,
    "The path of a record's image leads out of the folder of its data set (`..`, an absolute path, "
    "or a symbolic link). `allow_outside_images = True` of the data set allows it.",
    __name__,
)
_MAX_PATH_LENGTH = 4096
_SMALLEST_IMAGE = 24
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Reads the images of records.

    Attributes:
      folder: that paths are relative to.
      allow_outside: whether paths may lead out of it.
    """

    folder: str
    allow_outside: bool = False

    def read(self, value: Any) -> bytes:
        """Returns the encoded image that a field stands for.

        Args:
          value: bytes; a path; base64; or a mapping with `bytes` or `path`, as Hugging Face stores
            images.

        Raises:
          InvalidRecordError: there is no such image, or it may not be read.
        """
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes | bytearray | memoryview):
            value = bytes(value)
        if value is None or value in ("", b""):
            raise InvalidRecordError("it has no image", MISSING)
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            raise InvalidRecordError(
                f"its image is a {kind_of(value)} instead of a path", WRONG_TYPE
            )
        path = self._find(value)
        return self._read_file(path, value) if path is not None else _from_base64(value)

    def _find(self, text: str) -> str | None:
        """Returns the path of what exists under a name; None if nothing does."""
        if len(text) >= _MAX_PATH_LENGTH or _URL.match(text):
            return None
        for name in (text, text.strip()):
            path = os.path.join(self.folder, name)
            try:
                if name and os.path.lexists(path):
                    return path
            except ValueError:  # null bytes, or surrogates that are in no file name
                return None
        return None

    def _read_file(self, path: str, text: str) -> bytes:
        shown = repr(shorten(text))
        if not self.allow_outside and not is_below(path, self.folder):
            raise InvalidRecordError(
                f"its image {shown} is outside the folder {self.folder}: move it there, or set "
                "allow_outside_images = True of the data set",
                OUTSIDE_FOLDER,
            )
        try:
            return files.read_bytes(path, AS_SEEN.max_encoded_bytes)
        except OSError as error:
            too_large = "limit is" in str(error)
            raise InvalidRecordError(
                f"its image {shown} cannot be read ({error.strerror})",
                TOO_MANY_BYTES if too_large else NO_IMAGE_FILE,
            ) from error


def is_below(path: str, folder: str) -> bool:
    """Returns whether a path is below a folder, once symbolic links are followed."""
    folder = os.path.realpath(folder)
    return os.path.realpath(path).startswith(folder.rstrip(os.sep) + os.sep)


def _from_base64(text: str) -> bytes:
    """Decodes base64, of which a data URL may be the head."""
    shown = repr(shorten(text))
    if text.startswith("data:image/") and ";base64," in text[:80]:
        text = text.partition(";base64,")[2]
    elif _URL.match(text):
        raise InvalidRecordError(
            f"its image {shown} is a URL, and nothing is fetched: download it, and give its path",
            NO_IMAGE_FILE,
        )
    hint = " (the folders of a path have / between them)" if "\\" in text else ""
    problem = InvalidRecordError(
        f"its image {shown} is neither a file nor base64{hint}", NO_IMAGE_FILE
    )
    try:
        decoded = decode_base64("".join(text.split()).encode("ascii"))
    except (InvalidLineError, UnicodeEncodeError):
        raise problem from None
    if len(decoded) < _SMALLEST_IMAGE:  # the name of a missing file may happen to be base64
        raise problem
    return decoded
