"""The images that the demo page works on: checked once, and kept in memory for its questions.

A question names its image by a key, so that the image is sent once. Nothing is written to disk.
"""

import base64
import binascii
import collections
import dataclasses
import hashlib
import threading

from PIL import Image

from ofa_jax.evaluation.gallery import data_uri
from ofa_jax.serving.limits import Limits, decode_upload
from ofa_jax.utils.decode_options import AS_SEEN, DecodeOptions

_PREVIEW_SIDE = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Upload:
    """An image on the page.

    Attributes:
      key: names it.
      encoded: the content of its file.
      preview: a smaller copy as a data URI, turned as the model sees it.
      width, height: of the image that the model sees, in pixels; regions are in these units.
    """

    key: str
    encoded: bytes
    preview: str
    width: int
    height: int

    @property
    def size(self) -> int:
        """The bytes that it takes in memory."""
        return len(self.encoded) + len(self.preview)


class UploadStore:
    """Keeps the most recently used images, up to a number of bytes; threads may share it."""

    def __init__(
        self,
        limits: Limits,
        decode_options: DecodeOptions = AS_SEEN,
        max_bytes: int = 256 << 20,
    ):
        """Makes an empty store.

        Args:
          limits: of one image.
          decode_options: how images are decoded.
          max_bytes: of all images; the least recently used ones are forgotten.
        """
        self._limits, self._decode_options, self._max_bytes = limits, decode_options, max_bytes
        self._lock = threading.Lock()
        self._uploads: collections.OrderedDict[str, Upload] = collections.OrderedDict()
        self._pinned: dict[str, Upload] = {}
        self._bytes = 0

    def add(self, encoded: bytes, pinned: bool = False) -> Upload:
        """Checks an image and keeps it.

        Args:
          encoded: the content of its file.
          pinned: whether it is never forgotten.

        Raises:
          ValueError: it is no image, or exceeds a limit.
        """
        image = decode_upload(encoded, self._limits, self._decode_options)
        key = hashlib.sha256(encoded).hexdigest()
        upload = Upload(key, encoded, data_uri(image, _PREVIEW_SIDE), image.width, image.height)
        with self._lock:
            if pinned:
                self._pinned[key] = upload
                return upload
            if (old := self._uploads.pop(key, None)) is not None:
                self._bytes -= old.size
            self._uploads[key] = upload
            self._bytes += upload.size
            while self._bytes > self._max_bytes and len(self._uploads) > 1:
                self._bytes -= self._uploads.popitem(last=False)[1].size
        return upload

    def find(self, key: str) -> Upload:
        """Returns an image.

        Raises:
          ValueError: it is unknown, or was forgotten.
        """
        with self._lock:
            if (pinned := self._pinned.get(key)) is not None:
                return pinned
            if (upload := self._uploads.get(key)) is None:
                raise ValueError(
                    "The image is no longer on the server, which keeps the last ones only: choose "
                    "it again."
                )
            self._uploads.move_to_end(key)
            return upload


def crop_square(image: Image.Image) -> Image.Image:
    """Returns the largest square in the middle of an image, which image infilling reads."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def decode_data_uri(uri: str) -> bytes:
    """Returns the content of a base64 data URI. Raises ValueError for anything else."""
    start, found, encoded = uri.partition(";base64,")
    if not found or not start.startswith("data:image/"):
        raise ValueError("its image is not a data URI")
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"its image is not base64 ({error})") from None
