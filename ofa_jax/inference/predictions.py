"""Converts the tokens that a model generates to text, boxes and images."""

import dataclasses
import io

import numpy as np
from jaxtyping import Float32, Int, Int32
from PIL import Image

from ofa_jax.evaluation import postprocess
from ofa_jax.evaluation.image_ranking import decode_images
from ofa_jax.evaluation.postprocess import BoxTransform
from ofa_jax.tokenizers.processor import Processor


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The output of a model for a request.

    Attributes:
      text: the generated words; for objects their labels, separated by commas; empty for a box
        alone and for codes.
      boxes: x0 y0 x1 y1 in pixels of the given image.
      labels: a label for each box; empty for a box alone.
      codes: image codes; None for an output without.
      image: the image of the codes; None if they do not fill a square, or without an image
        tokenizer.
      score: score of the hypothesis, see `DecodingConfig.length_penalty`; of an image that a ranker
        has chosen, that of the ranker.
      symbols: the whole output as text, with <bin_12> and <code_7>.
      alternatives: the other hypotheses, the best first: with `score_all` the next best candidates,
        else the rest of the `DecodingConfig.beam_size` beams or samples. Only those of
        `Predictor.generate_images` have images.
      warnings: what was changed or left out of a request, if a server says so.
    """

    text: str
    boxes: Float32[np.ndarray, "k 4"]
    labels: tuple[str, ...]
    codes: Int32[np.ndarray, " n"] | None
    image: Image.Image | None
    score: float
    symbols: str
    alternatives: tuple["Prediction", ...] = ()
    warnings: tuple[str, ...] = ()


def parse_prediction(
    token_ids: Int[np.ndarray, " n"],
    score: float,
    processor: Processor,
    transform: BoxTransform | None,
    with_image: bool = True,
) -> Prediction:
    """Parses a hypothesis of any kind.

    Args:
      token_ids: tokens; eos and everything after it are ignored.
      score: score of the hypothesis.
      processor: vocabulary and image tokenizer of the model.
      transform: from the model's image to the given one; None without an image, and then boxes are
        in pixels of `max_image_size`.
      with_image: whether codes are decoded to an image.
    """
    vocabulary, max_image_size = processor.vocabulary, processor.max_image_size
    ids = postprocess.truncate_at_eos(token_ids)
    is_bin = np.isin(ids, np.asarray(vocabulary.bin_ids))
    is_code = np.isin(ids, np.asarray(vocabulary.code_ids))
    boxes, codes = np.zeros((0, 4), np.float32), None
    labels: tuple[str, ...] = ()
    text = vocabulary.decode(ids[~is_bin & ~is_code].tolist()).strip()
    if is_code.any():
        codes = postprocess.parse("codes", ids, vocabulary)
    elif is_bin.all() and len(ids) == 4:
        boxes = postprocess.parse("box", ids, vocabulary, max_image_size, transform)[None]
    elif is_bin.any():
        objects = postprocess.parse("objects", ids, vocabulary, max_image_size, transform)
        boxes, labels = objects["boxes"], tuple(objects["labels"])
        text = ", ".join(labels) if labels else text
    return Prediction(
        text=text,
        boxes=boxes,
        labels=labels,
        codes=codes,
        image=_decode_image(codes, processor) if with_image else None,
        score=float(score),
        symbols=vocabulary.decode(ids.tolist()).strip(),
    )


def _decode_image(
    codes: Int32[np.ndarray, " n"] | None, processor: Processor
) -> Image.Image | None:
    """Returns the image of the codes, see `Prediction.image`."""
    (image,) = decode_images([codes], processor)
    return image


def to_png(image: Image.Image) -> bytes:
    """Encodes an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
