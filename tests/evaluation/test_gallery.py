"""Galleries: which examples they show, by which metric, and where boxes are."""

import dataclasses
import functools
import io

import numpy as np
import pytest
from PIL import Image
from small_evaluation import PIXELS, make_task

from ofa_jax.data.sampling import WeightedTask
from ofa_jax.data.seqio_bridge import _Chain
from ofa_jax.data.sources.memory import InMemoryRecords
from ofa_jax.data.task_settings import ConfiguredPreprocessor
from ofa_jax.evaluation import gallery, gallery_events
from ofa_jax.evaluation.eval_sources import RecordEvalSource
from ofa_jax.evaluation.event_writer import EventWriter
from ofa_jax.evaluation.gallery import GalleryMaker
from ofa_jax.evaluation.metrics import captions, exact, inputs
from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.examples import make_example
from ofa_jax.reports import run_files
from ofa_jax.sharding import Partitioner
from ofa_jax.utils.decode_options import AS_SEEN, AS_STORED
from tasks import pretraining_eval


def lines_of(task, predictions, references=True, scores=None):
    """Returns the lines of predictions for a task's first examples."""
    made = []
    for index, prediction in enumerate(predictions):
        _, example = task.source.make_row(index)
        made.append(
            {
                "index": index,
                "id": example.id,
                "instruction": example.instruction,
                "references": example.references if references else None,
                "prediction": prediction,
                "score": -0.5 if scores is None else scores[index],
            }
        )
    return made


def maker_of(task, *metrics, main_metric=None):
    spec = task.spec.replace(metrics=metrics or task.spec.metrics, main_metric=main_metric)
    return GalleryMaker(spec, task.source)


@pytest.fixture
def texts(vocabulary):
    return make_task(vocabulary, Partitioner())


@pytest.fixture
def boxes(vocabulary):
    return make_task(vocabulary, Partitioner(), "box", references=lambda r: [0, 0, *r["size"]])


@pytest.mark.parametrize("kind", ["text", "box"])
def test_an_evaluation_without_references_has_a_gallery(kind, texts, boxes):
    task, prediction = (texts, "a") if kind == "text" else (boxes, [0.0, 1.0, 20.0, 30.0])
    found = maker_of(task).make(lines_of(task, [prediction] * 4, references=False))
    assert [example.target for example in found] == ["no reference"] * 4
    assert all(example.quality is None and example.metric is None for example in found)
    assert all(example.image and not example.target_boxes for example in found)
    assert all(len(example.predicted_boxes) == (kind == "box") for example in found)


def test_metrics_of_a_corpus_are_not_computed_for_one_example(texts):
    called = []

    @inputs.of_corpus
    def corpus_metric(references, predictions, option=None):
        called.append(len(predictions))
        return {"corpus": 1.0}

    metrics = (functools.partial(corpus_metric, option=1), corpus_metric, exact.exact_match)
    found = maker_of(texts, *metrics, main_metric="corpus").make(lines_of(texts, ["a", "b"]))
    assert not called
    assert {example.metric for example in found} == {"exact_match"}
    assert gallery.to_json(found)[0]["metric"] == "exact_match"


def test_slow_and_empty_caption_metrics_say_that_they_need_a_corpus():
    needing = {"cider_d", "meteor_and_spice"}
    for metric in captions.METRICS:
        assert inputs.needs_corpus(metric) == (metric.__name__ in needing)
        assert inputs.needs_corpus(pretraining_eval.OfCaptions(metric)) == (
            metric.__name__ in needing
        )
    assert inputs.needs_corpus(captions.caption_metrics)


def test_the_main_metric_is_shown_if_it_is_left(texts):
    found = maker_of(texts, lambda r, p: {"first": 0.0, "main": 1.0}, main_metric="main")
    assert found.rate(lines_of(texts, ["a"])[0]) == ("main", 1.0)


def test_a_spec_may_order_its_examples_by_another_metric(texts):
    found = maker_of(texts, lambda r, p: {"first": 0.0, "main": 1.0, "own": 0.5})
    spec = found.spec.replace(main_metric="main", example_metric="own")
    found = dataclasses.replace(found, spec=spec)
    assert found.rate(lines_of(texts, ["a"])[0]) == ("own", 0.5)
    captioning = pretraining_eval._captioning(None)
    assert (captioning["main_metric"], captioning["example_metric"]) == ("cider_d", "noun_f1")


