"""Metrics over written predictions: missing references, failing metrics, values without meaning."""

import functools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.metrics import (
    boxes,
    captions,
    classification,
    exact,
    inputs,
    nouns,
    spans,
    summarization,
    vqa,
)
from ofa_jax.evaluation.scoring import compute_metrics
from ofa_jax.utils.json_values import to_json
from tasks import pretraining_eval
from tasks import vqa as vqa_task


def count(references, predictions):
    return {"count": len(predictions)}


def spec_of(*metrics, kind="text", **options):
    return EvalSpec("some_task", kind, str, metrics, **options)


def lines_of(references, predictions):
    return [
        {"index": index, "id": "", "references": reference, "prediction": prediction}
        for index, (reference, prediction) in enumerate(zip(references, predictions, strict=True))
    ]


BOX, OBJECTS = [0.0, 0.0, 9.0, 9.0], {"boxes": [[0.0, 0.0, 9.0, 9.0]], "labels": ["dog"]}
# kind, metrics, a reference, a prediction that equals it, references with nothing to compare with
KINDS = {
    "VQA": (
        "text",
        (vqa.vqa_accuracy,),
        {"answers": ["yes"], "confidences": [1.0]},
        "yes",
        [{"answers": [], "confidences": []}, {"answers": [""], "confidences": [1.0]}],
    ),
    "VQA of annotators": (
        "text",
        (vqa.vqa_accuracy,),
        {"answers": ["yes"] * 10, "confidences": []},
        "yes",
        [{"answers": []}, {"answers": [None, " "], "type": "colour"}],
    ),
    "captions": ("text", captions.METRICS, ["a red dog runs"], "a red dog runs", [[], [""], [" "]]),
    "captions and nouns": (
        "text",
        tuple(map(pretraining_eval.OfCaptions, captions.METRICS)),
        {"captions": ["a red dog runs"], "nouns": ["dog"]},
        "a red dog runs",
        [{"captions": [], "nouns": ["dog"]}, {"captions": [None], "nouns": []}],
    ),
    "label": ("text", (classification.accuracy_and_f1,), "yes", "yes", ["", " "]),
    "box": ("box", (boxes.accuracy_at_iou,), BOX, BOX, [[], [None] * 4, [1.0, 2.0]]),
    "objects": ("objects", (boxes.detection,), OBJECTS, OBJECTS, [{"boxes": []}]),
    "text": ("text", (exact.exact_match,), "a b", "a b", ["", "\n"]),
    "texts": ("text", (exact.one_of_several,), ["a", "b"], "b", [[], [" "]]),
    "codes": ("codes", (exact.token_accuracy,), [1, 2], [1, 2], [[], [0.5], [[1]]]),
    "summary": ("text", (summarization.rouge,), "the cat sat", "the cat sat", [""]),
    "user's own": ("text", (count,), "a", "b", ["", [], {}, float("nan"), {"a": []}]),
}


@pytest.mark.parametrize("name", KINDS)
def test_without_references_nothing_is_scored_and_nothing_fails(name):
    kind, metrics, _, prediction, empty = KINDS[name]
    for reference in (None, *empty):
        scores = compute_metrics(
            spec_of(*metrics, kind=kind), lines_of([reference] * 3, [prediction] * 3)
        )
        assert scores.metrics == scores.failed == {} and scores.main_metric is None
        assert scores.scored == 0
        assert scores.unscored_reason == "none of its 3 examples has a reference"


@pytest.mark.parametrize("name", KINDS)
def test_metrics_are_over_the_examples_with_a_reference(name):
    kind, metrics, reference, prediction, empty = KINDS[name]
    spec = spec_of(*metrics, kind=kind)
    full = compute_metrics(spec, lines_of([reference] * 2, [prediction] * 2))
    assert full.scored == 2 and full.metrics and not full.failed and not full.unscored_reason
    for nothing in (None, *empty):
        lines = lines_of([nothing, reference, nothing, reference], [prediction] * 4)
        assert compute_metrics(spec, lines) == full


def test_an_image_without_objects_is_a_reference_but_a_corpus_of_them_is_none():
    spec = spec_of(boxes.detection, kind="objects")
    nothing = {"boxes": [], "labels": []}
    values = compute_metrics(spec, lines_of([nothing, OBJECTS], [OBJECTS, OBJECTS]))
    assert values.scored == 2 and values.metrics["precision@0.5"] == 0.5
    scores = compute_metrics(spec, lines_of([nothing] * 2, [OBJECTS] * 2))
    assert scores.scored == 0 and not scores.failed
    assert "none of its 2 examples" in scores.unscored_reason


def test_malformed_parts_of_a_reference_are_dropped_alone():
    def scored(metric, reference, prediction, kind="text"):
        scores = compute_metrics(spec_of(metric, kind=kind), lines_of([reference], [prediction]))
        assert not scores.failed and scores.scored == 1
        return scores.metrics

    assert scored(captions.rouge_l, ["a dog", None, 3, "", ["x"]], "a dog") == {"rouge_l": 1.0}
    answers = {"answers": ["yes", "", None], "confidences": [0.5, 1.0, 1.0]}
    assert scored(vqa.vqa_accuracy, answers, "yes") == {"accuracy": 0.5}
    odd = {"answers": ["yes", "no"], "confidences": [None, 0.25], "type": ["colour"]}
    assert scored(vqa.vqa_accuracy, odd, "no") == {"accuracy": 0.25}
    objects = {"boxes": [BOX, [1, 2], None, [None] * 4], "labels": ["dog", "cat", "cat", "cat"]}
    assert scored(boxes.detection, objects, OBJECTS, "objects")["f1@0.5"] == 1
    assert scored(nouns.noun_f1, {"nouns": ["dog", None, "", 7]}, "a dog")["noun_f1"] == 1


