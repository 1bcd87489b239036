"""How images are decoded, and the limits that hold before memory is taken for them."""

import dataclasses

from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked

__all__ = ["AS_SEEN", "AS_STORED", "DecodeOptions"]

# The number of pixels at which Pillow itself speaks of a decompression bomb. The large scans among
# the images of the official data have fewer.
_MAX_PIXELS = 178_956_970


@checked
@dataclasses.dataclass(frozen=True)
class DecodeOptions:
    """How encoded images become RGB pixels, and how large they may be.

    The defaults give what a person sees in an image viewer. `AS_STORED` is what the reference
    implementation does, which the official data is read with.

    Attributes:
      honour_orientation: whether the image is rotated and mirrored as its EXIF data says. Boxes are
        then in pixels of the rotated image. TIFF images are always rotated, as in Pillow.
      compose_on_white: whether transparent images are composed onto white. Otherwise their
        transparency is ignored, and any colour may appear where nothing is to be seen.
      max_pixels: width times height of an image.
      max_encoded_bytes: the size of a file.
      max_decoded_bytes: the memory that decoding an image may take, as estimated from its header.
      max_resized_pixels: width times height of an image after it was resized, which an image that
        is very long and narrow exceeds.
    """

    honour_orientation: bool = True
    compose_on_white: bool = True
    max_pixels: options.Amount = _MAX_PIXELS
    max_encoded_bytes: options.Amount = 256 << 20
    max_decoded_bytes: options.Amount = 1 << 30
    max_resized_pixels: options.Amount = 32 << 20


AS_SEEN = DecodeOptions()
"""Images as people see them: in inference, and in training on data of one's own."""
AS_STORED = DecodeOptions(honour_orientation=False, compose_on_white=False)
"""Images as the reference implementation decodes them: in training on the official data."""