def test_the_worst_come_first_then_the_best_then_those_without_a_reference(texts):
    lines = lines_of(texts, [str(value) for value in (5, 0, 0, 9, 3, 9, 4)], scores=[*range(7)])
    lines[4]["references"] = None

    def value(references, predictions):
        return {"value": float(predictions[0])}

    def shown(count):
        return [example.index for example in maker_of(texts, value).make(lines, count)]

    # Of two equal ones the model is surest of the one with the higher score.
    assert shown(2) == [2, 5]
    assert shown(4) == [2, 1, 3, 5]
    assert shown(7) == [2, 1, 6, 0, 5, 3, 4]


def test_one_odd_line_costs_no_other_its_place(boxes):
    lines = lines_of(boxes, [[0.0, 0.0, 9.0, 9.0]] * 3)
    lines[1]["references"] = [1.0, "odd"]
    assert [example.index for example in maker_of(boxes).make(lines)] == [0, 2]


def preprocess(record, rng, config):
    image = images.decode(record["image"], config.decode_options).resize((PIXELS, PIXELS))
    return make_example(config.vocabulary, " a", " a", images.to_array(image))


@pytest.mark.parametrize("options", [AS_SEEN, AS_STORED])
def test_an_image_with_orientation_is_shown_as_its_task_decodes_it(
    options, vocabulary, boxes, monkeypatch
):
    pixels, exif, file = Image.new("RGB", (60, 40)), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    pixels.save(file, "jpeg", exif=exif)
    data = InMemoryRecords([{"id": "x", "image": file.getvalue(), "size": (60, 40)}])

    @dataclasses.dataclass(frozen=True)
    class Config:
        decode_options: object
        vocabulary: object

    own = _Chain((ConfiguredPreprocessor(preprocess, Config(options, vocabulary)),))
    source = RecordEvalSource.open(WeightedTask("x", 1.0, data, own), boxes.source.batcher)
    size = (40, 60) if options is AS_SEEN else (60, 40)
    (_, row) = source.make_row(0)
    whole = row.box_transform.to_stored([0, 0, PIXELS, PIXELS])
    np.testing.assert_allclose(whole, [0, 0, *size])
    decoded = []
    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda *given: decoded.append(given) or decode(*given))
    task = dataclasses.replace(boxes, source=source)
    (found,) = maker_of(task).make(lines_of(task, [[0.0, 0.0, 9.0, 9.0]]))
    assert (found.width, found.height) == size
    # The rows of `lines_of` and of the gallery, and the gallery's own.
    assert len(decoded) == 3


def test_boxes_are_drawn_in_their_colours(boxes):
    found = maker_of(boxes).make(lines_of(boxes, [[10.0, 10.0, 30.0, 20.0]]))
    scale = 256 / max(found[0].width, found[0].height)
    image = gallery_events.as_images(found)[0]
    assert max(image.shape[:2]) == 256
    at = np.round(np.array([10.0, 10.0, 30.0, 20.0]) * scale).astype(int)
    np.testing.assert_array_equal(image[at[1] + 8, at[0]], gallery_events.PREDICTED)
    np.testing.assert_array_equal(image[at[3], at[2] - 8], gallery_events.PREDICTED)
    np.testing.assert_array_equal(image[100, 0], gallery_events.TRUE)


def test_images_and_tables_reach_tensorboard_and_leave_its_scalars_alone(tmp_path, texts):
    writer = EventWriter(tmp_path)
    examples = maker_of(texts).make(lines_of(texts, ["<bin_3> | a\nb", "c"]))
    writer.write_scalars(7, {"train/loss": 1.5})
    gallery_events.write(writer, 7, "gallery/some_text", examples)
    gallery_events.write(writer, 8, "gallery/empty", [])
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    (text,) = events.Tensors("gallery/some_text/table")
    table = text.tensor_proto.string_val[0].decode()
    assert "&lt;bin_3> &#124; a b" in table and len(table.splitlines()) == 4
    (shown,) = events.Tensors("gallery/some_text")
    assert shown.step == 7 and len(shown.tensor_proto.string_val) == 2 + len(examples)
    scalars = run_files.read_run(tmp_path).scalars
    assert {name: list(own.values) for name, own in scalars.items()} == {"train/loss": [1.5]}
