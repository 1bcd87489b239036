"""A task on a checkpoint: every example once, bad ones told, killed ones gone on with."""

import jax
import numpy as np
import pytest
from official_model import random_variables
from simulated_devices import results_of
from small_evaluation import PIXELS, make_evaluator, make_model, make_task, records

from ofa_jax.data.features import stack
from ofa_jax.decoding import make_decoder
from ofa_jax.evaluation import postprocess, prediction_files
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.evaluator import EvaluationError, judge
from ofa_jax.evaluation.postprocess import View
from ofa_jax.sharding import Partitioner


@pytest.fixture(scope="module")
def partitioner():
    return Partitioner(devices=tuple(jax.devices()[:1]))


@pytest.fixture(scope="module")
def model(vocabulary):
    return make_model(vocabulary)


@pytest.fixture(scope="module")
def variables(model):
    return random_variables(model.config)


def lines_in(folder):
    return prediction_files.read(folder / "predictions.jsonl")


@pytest.fixture(scope="module")
def undisturbed(vocabulary, model, variables, partitioner, tmp_path_factory):
    """(folder, task, result) of 13 examples in batches of 4, with a bad one."""
    from etils import epath

    folder = epath.Path(tmp_path_factory.mktemp("undisturbed"))
    evaluator = make_evaluator(model, folder, partitioner, batches_per_part=2)
    task = make_task(vocabulary, partitioner, bad=(6,), batch_size=4)
    return folder, task, evaluator.evaluate(task, 7, "here", variables)


@pytest.mark.parametrize("kind", ["text", "box"])
def test_the_answers_are_those_of_the_decoder_read_as_the_task_says(
    vocabulary, model, variables, partitioner, tmp_path, kind
):
    from etils import epath

    task = make_task(vocabulary, partitioner, kind, count=5, batch_size=4)
    seen = {}

    def metric(references, given):
        seen.update(references=references, given=given)
        return {"count": len(given)}

    task = make_task(vocabulary, partitioner, kind, count=5, batch_size=4, metric=metric)
    evaluator = make_evaluator(model, epath.Path(tmp_path), partitioner)
    result = evaluator.evaluate(task, 3, "here", variables)
    assert result.metrics == {"count": 5} and result.examples == result.asked == 5
    batch = stack([task.questions.row(index)[0] for index in (4, 2, 0, 1)])
    found = make_decoder(model, task.judging.decoding)(variables, batch)
    for row, index in enumerate((4, 2, 0, 1)):
        record = records(5)[index]
        view = View.whole(record["size"], (PIXELS, PIXELS))
        expected = postprocess.read(kind, found.tokens[row, 0], vocabulary, PIXELS, view)
        np.testing.assert_array_equal(seen["given"][index], expected)
        line = lines_in(tmp_path / "3" / f"some_{kind}")[index]
        assert line["index"] == index and line["id"] == f"r{index}"
        assert line["instruction"].startswith(record["words"])
        assert line["prediction"] == postprocess.to_json(kind, expected)
        assert line["score"] == pytest.approx(float(found.scores[row, 0]), rel=1e-5)
    reference = {"text": "words", "box": "size"}[kind]
    wanted = [record[reference] for record in records(5).records]
    assert seen["references"] == [list(x) if kind == "box" else x for x in wanted]


def test_every_example_is_judged_once_and_the_padding_never(undisturbed):
    folder, task, result = undisturbed
    lines = lines_in(folder / "7" / task.name)
    assert [line["index"] for line in lines] == list(range(13))
    assert result.metrics == {"count": 12} and result.main_metric == "count"
    assert result.examples == 12 and result.asked == 13 and result.examples_per_second > 0
    assert {"data", "decoding", "compilation", "metrics"} == set(result.seconds)