def test_a_metric_that_fails_is_named_and_the_others_are_computed():
    def divides(references, predictions):
        return {"share": len(references) / (len(predictions) - 2)}

    def leaves(references, predictions):
        raise SystemExit("no licence")

    def returns_nothing(references, predictions):
        return None

    def returns_text(references, predictions):
        return {"grade": "good"}

    partial = functools.partial(divides)
    metrics = (divides, leaves, returns_nothing, returns_text, count, partial)
    scores = compute_metrics(spec_of(*metrics), lines_of(["a", "b"], ["a", "b"]))
    assert scores.metrics == {"count": 2} and scores.main_metric == "count" and scores.scored == 2
    assert set(scores.failed) == {"divides", "leaves", "returns_nothing", "returns_text"}
    assert scores.failed["divides"] == "ZeroDivisionError: division by zero"
    assert scores.failed["leaves"] == "SystemExit: no licence"
    assert scores.unscored_reason is None
    alone = compute_metrics(spec_of(divides), lines_of(["a", "b"], ["a", "b"]))
    assert alone.metrics == {} and set(alone.failed) == {"divides"} and not alone.unscored_reason
    assert alone.scored == 2


def test_values_that_are_not_finite_are_undefined_and_kept_out_of_json():
    def odd(references, predictions):
        return {"nan": np.float32("nan"), "inf": float("inf"), "fine": np.float64(0.5)}

    scores = compute_metrics(spec_of(odd), lines_of(["a"], ["a"]))
    assert scores.metrics == {"fine": 0.5} and scores.undefined == ("nan", "inf")
    assert not scores.failed and scores.main_metric == "fine"
    chosen = compute_metrics(spec_of(odd, main_metric="nan"), lines_of(["a"], ["a"]))
    assert not chosen.failed and chosen.main_metric == "fine"


def test_a_main_metric_that_nothing_gives_is_reported_and_the_rest_is_kept():
    scores = compute_metrics(spec_of(count, main_metric="other"), lines_of(["a"], ["a"]))
    assert scores.metrics == {"count": 1} and scores.main_metric == "count"
    assert scores.failed == {"other": "it is the main metric, but the metrics give count"}


def test_a_task_without_metrics_and_one_of_invalid_records_say_so():
    assert "no metric" in compute_metrics(spec_of(), lines_of(["a"], ["a"])).unscored_reason
    invalid = [{"index": 0, "id": "", "error": "torn"}]
    assert compute_metrics(spec_of(count), invalid).unscored_reason == "every record is invalid"


# ------------------------------------------------------------------------------- whatever comes

ODD_TEXT = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", " ", "\u2028", "\ud83d", "\x00", "<mask>", "a" * 300, "(((", "'t", "$^."]),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(), ODD_TEXT),
    lambda own: st.one_of(
        st.lists(own, max_size=4), st.dictionaries(st.sampled_from("ab"), own, max_size=2)
    ),
    max_leaves=6,
)
PREDICTIONS = {
    "text": ODD_TEXT,
    "box": st.lists(st.floats(width=32), min_size=4, max_size=4),
    "codes": st.lists(st.integers(-1, 9), max_size=4),
    "objects": st.lists(
        st.tuples(st.lists(st.floats(-9, 9), min_size=4, max_size=4), ODD_TEXT)
    ).map(
        lambda pairs: {"boxes": [box for box, _ in pairs], "labels": [label for _, label in pairs]}
    ),
}


def keyed(name):
    """Returns references of a task's own form, with anything in the place of its values."""
    fields = {
        "VQA": ("answers", "confidences", "type"),
        "captions and nouns": ("captions", "nouns"),
        "objects": ("boxes", "labels"),
    }.get(name)
    if fields is None:
        return JSON
    return st.one_of(JSON, st.fixed_dictionaries({field: JSON for field in fields}))


@pytest.mark.parametrize("name", KINDS)
def test_no_reference_or_prediction_makes_a_metric_of_the_project_fail(name):
    kind, metrics, reference, prediction, _ = KINDS[name]
    references = st.one_of(keyed(name), st.just(reference))
    predictions = st.one_of(PREDICTIONS[kind], st.just(prediction))

    @given(st.lists(st.tuples(references, predictions), max_size=4))
    def check(pairs):
        lines = lines_of(*zip(*pairs, strict=True)) if pairs else []
        scores = compute_metrics(spec_of(*metrics, kind=kind), to_json(lines))
        assert not scores.failed
        assert all(map(np.isfinite, scores.metrics.values())) and not scores.undefined
        json.loads(json.dumps(to_json(scores.metrics), allow_nan=False))

    check()


@given(st.lists(st.tuples(ODD_TEXT, ODD_TEXT, ODD_TEXT), min_size=1, max_size=3))
def test_no_text_makes_the_spans_fail(triples):
    masked, references, predictions = zip(*triples, strict=True)
    (value,) = spans.exact_spans(masked, references, predictions).values()
    assert 0 <= value <= 1


@given(JSON)
def test_any_json_is_a_reference_or_none(value):
    assert inputs.is_empty(value) in (True, False)
    for metric in (vqa.vqa_accuracy, captions.cider_d, boxes.detection, boxes.accuracy_at_iou):
        inputs.usable_reference(metric, value)  # raises nothing


def test_the_official_vqa_test_set_has_no_references():
    assert inputs.is_empty(vqa_task.references({"reference_answers": []}))
