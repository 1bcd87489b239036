"""What must hold of answers whatever the weights are.

A token's score must be what the full pass gives it; both are float32 sums of the same terms in
another order, of logits of order 1 to 10: 1e-5.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from official_model import random_variables
from simulated_devices import results_of
from small_model import DEEP, SMALL, random_batch

from ofa_jax.decoding import DecodingConfig, Trie, make_decoder, make_scorer, search
from ofa_jax.model import OFA, layout

SAME = dict(rtol=1e-5, atol=2e-5)
MODEL = OFA(SMALL)
ANSWERS = [[5], [5, 6], [5, 7, 8], [9, 6], [30], [31, 5, 5], [40, 41]]


@pytest.fixture(scope="module")
def variables():
    return uncertain_variables(SMALL)


def uncertain_variables(config):
    """With small logits: no token is certain."""
    variables = random_variables(config)
    embedding = variables["params"]["token_embedding"]["embedding"]
    variables["params"]["token_embedding"]["embedding"] = 0.3 * embedding
    return variables


def text_batch(size=3, **options):
    batch = random_batch(size=size, pixels=0, codes=False, **options)
    del batch["decoder_input_tokens"]
    return batch


def run(variables, config, trie=None, batch=None, seed=None):
    decode = make_decoder(MODEL, config, trie)
    rng = None if seed is None else jax.random.key(seed)
    return jax.tree.map(np.asarray, decode(variables, batch or text_batch(), rng))


@jax.jit
def full_pass(variables, batch, tokens):
    """Log-probabilities of each token of tokens [B, G, T] without a cache, float32 [B, G, T]."""
    size, count, length = tokens.shape
    rows = np.repeat(np.arange(size), count)
    wide = {name: array[rows] for name, array in batch.items()}
    flat = tokens.reshape(-1, length)
    wide["decoder_input_tokens"] = jnp.pad(flat, ((0, 0), (1, 0)))[:, :-1]
    log_probs = jax.nn.log_softmax(MODEL.apply(variables, wide))
    picked = jnp.take_along_axis(log_probs, flat[..., None], -1)[..., 0]
    return jnp.where(flat != 1, picked, 0).reshape(tokens.shape)


def assert_scored_by_the_full_pass(variables, batch, hypotheses):
    there = hypotheses.lengths > 0
    expected = np.asarray(full_pass(variables, batch, hypotheses.tokens))
    np.testing.assert_allclose(hypotheses.token_scores[there], expected[there], **SAME)
    totals = expected.sum(axis=-1) / np.maximum(hypotheses.lengths, 1)
    np.testing.assert_allclose(hypotheses.scores[there], totals[there], **SAME)


@pytest.mark.parametrize("method", ["beam", "sample"])
def test_scores_are_those_of_the_full_pass(variables, method):
    config = DecodingConfig(method, beam_size=4, max_length=9)
    batch = text_batch() | {"decoder_code_mask": np.array([True, False, True])}
    found = run(variables, config, batch=batch, seed=0)
    assert (found.lengths > 0).all()
    assert_scored_by_the_full_pass(variables, batch, found)
    ends = np.take_along_axis(found.tokens, found.lengths[..., None] - 1, axis=-1)
    assert (ends == 2).all() and (np.sum(found.tokens == 2, axis=-1) == 1).all()
    assert ((found.tokens == 1) == (np.arange(10) >= found.lengths[..., None])).all()
    if method == "beam":
        assert (np.diff(found.scores, axis=1) <= 0).all()


def test_an_example_is_answered_alike_whatever_is_beside_it(variables):
    """A wide prefix and another batch size make another program; the answers stay."""
    config = DecodingConfig(beam_size=3, max_length=8)
    batch = text_batch() | {
        "decoder_prefix_tokens": np.array([[10, 20, 30], [40, 1, 1], [1, 1, 1]], np.int32)
    }
    together = run(variables, config, batch=batch)
    for row, width in enumerate((3, 1, 0)):
        alone = {name: array[row : row + 1] for name, array in batch.items()}
        prefix = alone.pop("decoder_prefix_tokens")[:, :width]
        if width:
            alone["decoder_prefix_tokens"] = prefix
        alone = run(variables, config, batch=alone)
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])
        np.testing.assert_allclose(together.scores[row], alone.scores[0], **SAME)
        assert (together.tokens[row, :, :width] == prefix).all()
        # Other hypotheses than the forced one do not exist while the prefix is written.
        assert len({tuple(tokens) for tokens in together.tokens[row].tolist()}) == 3


def test_enough_beams_on_a_trie_find_what_scoring_all_candidates_finds(variables):
    trie = Trie.from_answers(ANSWERS, 60)
    for prefix in (None, np.array([[10, 20], [40, 1], [1, 1]], np.int32)):
        batch = text_batch() | ({} if prefix is None else {"decoder_prefix_tokens": prefix})
        scores = np.asarray(make_scorer(MODEL, ANSWERS, candidates_at_once=3)(variables, batch))
        config = DecodingConfig(beam_size=7, max_length=6, normalize_scores=False)
        found = run(variables, config, trie, batch)
        for row in range(3):
            width = 0 if prefix is None else int((prefix[row] != 1).sum())
            ours = {}
            for place, length in enumerate(found.lengths[row]):
                answer = found.tokens[row, place, width : length - 1].tolist()
                ours[ANSWERS.index(answer)] = found.token_scores[row, place, width:].sum()
            assert len(ours) == len(ANSWERS)
            for index, score in ours.items():
                np.testing.assert_allclose(score, scores[row, index], **SAME)


def test_candidates_can_be_scored_with_the_whole_vocabulary(variables):
    batch = text_batch()
    tokens = np.full((3, len(ANSWERS), 4), 1, np.int32)
    for row, answer in enumerate(ANSWERS):
        tokens[:, row, : len(answer) + 1] = [*answer, 2]
    expected = np.asarray(full_pass(variables, batch, tokens)).sum(axis=-1)
    scores = make_scorer(MODEL, ANSWERS, candidates_at_once=4, restrict=False)(variables, batch)
    np.testing.assert_allclose(scores, expected, **SAME)


def frequencies(tokens, size=60):
    return np.stack([np.bincount(row, minlength=size) for row in tokens]) / tokens.shape[1]


def assert_drawn_from(observed, expected, draws):
    """Five standard deviations of a binomial share; one chance in a million for each of 180."""
    slack = 5 * np.sqrt(expected * (1 - expected) / draws) + 5 / draws
    assert (np.abs(observed - expected) <= slack).all()


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.6}, {"top_k": 12, "top_p": 0.7}]
)
def test_samples_are_drawn_from_the_distribution_asked_for(variables, options):
    draws, batch = 4000, text_batch()
    logits = np.asarray(
        jax.jit(MODEL.apply)(
            variables, batch | {"decoder_input_tokens": np.zeros((3, 1), np.int32)}
        )
    )[:, 0]
    logits = logits / options.get("temperature", 1.0)
    logits[:, 1:3] = -np.inf  # no padding, and min_length bars eos
    order = np.argsort(-logits, axis=1)
    ranks = np.argsort(order, axis=1)
    logits[ranks >= options.get("top_k", 60)] = -np.inf
    probs = np.array(jax.nn.softmax(logits))
    sorted_probs = np.take_along_axis(probs, order, axis=1)
    before = np.cumsum(sorted_probs, axis=1) - sorted_probs
    kept = np.take_along_axis(before < options.get("top_p", 1.0), ranks, axis=1)
    expected = np.where(kept, probs, 0)
    expected /= expected.sum(axis=1, keepdims=True)
    config = DecodingConfig("sample", beam_size=draws, max_length=1, **options)
    found = run(variables, config, seed=3)
    observed = frequencies(found.tokens[:, :, 0])
    assert not observed[expected == 0].any()
    assert_drawn_from(observed, expected, draws)


def test_samples_on_a_trie_are_answers_as_often_as_they_are_probable(variables):
    draws, trie = 2000, Trie.from_answers(ANSWERS, 60)
    config = DecodingConfig("sample", beam_size=draws, max_length=4)
    found = run(variables, config, trie, seed=1)
    expected = np.exp(np.asarray(make_scorer(MODEL, ANSWERS, trie)(variables, text_batch())))
    np.testing.assert_allclose(expected.sum(axis=1), 1, rtol=1e-5)
    drawn = np.array(
        [
            [
                ANSWERS.index(tokens[: length - 1].tolist())
                for tokens, length in zip(*row, strict=True)
            ]
            for row in zip(found.tokens, found.lengths, strict=True)
        ]
    )
    assert_drawn_from(frequencies(drawn, len(ANSWERS)), expected, draws)


def test_a_key_decides_the_samples(variables):
    config = DecodingConfig("sample", beam_size=6, max_length=8)
    first, again, other = (run(variables, config, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert (first.tokens != other.tokens).any()
    assert len({tuple(tokens) for tokens in first.tokens[0].tolist()}) > 1


def test_a_sample_that_cannot_end_is_not_there(variables):
    """Answers of two tokens do not fit into one."""
    trie = Trie.from_answers([[5], [6, 7]], 60)
    found = run(variables, DecodingConfig("sample", beam_size=50, max_length=1), trie, seed=0)
    ends = found.tokens[..., 0] == 5
    assert ends.any() and not ends.all()
    np.testing.assert_array_equal(found.lengths, np.where(ends, 2, 0))
    assert (found.scores[~ends] == -np.inf).all() and (found.tokens[~ends] == 1).all()


class Counting(OFA):
    """Notes every step that is really taken."""

    steps = []

    def decode_step(self, tokens, cache, position):
        jax.debug.callback(lambda position: self.steps.append(int(position)), position)
        return super().decode_step(tokens, cache, position)


@pytest.mark.parametrize(
    "options", [{"beam_size": 4}, {"method": "sample", "beam_size": 4}, {"beam_size": 2}]
)
def test_it_stops_when_every_example_is_done(variables, options):
    """All answers are of two tokens and eos, so that three steps of thirty are enough.

    Two beams are done as soon as two answers are; four never are, for there are but three.
    """
    trie = Trie.from_answers([[5, 6], [5, 7], [9, 6]], 60)
    Counting.steps.clear()
    decode = make_decoder(Counting(SMALL), DecodingConfig(max_length=29, **options), trie)
    found = decode(variables, text_batch(), jax.random.key(0))
    jax.block_until_ready(found)
    jax.effects_barrier()
    assert sorted(Counting.steps) == [0, 1, 2]
    assert found.tokens.shape[-1] == 30


def test_settings_that_are_numbers_share_a_program(variables):
    before = search._program._cache_size()
    config = DecodingConfig(beam_size=2, max_length=3)
    for changed in (
        config,
        config.replace(length_penalty=0.7),
        config.replace(min_length=3),
        config.replace(normalize_scores=False),
        config.replace(temperature=2.0),
        config.replace(unk_penalty=1.0),
    ):
        run(variables, changed)
    assert search._program._cache_size() == before + 1


PROGRAM = """
import json, sys
import jax, numpy as np
from official_model import random_variables
from test_search import ANSWERS, MODEL, text_batch
from ofa_jax.decoding import DecodingConfig, Trie, make_decoder, make_scorer
from ofa_jax.sharding import Partitioner

