"""An image and an instruction to a model's features, and what the model wrote to a prediction.

Images are seen whole, squeezed into a square, as in the downstream tasks; boxes go in and come
out in pixels of the given image. Only where the middle of an image is asked for it is cropped to
a square, as in training.
"""

import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ofa_jax.data.features import Example
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation import postprocess
from ofa_jax.evaluation.postprocess import BoxTransform
from ofa_jax.model import OFAConfig
from ofa_jax.model.config import PIXELS_PER_CODE
from ofa_jax.preprocessing import images, instructions
from ofa_jax.preprocessing.examples import make_example
from ofa_jax.tokenizers.processor import Processor

Box = Sequence[float]
"""x0, y0, x1, y1 in pixels of the given image."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
      instruction: see `ofa_jax.preprocessing.instructions`.
      image: an RGB image, or None.
      region: a box that the instruction is about, or None.
    """

    instruction: str
    image: Image.Image | None = None
    region: Box | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What was answered.

    Attributes:
      text: the words of the answer; the objects' names, separated by commas; empty for a box alone
        and for codes.
      boxes: float32 [K, 4], x0 y0 x1 y1 in pixels of the given image.
      labels: a name for each box; empty for a box alone.
      codes: int32 [n], image codes; None for an answer without.
      image: the image that the codes stand for; None where they do not fill a square, or there
        is no image tokenizer.
      score: of the answer, see `DecodingConfig.length_penalty`.
      symbols: the answer as it was written, with <bin_12> and <code_7>.
    """

    text: str
    boxes: np.ndarray
    labels: tuple[str, ...]
    codes: np.ndarray | None
    image: Image.Image | None
    score: float
    symbols: str


# ---------------------------------------------------------------------------------------- asking


@dataclasses.dataclass(frozen=True)
class DecodePreset:
    """How an instruction is asked.

    Attributes:
      image_size: of the model's image, in pixels a side.
      decoding: how the answer is searched.
      code_grid: image codes a side, whose positions are those of an image; 0 for other answers.
    """

    image_size: int
    decoding: DecodingConfig
    code_grid: int = 0


def manner(
    instruction: str, interface: Processor, model: OFAConfig, beam_size: int = 5
) -> DecodePreset:
    """The usual way of asking: what is known of an instruction, else as for a caption.

    Args:
      instruction: as a person writes it.
      interface: of the model.
      model: its configuration.
      beam_size: of beam search.
    """
    vocabulary = interface.vocabulary
    size = interface.image_size
    longest = model.max_target_positions - 1
    if instructions.is_infilling(instruction) or instructions.is_text_to_image(instruction):
        infilling = instructions.is_infilling(instruction)
        # The most probable middle; but an image of one's own, not the average of all.
        search = (
            DecodingConfig(beam_size=1)
            if infilling
            else DecodingConfig("sample", beam_size=1, top_k=min(256, vocabulary.num_codes))
        )
        codes = vocabulary.code_ids
        search = search.replace(
            max_length=model.code_grid**2,
            exact_length=True,
            constraint_range=(codes.start, codes.stop),
        )
        size = interface.infill_image_size if infilling else size
        return DecodePreset(size, search, model.code_grid)
    if instructions.is_grounding(instruction):
        bins = vocabulary.bin_ids
        return DecodePreset(
            size,
            DecodingConfig(
                beam_size=beam_size,
                min_length=4,
                max_length=4,
                constraint_range=(bins.start, bins.stop),
            ),
        )
    if instructions.is_detection(instruction):
        size = interface.detection_image_size
        return DecodePreset(size, DecodingConfig(beam_size=beam_size, max_length=min(120, longest)))
    if instructions.is_text_infilling(instruction):
        return DecodePreset(size, DecodingConfig(beam_size=beam_size, max_length=min(256, longest)))
    return DecodePreset(
        size,
        DecodingConfig(beam_size=beam_size, max_length=min(30, longest), no_repeat_ngram_size=3),
    )


def open_image(given: Any) -> Image.Image | None:
    """An image from a path, encoded bytes, a PIL image, or an array uint8 [H, W, 3] or [H, W].

    Raises:
      FileNotFoundError, ValueError: it is none of these.
    """
    if given is None:
        return None
    if isinstance(given, Image.Image):
        return given.convert("RGB")
    if isinstance(given, bytes):
        return images.decode(given)
    if isinstance(given, np.ndarray):
        if (
            given.dtype != np.uint8
            or given.ndim not in (2, 3)
            or given.shape[2:] not in ((), (3,), (4,))
        ):
            raise ValueError(
                f"An image is uint8 [height, width, 3], not {given.dtype}{list(given.shape)}: "
                "scale its values to 0..255 and put the channels last."
            )
        return Image.fromarray(given).convert("RGB")
    try:
        with open(given, "rb") as file:
            encoded = file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no image {given}.") from None
    return images.decode(encoded)


def make(
    request: Request, interface: Processor, how: DecodePreset
) -> tuple[Example, BoxTransform | None]:
    """The example (see `features`) of a request, and which part of its image it shows.

    Raises:
      ValueError: the instruction or the region cannot be used.
    """
    others: dict[str, Any] = {"code_mask": np.bool_(how.code_grid > 0)}
    pixels, view = None, None
    if request.image is not None:
        pixels, view = _pixels(request, how)
    if instructions.is_infilling(request.instruction):
        if pixels is None:
            raise ValueError("The middle of an image is asked for, but there is no image.")
        pixels, others["blank_box"] = _blanked(pixels, how.code_grid * PIXELS_PER_CODE)
    region = None
    if request.region is not None:
        region = _region(request, interface, view)
    parts = instructions.encode(interface.vocabulary, request.instruction, region)
    return make_example(interface.vocabulary, parts, (), pixels, **others), view


def _pixels(request: Request, how: DecodePreset) -> tuple[np.ndarray, BoxTransform]:
    image, size = request.image, how.image_size
    if instructions.is_infilling(request.instruction):
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        view = BoxTransform((left, top, left + side, top + side), (size, size))
        return images.to_array(images.resize_and_center_crop(image, size)), view
    view = BoxTransform.of_whole_image(image.size, (size, size))
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return images.to_array(image), view


def _blanked(pixels: np.ndarray, middle: int) -> tuple[np.ndarray, np.ndarray]:
    if middle > len(pixels):
        raise ValueError(
            f"The middle of {middle} pixels a side does not lie within an image of {len(pixels)}: "
            "raise infill_image_size."
        )
    return images.blank_center(pixels, middle)


def _region(request: Request, interface: Processor, view: BoxTransform | None) -> np.ndarray:
    """The ids of a box in the given image."""
    if view is None:
        raise ValueError("There is a region, but no image that it lies in.")
    try:
        box = np.array([float(number) for number in request.region])
    except (TypeError, ValueError):
        box = np.zeros(0)
    width, height = request.image.size
    limits = np.array([width, height] * 2)
    if (
        box.shape != (4,)
        or not np.isfinite(box).all()
        or (box[:2] >= box[2:]).any()
        or ((box < -1) | (box > limits + 1)).any()
    ):
        raise ValueError(
            f"The region {request.region} is no box x0, y0, x1, y1 within the image of {width} x "
            f"{height} pixels."
        )
    seen = np.clip(view.to_model(box), 0, np.array(view.size * 2))
    return interface.vocabulary.encode_box(seen, interface.max_image_size)


# --------------------------------------------------------------------------------------- reading


def read(
    ids: np.ndarray, score: float, interface: Processor, view: BoxTransform | None
) -> Prediction:
    """What was written.

    Args:
      ids: int [n]; eos and what follows it do not count.
      score: of the answer.
      interface: of the model.
      view: of the model's image on the given one; None without an image, and then boxes are in
        pixels of `max_image_size`.
    """
    vocabulary, largest = interface.vocabulary, interface.max_image_size
    ids = postprocess.truncate_at_eos(ids)
    is_bin = np.isin(ids, np.asarray(vocabulary.bin_ids))
    is_code = np.isin(ids, np.asarray(vocabulary.code_ids))
    boxes, labels, codes = np.zeros((0, 4), np.float32), (), None
    text = vocabulary.decode(ids[~is_bin & ~is_code]).strip()
    if is_code.any():
        codes = postprocess.parse("codes", ids, vocabulary)
    elif is_bin.all() and len(ids) == 4:
        boxes = postprocess.parse("box", ids, vocabulary, largest, view)[None]
    elif is_bin.any():
        objects = postprocess.parse("objects", ids, vocabulary, largest, view)
        boxes, labels = objects["boxes"], tuple(objects["labels"])
        text = ", ".join(labels) if labels else text
    return Prediction(
        text,
        boxes,
        labels,
        codes,
        _decoded(codes, interface),
        float(score),
        vocabulary.decode(ids).strip(),
    )


def _decoded(codes: np.ndarray | None, interface: Processor) -> Image.Image | None:
    if codes is None or interface.image_tokenizer is None or (codes < 0).any():
        return None
    side = math.isqrt(len(codes))
    if side * side != len(codes):
        return None
    (pixels,) = interface.image_tokenizer.decode(codes.reshape(1, side, side))
    return Image.fromarray(pixels)


def as_png(image: Image.Image) -> bytes:
    """The file of an image."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
