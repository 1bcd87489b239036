"""Galleries at validations: which examples are predicted, how, and what happens on failure."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from small_evaluation import PIXELS, make_task
from small_model import SMALL
from small_run import make_run

from ofa_jax.data.features import Stream
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation import eval_spec
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.metrics import exact
from ofa_jax.model import OFA
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.training import galleries, loop
from ofa_jax.training.galleries import Galleries, GalleryConfig
from tools.train_tokenizer import train_tokenizer


class Recorder:
    """A writer that keeps tags and shapes."""

    def __init__(self):
        self.images, self.texts = {}, {}

    def write_images(self, step, images):
        self.images |= {(step, tag): image.shape for tag, image in images.items()}

    def write_texts(self, step, texts):
        self.texts |= {(step, tag): text for tag, text in texts.items()}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    train_tokenizer([" a red apple and a green apple", " yes no"], 280, path)
    return OFAVocabulary.from_tokenizer_json(path, num_codes=16, num_bins=65)


@pytest.fixture
def make(vocabulary, tmp_path, monkeypatch):
    """Returns a function that makes the galleries of a task of texts and one without a spec."""
    monkeypatch.setattr(galleries, "vocabulary_of", lambda name, settings: vocabulary)
    monkeypatch.setattr(eval_spec, "_registry", {})
    task = make_task(vocabulary, Partitioner(), count=7, invalid=(1,)).source.task

    def describe(settings):
        decoding = DecodingConfig(beam_size=3, max_length=5, length_penalty=2.0)
        return EvalSpec(
            "some_text",
            "text",
            lambda record: record["words"],
            (exact.exact_match,),
            decoding,
            candidates=lambda: ["a", "b"],
            score_all=True,
        )

    eval_spec.register_factory("some_text", describe)
    tasks = {"stream": [task, dataclasses.replace(task, name="without_spec")]}
    stream = Stream("stream", "mixture", 4, {"inputs": 12, "targets": 8}, PIXELS)
    model = OFA(SMALL.replace(vocab_size=vocabulary.vocab_size))

    def create(examples=2, final=5):
        config = GalleryConfig(examples, final)
        return Galleries(
            config, model, Partitioner(), [stream], tasks, None, tmp_path, "validation"
        )

    return create


@pytest.fixture(scope="module")
def variables(vocabulary):
    from official_model import random_variables

    return random_variables(SMALL.replace(vocab_size=vocabulary.vocab_size))


def read(tmp_path, step):
    path = tmp_path / "galleries" / "validation" / str(step) / "some_text.json"
    return json.loads(path.read_text())


def test_each_validation_shows_the_same_first_examples_and_the_last_one_more(
    make, variables, tmp_path
):
    found, recorder, log = make(), Recorder(), []
    for step in (10, 20):
        found.write(step, variables, False, recorder, log.append)
        # The record 1 is invalid: it has no place.
        assert [example["index"] for example in read(tmp_path, step)] == [0]
    found.write(30, variables, True, recorder, log.append)
    assert sorted(example["index"] for example in read(tmp_path, 30)) == [0, 2, 3, 4]
    assert log == ["without_spec has no gallery: it is registered without an EvalSpec."]
    example = read(tmp_path, 30)[0]
    assert example["image"].startswith("data:") and example["metric"] == "exact_match"
    assert list(recorder.images) == [
        (step, "validation/gallery/some_text") for step in (10, 20, 30)
    ]
    assert recorder.images[30, "validation/gallery/some_text"][0] == 4
    assert "| record |" in recorder.texts[30, "validation/gallery/some_text/table"]


def test_decoding_is_greedy_and_no_longer_than_the_stream(vocabulary):
    task = make_task(vocabulary, Partitioner(), "box")
    stream = Stream("stream", "x", 4, {"inputs": 12, "targets": 8}, PIXELS)
    box = galleries.cheap_spec(task.spec, stream).decoding
    assert (box.beam_size, box.max_length, box.min_length) == (1, 4, 4)
    assert box.constraint_range == task.spec.decoding.constraint_range
    text = task.spec.replace(
        kind="text", decoding=DecodingConfig(max_length=200, no_repeat_ngram_size=3)
    )
    text = galleries.cheap_spec(text, stream).decoding
    assert (text.beam_size, text.max_length, text.no_repeat_ngram_size) == (1, 7, 3)


def test_zero_turns_them_off(make, variables, tmp_path):
    make(0, 0).write(1, variables, True, Recorder(), pytest.fail)
    at_the_end_only = make(0, 3)
    at_the_end_only.write(1, variables, False, Recorder(), pytest.fail)
    assert not (tmp_path / "galleries").exists()
    at_the_end_only.write(2, variables, True, Recorder(), lambda message: None)
    assert len(read(tmp_path, 2)) == 2


def test_a_failure_is_one_sentence_and_the_last(make, variables, tmp_path, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("out of\nmemory")

    found, log = make(), []
    monkeypatch.setattr(galleries.BatchDecoder, "__call__", broken)
    for step in (1, 2):
        found.write(step, variables, False, Recorder(), log.append)
    assert len(log) == 2 and log[1].startswith("Galleries of validations are left out from here")
    assert "some_text failed (RuntimeError: out of memory); training goes on." in log[1]
    assert not (tmp_path / "galleries").exists()


def test_several_hosts_leave_them_out_in_one_sentence(make, variables, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    found, log = make(), []
    for step in (1, 2):
        found.write(step, variables, False, Recorder(), log.append)
    (sentence,) = log
    assert "several hosts" in sentence and not (tmp_path / "galleries").exists()


def test_the_loop_writes_them_with_its_evaluation_variables_at_every_validation(tmp_path):
    calls = []

    class Spy:
        def write(self, step, variables, is_last, writer, log):
            assert set(variables) == {"params", "batch_stats"}
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(variables))
            calls.append((step, is_last))

    run = make_run(
        tmp_path,
        validation=True,
        total_steps=4,
        log_period=2,
        checkpoint_period=4,
        validation_period=2,
    )
    loop.train(dataclasses.replace(run, galleries=Spy()))
    assert calls == [(2, False), (4, True)]
