"""BatchDecoder: the hypotheses of the decoder itself, with and without candidates."""

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

CANDIDATES = [" yes", " no", " a red apple", " green"]


@pytest.fixture(scope="module")
def model_and_batch(vocabulary):
    """Returns (model, variables, batch)."""
    config = SMALL.replace(vocab_size=vocabulary.vocab_size)
    tokens = np.full((3, 8), vocabulary.pad_id, np.int32)
    for row, text in zip(tokens, (" a red apple", " yes", " and a green apple"), strict=True):
        ids = vocabulary.encode(text, add_bos=True, add_eos=True, max_length=6)
        row[: len(ids)] = ids
    batch = {"encoder_input_tokens": tokens, "task_ids": np.zeros(3, np.int32)}
    return OFA(config), random_variables(config), batch


def make_spec(**fields):
    return EvalSpec("task", "text", lambda record: "", (), **fields)


@pytest.mark.parametrize("mesh", [None, "all"])
def test_beam_search_returns_the_hypotheses_of_the_decoder(model_and_batch, vocabulary, mesh):
    model, variables, batch = model_and_batch
    config = DecodingConfig(beam_size=3, max_length=5)
    expected = make_decoder(model, config)(variables, batch)
    partitioner = Partitioner(devices=tuple(jax.devices()[:1])) if mesh else None
    decoder = BatchDecoder(model, make_spec(decoding=config), vocabulary, partitioner)
    found = decoder(variables, batch)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    for row in range(3):
        ids, score = found.best(row)
        length = int(expected.lengths[row, 0]) - 1  # without eos
        assert ids.tolist() == np.asarray(expected.tokens)[row, 0, :length].tolist()
        assert score == found.scores[row, 0]
        assert len(found.hypotheses(row)) == int((expected.lengths[row] > 0).sum())


def test_only_candidates_are_generated(model_and_batch, vocabulary):
    model, variables, batch = model_and_batch
    decoder = BatchDecoder(
        model,
        make_spec(candidates=lambda: CANDIDATES, decoding=DecodingConfig(max_length=12)),
        vocabulary,
    )
    found = decoder(variables, batch)
    for row in range(3):
        texts = {vocabulary.decode(ids) for ids, _ in found.hypotheses(row)}
        assert texts == set(CANDIDATES)  # five beams hold all four
        assert vocabulary.decode(found.best(row)[0]) in texts


@pytest.mark.parametrize("renormalize", [True, False])
def test_score_all_returns_the_best_scored_candidate(model_and_batch, vocabulary, renormalize):
    model, variables, batch = model_and_batch
    ids = [vocabulary.encode(text).tolist() for text in CANDIDATES]
    scores = np.asarray(make_scorer(model, ids, restrict_to_trie=renormalize)(variables, batch))
    decoder = BatchDecoder(
        model,
        make_spec(
            candidates=lambda: CANDIDATES,
            score_all=True,
            decoding=DecodingConfig(renormalize=renormalize),
        ),
        vocabulary,
    )
    found = decoder(variables, batch)
    for row in range(3):
        best, score = found.best(row)
        assert best.tolist() == ids[scores[row].argmax()]
        np.testing.assert_allclose(score, scores[row].max(), rtol=1e-5)


def test_samples_depend_only_on_the_seed_and_the_batch_number(model_and_batch, vocabulary):
    model, variables, batch = model_and_batch
    config = DecodingConfig(method="sample", beam_size=4, max_length=5)

    def draw(seed, number):
        decoder = BatchDecoder(model, make_spec(decoding=config), vocabulary, seed=seed)
        return decoder(variables, batch, number).tokens

    np.testing.assert_array_equal(draw(0, 3), draw(0, 3))
    assert (draw(0, 3) != draw(0, 4)).any() and (draw(0, 3) != draw(1, 3)).any()


def test_an_empty_list_of_candidates_is_reported(model_and_batch, vocabulary):
    with pytest.raises(ValueError, match="task 'task': its list of candidates is empty"):
        BatchDecoder(model_and_batch[0], make_spec(candidates=lambda: []), vocabulary)
