"""Bodies of any kind: a request, or a sentence."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_jax.serving import schemas
from ofa_jax.serving.fields import BadFieldError, parse_body
from ofa_jax.serving.limits import Limits, TooLargeError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
NAMES = st.sampled_from([*schemas.REQUEST_SCHEMA["properties"], "imge"]) | st.text(max_size=8)
LIKELY = st.sampled_from(
    ["a red apple", "image_captioning", "aGVsbG8=", "data:image/png;base64,aGVsbG8=", [0, 0, 9, 9]]
)


@given(st.dictionaries(NAMES, VALUES | LIKELY, max_size=6))
def test_any_object_is_a_request_or_a_sentence(given_fields):
    body = json.dumps(given_fields).encode()
    try:
        parsed = parse_body(body, Limits())
    except (BadFieldError, TooLargeError) as error:
        assert str(error)[0].isupper() and len(str(error)) < 700
        str(error).encode()
    else:
        assert parsed.request.instruction.strip() and 1 <= parsed.num_candidates <= 64
        assert set(given_fields) <= set(schemas.REQUEST_SCHEMA["properties"])


@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_a_sentence(body):
    with pytest.raises(BadFieldError):
        parse_body(body, Limits())


def test_every_field_is_read():
    body = {
        "id": 7,
        "image": base64.b64encode(b"content").decode(),
        "instruction": "what is it?",
        "task": "visual_question_answering",
        "region": [0, 1, 2.5, 3],
        "candidates": ["a", "b"],
        "score_all": True,
        "num_candidates": 2,
    }
    assert set(body) == set(schemas.REQUEST_SCHEMA["properties"])
    parsed = parse_body(json.dumps(body).encode(), Limits())
    request = parsed.request
    assert (parsed.id, parsed.num_candidates) == (7, 2)
    assert (request.image, request.instruction, request.task) == (
        b"content",
        "what is it?",
        "visual_question_answering",
    )
    assert (request.region, request.candidates, request.score_all) == (
        [0, 1, 2.5, 3],
        ["a", "b"],
        True,
    )


def test_null_is_as_if_a_field_were_left_out():
    body = dict.fromkeys(schemas.REQUEST_SCHEMA["properties"]) | {"task": "image_captioning"}
    parsed = parse_body(json.dumps(body).encode(), Limits())
    assert parsed.request.instruction == "what does the image describe?"
    assert parsed.request.image is None and parsed.num_candidates == 5


def test_every_example_instruction_belongs_to_its_task():
    from ofa_jax.inference.presets import PRESETS
    from ofa_jax.preprocessing.instructions import recognise_task

    assert set(schemas.EXAMPLE_INSTRUCTIONS) == set(PRESETS)
    for task, instruction in schemas.EXAMPLE_INSTRUCTIONS.items():
        assert recognise_task(instruction) in (task, None)
