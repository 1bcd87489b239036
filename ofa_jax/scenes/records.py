"""From a scene to a record: the fields that the pretraining objectives read."""

import io

import numpy as np
from PIL import Image

from ofa_jax.scenes import captions, composer, phrases, questions
from ofa_jax.scenes.composer import Scene, SceneOptions

STYLE_OF_SPLIT = {
    "train": "twemoji",
    "validation": "twemoji",
    "test": "twemoji",
    "test_shifted": "openmoji",
}
_CAPTIONS, _NEGATIVES, _QUESTIONS = 3, 4, 6
_JPEG_QUALITY = 90


def make_record(options: SceneOptions, split: str, index: int) -> dict:
    """Scene `index` of a split as a record; a pure function of its arguments.

    Returns:
      id str; image bytes (JPEG, image_size x image_size); captions, negative_captions
      list[str]; questions, answers, answer_types list[str] and answer_confidences list[float],
      parallel; phrases list[str], phrase_boxes float32[P, 4]; true_phrases list[str],
      true_phrase_boxes float32[Q, 4], all that could be said of objects; object_labels list[str],
      object_boxes float32[K, 4]. Boxes are x0 y0 x1 y1 in pixels.
    """
    rng = composer.generator(options, split, index)
    while True:
        scene, image = composer.compose(options, STYLE_OF_SPLIT[split], rng)
        texts = describe(scene, rng)
        if texts["phrases"]:  # two equal objects side by side may leave nothing to refer to
            break
    return {"id": f"{split}-{index:07d}", "image": encode(image), **texts}


def describe(scene: Scene, rng) -> dict:
    """Every field of a record but its id and image."""
    true = captions.captions(scene, _CAPTIONS, rng)
    negatives = captions.negative_claims(scene, true, _NEGATIVES, rng)
    asked = questions.questions(scene, _QUESTIONS, rng)
    referred, referring = phrases.phrases(scene, rng), phrases.true_phrases(scene)
    return {
        "captions": [claim.words() for claim in true],
        "negative_captions": [claim.words() for claim in negatives],
        "questions": [question.text for question in asked],
        "answers": [question.answer for question in asked],
        "answer_types": [question.type for question in asked],
        "answer_confidences": [1.0] * len(asked),
        "phrases": [text for text, _ in referred],
        "phrase_boxes": _boxes(item for _, item in referred),
        "true_phrases": [text for text, _ in referring],
        "true_phrase_boxes": _boxes(item for _, item in referring),
        "object_labels": [item.noun.name for item in scene.objects],
        "object_boxes": _boxes(scene.objects),
    }


def _boxes(items) -> np.ndarray:
    return np.array([item.box for item in items], np.float32).reshape(-1, 4)


def encode(image: np.ndarray) -> bytes:
    """uint8[H, W, 3] as a JPEG without colour subsampling."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
