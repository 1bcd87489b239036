"""The JSON schemas of the endpoint: of a request, of its answer, and of an error."""

from collections.abc import Mapping
from typing import Any

from ofa_jax.inference.presets import PRESETS
from ofa_jax.preprocessing import prompts

MAX_RETURNED = 64
"""Hypotheses in an answer, at most."""

DEFAULT_INSTRUCTIONS: Mapping[str, str] = {
    "image_captioning": prompts.IMAGE_CAPTIONING.strip(),
    "object_detection": prompts.OBJECT_DETECTION.strip(),
    "image_infilling": prompts.IMAGE_INFILLING.strip(),
    "grounded_captioning": f"{prompts.GROUNDED_CAPTIONING.strip()} {{region}}",
}
"""The instructions of tasks that need no text of the user's."""
EXAMPLE_INSTRUCTIONS: Mapping[str, str] = {
    **DEFAULT_INSTRUCTIONS,
    "visual_question_answering": "what color is the car?",
    "visual_grounding": 'which region does the text "a red apple" describe?',
    "image_text_matching": 'does the image describe "a red apple"?',
    "snli_ve": 'can image and text1 "a man sleeps" imply text2 "a man rests"?',
    "text_infilling": 'what is the complete text of "the <mask> of the house"?',
    "text_to_image": "what is the complete image? caption: a red apple",
}
"""An instruction of each task, as an example."""

REQUEST_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "image": {
            "type": "string",
            "format": "byte",
            "description": "The content of an image file (JPEG, PNG, WebP, GIF, BMP, TIFF or "
            "AVIF) in base64, with or without `data:image/png;base64,` before it. Neither paths "
            "nor URLs are opened.",
        },
        "instruction": {
            "type": "string",
            "description": "What the model should do. It may be left out for the tasks "
            f"{', '.join(DEFAULT_INSTRUCTIONS)}, which have an instruction of their own.",
        },
        "task": {
            "type": "string",
            "enum": list(PRESETS),
            "description": "How the answer is decoded; that of the instruction if left out.",
        },
        "region": {
            "type": "array",
            "items": {"type": "number"},
            "minItems": 4,
            "maxItems": 4,
            "description": "x0, y0, x1, y1 in pixels of the image: the box that replaces "
            "`{region}` in the instruction, or is appended to it.",
        },
        "candidates": {
            "type": "array",
            "items": {"type": "string"},
            "minItems": 1,
            "description": 'The only answers allowed, e.g. ["yes", "no"].',
        },
        "score_all": {
            "type": "boolean",
            "default": False,
            "description": "Whether every candidate gets its score, instead of a search among "
            "them.",
        },
        "num_candidates": {
            "type": "integer",
            "minimum": 1,
            "maximum": MAX_RETURNED,
            "default": 5,
            "description": "How many hypotheses the answer has at most, the best first; there are "
            "never more than beam search finds.",
        },
        "id": {"description": "A text or a number that the answer gets, too."},
    },
}
"""JSON schema of a request's body."""

_NUMBERS = {"type": "array", "items": {"type": "number"}}
_BOXES = {"type": "array", "items": _NUMBERS}
_CANDIDATE = {
    "type": "object",
    "required": ["answer", "score", "boxes", "labels"],
    "properties": {
        "answer": {"type": "string"},
        "score": {"type": "number"},
        "boxes": _BOXES,
        "labels": {"type": "array", "items": {"type": "string"}},
    },
}
ANSWER_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "required": ["instruction", "answer", "score", "boxes", "labels", "candidates"],
    "properties": {
        "id": {"description": "That of the request."},
        "instruction": {"type": "string", "description": "That of the request, or of its task."},
        "answer": {
            "type": "string",
            "description": "The generated words; the labels of objects; empty for a box alone and "
            "for an image.",
        },
        "score": {"type": "number", "description": "Of the best hypothesis."},
        "boxes": _BOXES | {"description": "x0, y0, x1, y1 in pixels of the image that was sent."},
        "labels": {
            "type": "array",
            "items": {"type": "string"},
            "description": "One for each box; empty for a box alone.",
        },
        "box": _NUMBERS | {"description": "The box, if the answer is a single one."},
        "candidates": {
            "type": "array",
            "items": _CANDIDATE,
            "description": "The hypotheses, the best first.",
        },
        "codes": {
            "type": "array",
            "items": {"type": "integer"},
            "description": "The image codes, if the answer is an image.",
        },
        "image": {
            "type": "string",
            "format": "byte",
            "description": "The generated image, a PNG file in base64.",
        },
        "warnings": {
            "type": "array",
            "items": {"type": "string"},
            "description": "What was changed or left out of the request.",
        },
    },
}
"""JSON schema of an answer."""

ERROR_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "What is wrong and what to do."}},
}
"""JSON schema of what comes instead of an answer."""
