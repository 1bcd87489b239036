"""The JSON of the endpoint: the fields of a request, and of its answer, by their `schemas`.

They are those of a line of `ofa-infer`, wherever there is one.
"""

import base64
import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ofa_jax.data.sources.tsv_file import decode_base64
from ofa_jax.inference.entries import clean_text
from ofa_jax.inference.fields import json_type
from ofa_jax.inference.predictions import Prediction, to_png
from ofa_jax.inference.presets import PRESETS
from ofa_jax.serving.limits import Limits, TooLargeError
from ofa_jax.serving.prediction_requests import PredictionRequest
from ofa_jax.serving.schemas import (
    DEFAULT_INSTRUCTIONS,
    EXAMPLE_INSTRUCTIONS,
    MAX_RETURNED,
    REQUEST_SCHEMA,
)
from ofa_jax.utils import strict_json
from ofa_jax.utils.excerpts import truncate
from ofa_jax.utils.json_values import to_json
from ofa_jax.utils.suggestions import nearest

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


class BadFieldError(ValueError):
    """A body that is no request; the sentence says what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class ParsedRequest:
    """A body.

    Attributes:
      request: for the queue.
      id: given back with the answer; None without.
      num_candidates: hypotheses in the answer, at most.
    """

    request: PredictionRequest
    id: str | int | float | None
    num_candidates: int


# ------------------------------------------------------------------------------------- requests


def parse_body(body: bytes, limits: Limits) -> ParsedRequest:
    """Parses the body of a request.

    Args:
      body: JSON in UTF-8.
      limits: of the image.

    Raises:
      TooLargeError: the image has too many bytes.
      BadFieldError: the body is no JSON object of the known fields.
    """
    fields = _load_json(body)
    if not isinstance(fields, dict):
        raise BadFieldError(
            f"The body is {json_type(fields)}; send a JSON object such as "
            '{"image": "...", "instruction": "what does the image describe?"}.'
        )
    for name in fields:
        if name not in REQUEST_SCHEMA["properties"]:
            known = REQUEST_SCHEMA["properties"]
            raise BadFieldError(
                f"The field {truncate(clean_text(name), 40)!r} is not known.{_suggest(name, known)}"
            )
    task = _typed(fields, "task", str, "text")
    instruction = _typed(fields, "instruction", str, "text")
    image = _typed(fields, "image", str, "text in base64")
    request = PredictionRequest(
        instruction=_find_instruction(instruction, task),
        image=None if image is None else _decode_image(image, limits),
        region=_read_region(fields),
        task=task,
        candidates=_read_candidates(fields),
        score_all=bool(_typed(fields, "score_all", bool, "true or false")),
    )
    return ParsedRequest(request, _read_id(fields), _read_number(fields))


def _load_json(body: bytes) -> Any:
    """Parses strict JSON: no NaN, no infinity, no field twice."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFieldError(
            f"The body is not UTF-8 (byte {error.start + 1}): send JSON in UTF-8."
        ) from None
    if not text.strip():
        raise BadFieldError("The body is empty: send a JSON object.")
    try:
        return strict_json.parse(text)
    except strict_json.RepeatedKeyError as error:
        shown = truncate(clean_text(error.key), 40)
        raise BadFieldError(f"The field {shown!r} is given more than once: give it once.") from None
    except strict_json.NotFiniteError as error:
        raise BadFieldError(f"The body is not JSON: {error.name} is no number of JSON.") from None
    except RecursionError:
        raise BadFieldError("The body is not JSON: it is nested too deeply.") from None
    except ValueError as error:
        raise BadFieldError(f"The body is not JSON ({truncate(str(error))}).") from None


def _suggest(name: str, known: Iterable[str]) -> str:
    """Returns a sentence with the nearest known name, or with all of them."""
    return nearest(name[:100], known) or f" Known are {', '.join(known)}."


def _typed(fields: Mapping[str, Any], name: str, kind: type, expected: str) -> Any:
    """Returns a field of a type, or None if it is not there."""
    value = fields.get(name)
    if value is not None and not isinstance(value, kind):
        raise BadFieldError(f"The field {name} is {json_type(value)}; it must be {expected}.")
    return value


def _find_instruction(instruction: str | None, task: str | None) -> str:
    """Returns the instruction of a request, or else that of its task."""
    if instruction is not None and instruction.strip():
        return instruction
    if task is not None and task in DEFAULT_INSTRUCTIONS:
        return DEFAULT_INSTRUCTIONS[task]
    if instruction is not None:
        raise BadFieldError("The field instruction is empty: write what the model should do.")
    if task is not None and task in EXAMPLE_INSTRUCTIONS:
        raise BadFieldError(
            f"The task {task} needs an instruction, such as {EXAMPLE_INSTRUCTIONS[task]!r}."
        )
    if task is not None:
        raise BadFieldError(
            f"The task {truncate(clean_text(task), 40)!r} is not known.{_suggest(task, PRESETS)}"
        )
    raise BadFieldError(
        "There is neither an instruction nor a task: give one, such as "
        '"instruction": "what does the image describe?".'
    )


