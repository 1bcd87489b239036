"""The answerer: the same answers as the decoder's own, whatever is allowed and however started."""

import jax
import numpy as np
import pytest
from official_model import random_variables
from small_model import SMALL

from ofa_jax.decoding import DecodingConfig, make_decoder, make_scorer
from ofa_jax.evaluation.batch_decoder import BatchDecoder
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.model import OFA
from ofa_jax.sharding import Partitioner

ALLOWED = [" yes", " no", " a red apple", " green"]


@pytest.fixture(scope="module")
def asked(vocabulary):
    """(model, variables, batch)."""
    config = SMALL.replace(vocab_size=vocabulary.vocab_size)
    tokens = np.full((3, 8), vocabulary.pad_id, np.int32)
    for row, question in zip(tokens, (" a red apple", " yes", " and a green apple"), strict=True):
        ids = vocabulary.encode(question, add_bos=True, add_eos=True, max_length=6)
        row[: len(ids)] = ids
    batch = {"encoder_input_tokens": tokens, "task_ids": np.zeros(3, np.int32)}
    return OFA(config), random_variables(config), batch


def describe(**others):
    return EvalSpec("task", "text", lambda record: "", (), **others)


@pytest.mark.parametrize("mesh", [None, "all"])
def test_beam_search_gives_the_decoders_answers(asked, vocabulary, mesh):
    model, variables, batch = asked
    config = DecodingConfig(beam_size=3, max_length=5)
    expected = make_decoder(model, config)(variables, batch)
    partitioner = Partitioner(devices=tuple(jax.devices()[:1])) if mesh else None
    answerer = BatchDecoder(model, describe(decoding=config), vocabulary, partitioner)
    found = answerer(variables, batch)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    for row in range(3):
        ids, score = found.best(row)
        length = int(expected.lengths[row, 0]) - 1  # without eos
        assert ids.tolist() == np.asarray(expected.tokens)[row, 0, :length].tolist()
        assert score == found.scores[row, 0]
        assert len(found.all(row)) == int((expected.lengths[row] > 0).sum())


def test_only_allowed_answers_are_given(asked, vocabulary):
    model, variables, batch = asked
    answerer = BatchDecoder(
        model,
        describe(candidates=lambda: ALLOWED, decoding=DecodingConfig(max_length=12)),
        vocabulary,
    )
    found = answerer(variables, batch)
    for row in range(3):
        every = {vocabulary.decode(ids) for ids, _ in found.all(row)}
        assert every == set(ALLOWED)  # five beams hold all four
        assert vocabulary.decode(found.best(row)[0]) in every


@pytest.mark.parametrize("renormalize", [True, False])
def test_all_allowed_answers_are_scored(asked, vocabulary, renormalize):
    model, variables, batch = asked
    ids = [vocabulary.encode(text).tolist() for text in ALLOWED]
    scores = np.asarray(make_scorer(model, ids, restrict_to_trie=renormalize)(variables, batch))
    answerer = BatchDecoder(
        model,
        describe(
            candidates=lambda: ALLOWED,
            score_all=True,
            decoding=DecodingConfig(renormalize=renormalize),
        ),
        vocabulary,
    )
    found = answerer(variables, batch)
    for row in range(3):
        best, score = found.best(row)
        assert best.tolist() == ids[scores[row].argmax()]
        np.testing.assert_allclose(score, scores[row].max(), rtol=1e-5)


def test_drawn_answers_follow_from_the_seed_and_the_batchs_number(asked, vocabulary):
    model, variables, batch = asked
    config = DecodingConfig(method="sample", beam_size=4, max_length=5)

    def draw(seed, number):
        answerer = BatchDecoder(model, describe(decoding=config), vocabulary, seed=seed)
        return answerer(variables, batch, number).tokens

    np.testing.assert_array_equal(draw(0, 3), draw(0, 3))
    assert (draw(0, 3) != draw(0, 4)).any() and (draw(0, 3) != draw(1, 3)).any()


def test_an_empty_list_of_answers_is_a_sentence(asked, vocabulary):
    with pytest.raises(ValueError, match="task 'task': its list of allowed answers is empty"):
        BatchDecoder(asked[0], describe(candidates=lambda: []), vocabulary)