def test_a_bad_record_has_a_line_that_says_why(undisturbed):
    folder, task, result = undisturbed
    assert result.skipped == 1
    assert lines_in(folder / "7" / task.name)[6] == {
        "index": 6,
        "id": "r6",
        "error": "it has no words",
    }


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_a_killed_evaluation_goes_on_and_ends_like_an_undisturbed_one(
    undisturbed, vocabulary, model, variables, partitioner, tmp_path, batches
):
    from etils import epath

    class Killed(BaseException):
        pass

    def kill(done, total):
        if done == batches:
            raise Killed

    folder, task, expected = undisturbed
    evaluator = make_evaluator(model, epath.Path(tmp_path), partitioner, batches_per_part=2)
    with pytest.raises(Killed):
        evaluator.evaluate(task, 7, "here", variables, kill)
    result = evaluator.evaluate(task, 7, "here", variables)
    # Parts of two batches of four are safe when they are whole.
    assert result.asked == {1: 13, 2: 5, 3: 5}[batches]
    assert result.metrics == expected.metrics
    files = [path / "7" / task.name / "predictions.jsonl" for path in (folder, tmp_path)]
    assert files[0].read_text() == files[1].read_text()
    again = evaluator.evaluate(task, 7, "here", variables)
    assert again.asked == 0 and again.metrics == expected.metrics
    assert again.examples_per_second is None


def test_predictions_of_other_settings_are_not_mixed_in(
    undisturbed, vocabulary, model, variables, partitioner
):
    folder, task, _ = undisturbed
    evaluator = make_evaluator(model, folder, partitioner)
    assert evaluator.check_settings(task, 7, "here") and not evaluator.check_settings(task, 8, "x")
    with pytest.raises(EvaluationError, match="checkpoint = 'here' and not 'there'"):
        evaluator.evaluate(task, 7, "there", variables)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(metrics=()), "has no metric"),
        (dict(main_metric="other"), "main_metric is 'other', but its metrics give count"),
    ],
)
def test_what_cannot_be_judged_is_said(options, sentence):
    judging = EvalSpec("task", "text", str, (lambda r, a: {"count": len(a)},)).replace(**options)
    line = {"index": 0, "references": "a", "prediction": "b"}
    with pytest.raises(EvaluationError, match=sentence):
        judge(judging, [line])
    with pytest.raises(EvaluationError, match="every record is bad"):
        judge(judging, [{"index": 0, "error": "torn"}])


# -------------------------------------------------------------------------------- several devices

PROGRAM = """
import json, sys
import jax
from etils import epath
from official_model import random_variables
from small_evaluation import make_evaluator, make_model, make_task
from ofa_jax.evaluation import prediction_files
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers.vocabulary import OFAVocabulary

vocabulary = OFAVocabulary.from_tokenizer_json(sys.argv[1], num_codes=16, num_bins=65)
model = make_model(vocabulary)
results = {}
for name, shape in {"1": (1, 1, 1), "8": (8, 1, 1), "mixed": (2, 2, 2)}.items():
    data, fsdp, tensor = shape
    partitioner = Partitioner(
        data, fsdp, tensor, devices=tuple(jax.devices()[: data * fsdp * tensor]))
    folder = epath.Path(sys.argv[2]) / name
    evaluator = make_evaluator(model, folder, partitioner)
    variables = jax.device_put(random_variables(model.config), partitioner.replicated)
    results[name] = {}
    for kind in ("text", "box") if name in ("1", "8") else ("text",):
        task = make_task(vocabulary, partitioner, kind, bad=(2,))
        result = evaluator.evaluate(task, 1, "here", variables)
        results[name][kind] = [result.metrics["count"], prediction_files.read(
            folder / "1" / task.name / "predictions.jsonl")]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def on_devices(vocabulary_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    return results_of(PROGRAM, vocabulary_path, folder)


@pytest.mark.parametrize("mesh", ["8", "mixed"])
def test_any_number_of_devices_gives_the_same_answers(on_devices, mesh):
    """Tokens exactly; scores are float32 sums in another order: 1e-5 relative."""
    for kind, (count, lines) in on_devices[mesh].items():
        assert on_devices["1"][kind][0] == count == 12
        for line, expected in zip(lines, on_devices["1"][kind][1], strict=True):
            if "error" not in expected:
                assert line["score"] == pytest.approx(expected["score"], rel=1e-5)
                line = line | {"score": expected["score"]}
            assert line == expected
