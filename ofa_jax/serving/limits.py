"""Limits of what strangers send: bytes and pixels of images, lengths of texts, rates.

They hold before memory is taken: the header of an image is read before its pixels, and the body of
a request is counted while it arrives.
"""

import collections
import dataclasses
import ipaddress
import math
import threading
import time
from collections.abc import Callable, Sequence

from PIL import Image

from ofa_jax.preprocessing import image_files
from ofa_jax.utils import options
from ofa_jax.utils.bad_input import InvalidRecordError
from ofa_jax.utils.decode_options import AS_SEEN, DecodeOptions
from ofa_jax.utils.option_checks import checked

_BASE64_GROWTH = 4 / 3
_OTHER_FIELDS_BYTES = 256 << 10
_DECODER_BYTES_PER_PIXEL = 24
_MAX_CLIENTS = 4096


class TooLargeError(ValueError):
    """A part of a request exceeds its limit; the sentence says which, and what to do."""


@checked
@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may have, and how many a client may send.

    Attributes:
      max_image_bytes: of an image file.
      max_image_pixels: width times height of an image, by its header.
      max_text_length: characters of an instruction.
      max_candidates: texts in a list of allowed outputs.
      max_candidate_length: characters of each of them.
      max_buffered_bytes: of all bodies that are being read at a time.
      body_timeout_s: seconds in which a body has to arrive.
      requests_per_second: of one client, on average; 0 for any number.
      burst: requests that a client may send at once.
    """

    max_image_bytes: options.Count = 10 << 20
    max_image_pixels: options.Count = 25_000_000
    max_text_length: options.Count = 2000
    max_candidates: options.Count = 64
    max_candidate_length: options.Count = 200
    max_buffered_bytes: options.Count = 256 << 20
    body_timeout_s: options.Positive = 30.0
    requests_per_second: options.NonNegative = 50.0
    burst: options.Count = 256

    @property
    def max_body_bytes(self) -> int:
        """The bytes of a JSON body: an image in base64, and the other fields."""
        return int(self.max_image_bytes * _BASE64_GROWTH) + _OTHER_FIELDS_BYTES

    def decode_options(self, base: DecodeOptions = AS_SEEN) -> DecodeOptions:
        """Returns how images are decoded: as `base` says, within these limits."""
        memory = self.max_image_pixels * _DECODER_BYTES_PER_PIXEL
        return dataclasses.replace(
            base,
            max_pixels=min(base.max_pixels, self.max_image_pixels),
            max_encoded_bytes=min(base.max_encoded_bytes, self.max_image_bytes),
            max_decoded_bytes=min(base.max_decoded_bytes, memory),
        )


def decode_upload(
    encoded: bytes, limits: Limits, decode_options: DecodeOptions = AS_SEEN
) -> Image.Image:
    """Decodes an image that a stranger has sent.

    Args:
      encoded: the content of a file.
      limits: of bytes and pixels.
      decode_options: how it is decoded.

    Raises:
      TooLargeError: it has too many bytes, or by its header too many pixels.
      InvalidRecordError: it is not an image of a known format, or it is damaged.
    """
    if len(encoded) > limits.max_image_bytes:
        raise TooLargeError(
            f"The image has {len(encoded):,} bytes; the limit is {limits.max_image_bytes:,}: "
            "send a smaller one."
        )
    allowed = limits.decode_options(decode_options)
    try:
        return image_files.decode(encoded, allowed)
    except InvalidRecordError as error:
        if error.reason not in (image_files.TOO_MANY_PIXELS, image_files.TOO_MANY_BYTES):
            raise
        # The message of the library names options that a client does not have.
        what = str(error).partition(" (DecodeOptions")[0].removeprefix("its ")
        raise TooLargeError(f"The {what}: send a smaller one.") from None


def check_pixels(size: Sequence[int], limits: Limits) -> None:
    """Raises TooLargeError for an image of (width, height) that has too many pixels."""
    if math.prod(size) > limits.max_image_pixels:
        raise TooLargeError(
            f"The image has {' x '.join(map(str, size))} pixels; the limit is "
            f"{limits.max_image_pixels:,}: send a smaller one."
        )


def check_text(name: str, text: str, limits: Limits) -> None:
    """Raises TooLargeError for a text that is too long; `name` is that of its field."""
    if len(text) > limits.max_text_length:
        raise TooLargeError(
            f"The {name} has {len(text):,} characters; the limit is {limits.max_text_length:,}: "
            "shorten it."
        )


class RateLimiter:
    """Token buckets, one for each client: a bucket holds `burst` requests and fills up over time.

    All threads may use it at the same time. Clients of one IPv6 network of 64 bits share a bucket.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic):
        """Makes empty books.

        Args:
          limits: rate and burst.
          clock: seconds.
        """
        self._rate, self._burst, self._clock = limits.requests_per_second, limits.burst, clock
        self._lock = threading.Lock()
        # client -> (requests left, when); the least recently used client is forgotten.
        self._buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

    def take(self, client: str) -> float:
        """Takes a request out of a client's bucket.

        Args:
          client: its address.

        Returns:
          0 if the request may go on, else the seconds after which the client may try again.
        """
        if not self._rate:
            return 0.0
        client, now = _network(client), self._clock()
        with self._lock:
            left, before = self._buckets.pop(client, (float(self._burst), now))
            left = min(float(self._burst), left + (now - before) * self._rate)
            wait = 0.0 if left >= 1 else (1 - left) / self._rate
            self._buckets[client] = (left - 1 if left >= 1 else left, now)
            if len(self._buckets) > _MAX_CLIENTS:
                self._buckets.popitem(last=False)
        return wait


def _network(client: str) -> str:
    """Returns what stands for a client: its IPv4 address, or its IPv6 network."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
