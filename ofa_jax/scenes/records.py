"""Converts a scene to a record with the fields that the pretraining objectives read."""

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from ofa_jax.scenes import captions, composer, phrases, questions
from ofa_jax.scenes.composer import Scene, SceneObject, SceneOptions

STYLE_OF_SPLIT = {
    "train": "twemoji",
    "validation": "twemoji",
    "test": "twemoji",
    "test_shifted": "openmoji",
}
_NUM_CAPTIONS, _NUM_NEGATIVES, _NUM_QUESTIONS = 3, 4, 6
_JPEG_QUALITY = 90


def make_record(options: SceneOptions, split: str, index: int) -> dict[str, Any]:
    """Composes scene `index` of a split and returns its record; a pure function of its arguments.

    Returns:
      id str; image bytes (JPEG, image_size x image_size); captions, negative_captions
      list[str]; questions, answers, answer_types list[str] and answer_confidences list[float],
      parallel; phrases list[str], phrase_boxes float32[P, 4]; true_phrases list[str],
      true_phrase_boxes float32[Q, 4], all correct phrases; object_labels list[str],
      object_boxes float32[K, 4]. Boxes are x0 y0 x1 y1 in pixels.
    """
    rng = composer.make_generator(options, split, index)
    while True:
        scene, image = composer.compose(options, STYLE_OF_SPLIT[split], rng)
        texts = describe(scene, rng)
        if texts["phrases"]:  # two equal objects side by side may have no unambiguous phrase
            break
    return {"id": f"{split}-{index:07d}", "image": encode_jpeg(image), **texts}


def describe(scene: Scene, rng: np.random.Generator) -> dict[str, Any]:
    """Returns all fields of a scene's record except id and image."""
    true = captions.sample_captions(scene, _NUM_CAPTIONS, rng)
    negatives = captions.sample_negatives(scene, true, _NUM_NEGATIVES, rng)
    sampled_questions = questions.sample_questions(scene, _NUM_QUESTIONS, rng)
    sampled_phrases = phrases.sample_phrases(scene, rng)
    true_phrases = phrases.true_phrases(scene)
    return {
        "captions": [statement.to_text() for statement in true],
        "negative_captions": [statement.to_text() for statement in negatives],
        "questions": [question.text for question in sampled_questions],
        "answers": [question.answer for question in sampled_questions],
        "answer_types": [question.type for question in sampled_questions],
        "answer_confidences": [1.0] * len(sampled_questions),
        "phrases": [text for text, _ in sampled_phrases],
        "phrase_boxes": _boxes(item for _, item in sampled_phrases),
        "true_phrases": [text for text, _ in true_phrases],
        "true_phrase_boxes": _boxes(item for _, item in true_phrases),
        "object_labels": [item.noun.name for item in scene.objects],
        "object_boxes": _boxes(scene.objects),
    }


def _boxes(items: Iterable[SceneObject]) -> Float32[np.ndarray, "n 4"]:
    return np.array([item.box for item in items], np.float32).reshape(-1, 4)


def encode_jpeg(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Encodes an image as a JPEG without chroma subsampling."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