variables = random_variables()
batch = text_batch(size=8)
batch["decoder_code_mask"] = np.arange(8) % 2 == 0
batch["decoder_prefix_tokens"] = np.where(np.arange(8)[:, None] % 3, [[10, 20]], [[30, 1]])
results = {}
for name, shape in {"one": (1, 1, 1), "data": (8, 1, 1), "mixed": (2, 2, 2)}.items():
    partitioner = Partitioner(*shape, devices=tuple(jax.devices()[:np.prod(shape)]))
    with partitioner.mesh_context():
        global_batch = partitioner.put_batch(batch)
        trie = Trie.from_answers(ANSWERS, 60)
        found = [
            make_decoder(
                MODEL, DecodingConfig(beam_size=3, max_length=6, no_repeat_ngram_size=2), trie)(
                    variables, global_batch),
            make_decoder(MODEL, DecodingConfig("sample", beam_size=3, max_length=6, top_k=9))(
                variables, global_batch, jax.random.key(0))]
        scores = make_scorer(MODEL, ANSWERS, trie, 4)(variables, global_batch)
    results[name] = {
        "tokens": [np.asarray(x.tokens).tolist() for x in found],
        "scores": [np.asarray(x).tolist() for x in (*(x.scores for x in found), scores)],
        "rows": [x.addressable_shards[0].data.shape[0]
                 for x in (*(x.tokens for x in found), scores)]}
