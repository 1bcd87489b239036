"""Evaluating a task on a checkpoint: every example once, invalid records, resuming."""

import dataclasses

import numpy as np
import pytest
from simulated_devices import run_on_eight_devices
from small_evaluation import PIXELS, make_evaluator, make_task, records

from ofa_jax.data.features import stack
from ofa_jax.decoding import DecodingConfig, make_decoder
from ofa_jax.evaluation import postprocess, prediction_files
from ofa_jax.evaluation.evaluator import EvaluationError
from ofa_jax.evaluation.image_ranking import ImageRanking
from ofa_jax.evaluation.postprocess import BoxTransform
from ofa_jax.tokenizers import PatchCodebook
from ofa_jax.tokenizers.processor import Processor


def read_predictions(folder):
    return prediction_files.read_lines(folder / "predictions.jsonl")


@pytest.fixture(scope="module")
def uninterrupted(vocabulary, model, variables, partitioner, tmp_path_factory):
    """Returns (folder, task, result) of 13 examples in batches of 4, one of them invalid."""
    from etils import epath

    folder = epath.Path(tmp_path_factory.mktemp("uninterrupted"))
    evaluator = make_evaluator(model, folder, partitioner, batches_per_part=2)
    task = make_task(vocabulary, partitioner, invalid=(6,), batch_size=4)
    return folder, task, evaluator.evaluate(task, 7, "here", variables)


@pytest.mark.parametrize("kind", ["text", "box"])
def test_predictions_are_the_parsed_hypotheses_of_the_decoder(
    vocabulary, model, variables, partitioner, tmp_path, kind
):
    from etils import epath

    task = make_task(vocabulary, partitioner, kind, count=5, batch_size=4)
    seen = {}

    def metric(references, predictions):
        seen.update(references=references, predictions=predictions)
        return {"count": len(predictions)}

    task = make_task(vocabulary, partitioner, kind, count=5, batch_size=4, metric=metric)
    evaluator = make_evaluator(model, epath.Path(tmp_path), partitioner)
    result = evaluator.evaluate(task, 3, "here", variables)
    assert result.metrics == {"count": 5} and result.examples == result.decoded == 5
    batch = stack([task.source.make_row(index)[0] for index in (4, 2, 0, 1)])
    found = make_decoder(model, task.spec.decoding)(variables, batch)
    for row, index in enumerate((4, 2, 0, 1)):
        record = records(5)[index]
        transform = BoxTransform.of_whole_image(record["size"], (PIXELS, PIXELS))
        expected = postprocess.parse(kind, found.tokens[row, 0], vocabulary, PIXELS, transform)
        np.testing.assert_array_equal(seen["predictions"][index], expected)
        line = read_predictions(tmp_path / "3" / f"some_{kind}")[index]
        assert line["index"] == index and line["id"] == f"r{index}"
        assert line["instruction"].startswith(record["words"])
        assert line["prediction"] == postprocess.to_json(kind, expected)
        assert line["score"] == pytest.approx(float(found.scores[row, 0]), rel=1e-5)
    reference = {"text": "words", "box": "size"}[kind]
    expected = [record[reference] for record in records(5).records]
    assert seen["references"] == [list(x) if kind == "box" else x for x in expected]


def test_every_example_is_scored_once_and_padding_never(uninterrupted):
    folder, task, result = uninterrupted
    lines = read_predictions(folder / "7" / task.name)
    assert [line["index"] for line in lines] == list(range(13))
    assert result.metrics == {"count": 12} and result.main_metric == "count"
    assert result.examples == 12 and result.decoded == 13 and result.examples_per_second > 0
    assert {"data", "decoding", "compilation", "metrics"} == set(result.seconds)