def _decode_image(text: str, limits: Limits) -> bytes:
    """Returns the content of the image file."""
    shown = truncate(clean_text(text.strip()), 40)
    if text.startswith("data:"):
        head, found, text = text.partition("base64,")
        if not found:
            raise BadFieldError(
                f"The image is a data URL without base64 ({truncate(clean_text(head), 40)!r}): "
                "send its bytes in base64."
            )
    elif _URL.match(text.strip()):
        raise BadFieldError(
            f"The image {shown!r} is a URL, and the server fetches nothing: send the content of "
            "the file in base64."
        )
    if (
        len(text) * 3 // 4 > limits.max_image_bytes + 1024
        and (size := len("".join(text.split())) * 3 // 4) > limits.max_image_bytes
    ):
        raise TooLargeError(
            f"The image has about {size:,} bytes; the limit is {limits.max_image_bytes:,}: send a "
            "smaller one."
        )
    try:
        encoded = decode_base64("".join(text.split()).encode("ascii"))
    except ValueError:
        raise BadFieldError(
            f"The image {shown!r} is not base64, and the server opens no files of its own: send "
            "the content of the file in base64."
        ) from None
    if not encoded:
        raise BadFieldError("The image is empty: leave the field out for a request without one.")
    return encoded


def _read_region(fields: Mapping[str, Any]) -> list[float] | None:
    """Returns the region."""
    region = _typed(fields, "region", list, "a list of four numbers x0, y0, x1, y1")
    if region is None:
        return None
    if len(region) != 4 or not all(_is_number(number) for number in region):
        raise BadFieldError(
            f"The field region is {truncate(json.dumps(region[:8]))}; it must be four finite "
            "numbers x0, y0, x1, y1 in pixels of the image."
        )
    return [float(number) for number in region]


def _is_number(value: Any) -> bool:
    """Returns whether a value is a finite number; an integer may be too large for a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _read_candidates(fields: Mapping[str, Any]) -> list[str] | None:
    """Returns the allowed outputs."""
    candidates = _typed(fields, "candidates", list, "a list of texts")
    for text in candidates or ():
        if not isinstance(text, str):
            raise BadFieldError(
                f"The field candidates has {json_type(text)} among its texts; it must be a list of "
                "texts."
            )
    return candidates


def _read_id(fields: Mapping[str, Any]) -> str | int | float | None:
    """Returns the id, as it can be written."""
    value = fields.get("id")
    if value is None or (isinstance(value, str) and len(value) <= 1000):
        return None if value is None else clean_text(value)
    if _is_number(value):
        return value
    raise BadFieldError(
        f"The field id is {json_type(value)}; it must be a number, or a text of at most 1,000 "
        "characters."
    )


def _read_number(fields: Mapping[str, Any]) -> int:
    """Returns how many hypotheses are wanted."""
    value = fields.get("num_candidates")
    if value is None:
        return REQUEST_SCHEMA["properties"]["num_candidates"]["default"]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RETURNED:
        shown = truncate(json.dumps(value), 40) if _is_number(value) else json_type(value)
        raise BadFieldError(
            f"The field num_candidates is {shown}; it must be a whole number from 1 to "
            f"{MAX_RETURNED}."
        )
    return value


# -------------------------------------------------------------------------------------- answers


def make_answer(parsed: ParsedRequest, prediction: Prediction) -> dict[str, Any]:
    """Returns the fields of an answer, see `schemas.ANSWER_SCHEMA`."""
    answer: dict[str, Any] = {} if parsed.id is None else {"id": parsed.id}
    answer["instruction"] = clean_text(parsed.request.instruction)
    answer |= _make_candidate(prediction)
    if len(prediction.boxes) == 1 and not prediction.labels:
        answer["box"] = answer["boxes"][0]
    hypotheses = (prediction, *prediction.alternatives)[: parsed.num_candidates]
    answer["candidates"] = [_make_candidate(hypothesis) for hypothesis in hypotheses]
    if prediction.codes is not None:
        answer["codes"] = prediction.codes.tolist()
    if prediction.image is not None:
        answer["image"] = base64.b64encode(to_png(prediction.image)).decode("ascii")
    if prediction.warnings:
        answer["warnings"] = [sentence(warning) for warning in prediction.warnings]
    return to_json(answer)


def _make_candidate(prediction: Prediction) -> dict[str, Any]:
    """Returns the fields that every hypothesis has."""
    return {
        "answer": prediction.text,
        "score": prediction.score,
        "boxes": prediction.boxes.tolist(),
        "labels": list(prediction.labels),
    }


def sentence(problem: object) -> str:
    """Returns a message as a sentence."""
    text = clean_text(" ".join(str(problem).split()))
    text = truncate(text, 1000)
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