print(json.dumps(results))
"""


@pytest.mark.slow
def test_every_mesh_answers_alike_and_keeps_the_batch_split():
    results = results_of(PROGRAM)
    for name, rows in (("data", 1), ("mixed", 2)):
        assert results[name]["tokens"] == results["one"]["tokens"]
        for ours, one in zip(results[name]["scores"], results["one"]["scores"], strict=True):
            np.testing.assert_allclose(ours, one, rtol=1e-5, atol=1e-4)
        assert results[name]["rows"] == [rows] * 3


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "greedy"}, "greedy is beam_size = 1"),
        ({"beam_size": 0}, "beam_size is 0; it must be at least 1"),
        ({"temperature": 0.0}, "must be positive"),
        ({"top_p": 0.0}, "at most 1 is wanted"),
        ({"top_k": 5}, "are for sampling"),
        ({"constraint_range": (0, 9)}, "constraint_range is"),
        ({"constraint_range": [9, 9]}, "constraint_range is"),
        ({"constraint_range": (9, 61)}, "leaves the vocabulary of 60 tokens"),
        ({"beam_size": 30}, "needs more than 60 tokens; the vocabulary has 60"),
        ({"method": "sample", "top_k": 61}, "only 60 tokens"),
        ({"max_length": 40}, "answer with its eos is 41 tokens long, the model has 40 positions"),
        ({"min_length": 17}, "min_length 17 is more than the longest answer, 16 tokens"),
        ({"method": "sample"}, "give the decoder a key"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_words(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_decoder(MODEL, DecodingConfig(**settings))(None, text_batch())


@pytest.mark.parametrize(
    ("prefix", "sentence"),
    [
        (np.zeros((2, 3), np.int32), r"give \[3, P\]"),
        (np.full((3, 17), 5, np.int32), "17 tokens long, the answer at most 16"),
        (np.full((3, 2), 60, np.int32), "reaches from 60 to 60"),
        (np.array([[1, 5]] * 3, np.int32), "padding before a token"),
    ],
)
def test_a_prefix_that_cannot_be_written_is_refused_in_words(prefix, sentence):
    batch = text_batch() | {"decoder_prefix_tokens": prefix}
    for answer in (make_decoder(MODEL, DecodingConfig()), make_scorer(MODEL, ANSWERS)):
        if "at most" in sentence and answer.__qualname__.startswith("make_scorer"):
            continue  # a scorer makes room for any prefix
        with pytest.raises(ValueError, match=sentence):
            answer(None, batch)


def test_a_trie_of_another_vocabulary_or_beside_a_range_is_refused():
    with pytest.raises(ValueError, match="made for 50 tokens, OFAConfig.vocab_size is 60"):
        make_decoder(MODEL, DecodingConfig(), Trie.from_answers(ANSWERS, 50))
    with pytest.raises(ValueError, match="not both"):
        make_decoder(MODEL, DecodingConfig(constraint_range=(5, 9)), Trie.from_answers(ANSWERS, 60))


def test_stacked_layers_and_added_rows_answer_alike():
    """The variables are taken apart within the program: another layout, the same answers."""
    stacked, variables = DEEP.replace(scan_layers=True, vocab_multiple=8), uncertain_variables(DEEP)
    batch, config = text_batch(), DecodingConfig(beam_size=2, max_length=4)
    expected = make_decoder(OFA(DEEP), config)(variables, batch)
    answers = make_decoder(OFA(stacked), config)(layout.from_plain(variables, stacked), batch)
    np.testing.assert_array_equal(answers.tokens, expected.tokens)
    np.testing.assert_allclose(answers.scores, expected.scores, **SAME)