def test_an_invalid_record_has_a_line_with_its_error(uninterrupted):
    folder, task, result = uninterrupted
    assert result.skipped == 1
    assert read_predictions(folder / "7" / task.name)[6] == {
        "index": 6,
        "id": "r6",
        "error": "it has no words",
        "reason": "invalid record",
    }
    assert result.findings == {"invalid record": 1}


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_a_killed_evaluation_resumes_with_the_same_result(
    uninterrupted, vocabulary, model, variables, partitioner, tmp_path, batches
):
    from etils import epath

    class Killed(BaseException):
        pass

    def kill(done, total):
        if done == batches:
            raise Killed

    folder, task, expected = uninterrupted
    evaluator = make_evaluator(model, epath.Path(tmp_path), partitioner, batches_per_part=2)
    with pytest.raises(Killed):
        evaluator.evaluate(task, 7, "here", variables, kill)
    result = evaluator.evaluate(task, 7, "here", variables)
    # A part of two batches of four is kept once it is complete.
    assert result.decoded == {1: 13, 2: 5, 3: 5}[batches]
    assert result.metrics == expected.metrics
    files = [path / "7" / task.name / "predictions.jsonl" for path in (folder, tmp_path)]
    assert files[0].read_text() == files[1].read_text()
    again = evaluator.evaluate(task, 7, "here", variables)
    assert again.decoded == 0 and again.metrics == expected.metrics
    assert again.examples_per_second is None


def test_predictions_of_other_settings_are_refused(
    uninterrupted, vocabulary, model, variables, partitioner
):
    folder, task, _ = uninterrupted
    evaluator = make_evaluator(model, folder, partitioner)
    assert evaluator.check_settings(task, 7, "here") and not evaluator.check_settings(task, 8, "x")
    with pytest.raises(EvaluationError, match="checkpoint = 'here' and not 'there'"):
        evaluator.evaluate(task, 7, "there", variables)


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
        task = make_task(vocabulary, partitioner, kind, invalid=(2,))
        result = evaluator.evaluate(task, 1, "here", variables)
        results[name][kind] = [result.metrics["count"], prediction_files.read_lines(
            folder / "1" / task.name / "predictions.jsonl")]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def on_devices(vocabulary_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    return run_on_eight_devices(PROGRAM, vocabulary_path, folder)


@pytest.mark.parametrize("mesh", ["8", "mixed"])
def test_any_number_of_devices_gives_the_same_predictions(on_devices, mesh):
    """Checks tokens exactly; scores are float32 sums in another order: 1e-5 relative."""
    for kind, (count, lines) in on_devices[mesh].items():
        assert on_devices["1"][kind][0] == count == 12
        for line, expected in zip(lines, on_devices["1"][kind][1], strict=True):
            if "error" not in expected:
                assert line["score"] == pytest.approx(expected["score"], rel=1e-5)
                line = line | {"score": expected["score"]}
            assert line == expected


class Sums:
    """Prefers bright images."""

    name = "sums"

    def score(self, captions, images):
        assert len(captions) == len(images)
        self.captions = captions
        return images.mean(axis=(1, 2, 3))


def test_a_ranker_chooses_the_image_and_scores_it(
    vocabulary, model, variables, partitioner, tmp_path
):
    """Control: without it, another one of the same samples is chosen."""
    from etils import epath

    codes = vocabulary.code_ids
    decoding = DecodingConfig(
        method="sample",
        beam_size=8,
        max_length=4,
        exact_length=True,
        constraint_range=(codes.start, codes.stop),
    )
    task = make_task(vocabulary, partitioner, count=5, batch_size=4)
    spec = task.spec.replace(kind="codes", decoding=decoding, metrics=(), unconditional="what?")
    task = dataclasses.replace(task, spec=spec)
    levels = np.linspace(0, 240, 16, dtype=np.float32)[:, None] * np.ones((1, 192), np.float32)
    ranking = ImageRanking(Processor(vocabulary, PatchCodebook(levels)), Sums())
    ranked = task.rank_images(ranking)
    assert ranked.settings["image_ranker"] == "sums"
    evaluator = make_evaluator(model, epath.Path(tmp_path), partitioner)
    plain = evaluator.evaluate(task, 1, "here", variables)
    result = evaluator.evaluate(ranked, 2, "here", variables)
    assert plain.metrics == {}
    before, after = (
        [
            levels[line["prediction"], 0].mean()
            for line in read_predictions(tmp_path / step / task.name)
        ]
        for step in ("1", "2")
    )
    assert all(mine >= other for mine, other in zip(after, before, strict=True))
    assert np.mean(after) > np.mean(before)
    assert result.metrics["image_score"] == pytest.approx(np.mean(after), abs=2)
    assert list(ranking.ranker.captions) == [record["words"] for record in records(5).records]
    with pytest.raises(EvaluationError, match="image_ranker"):
        evaluator.evaluate(task, 2, "here", variables)
