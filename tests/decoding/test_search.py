"""Properties of decoding that hold for any weights.

Token scores equal those of a full pass: both are float32 sums of the same terms in another order,
of logits of order 1 to 10, and agree to 1e-5.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from official_model import random_variables
from simulated_devices import run_on_eight_devices
from small_model import DEEP, SMALL, random_batch

from ofa_jax.decoding import DecodingConfig, Trie, make_decoder, make_scorer, search
from ofa_jax.model import OFA, layout

SAME = dict(rtol=1e-5, atol=2e-5)
MODEL = OFA(SMALL)
SEQUENCES = [[5], [5, 6], [5, 7, 8], [9, 6], [30], [31, 5, 5], [40, 41]]


@pytest.fixture(scope="module")
def variables():
    return uncertain_variables(SMALL)


def uncertain_variables(config):
    """Returns variables with small logits, so that no token is certain."""
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
    """Returns the log-probability of each of the tokens [B, G, T], computed without a cache."""
    size, count, length = tokens.shape
    rows = np.repeat(np.arange(size), count)
    wide = {name: array[rows] for name, array in batch.items()}
    flat = tokens.reshape(-1, length)
    wide["decoder_input_tokens"] = jnp.pad(flat, ((0, 0), (1, 0)))[:, :-1]
    log_probs = jax.nn.log_softmax(MODEL.apply(variables, wide))
    picked = jnp.take_along_axis(log_probs, flat[..., None], -1)[..., 0]
    return jnp.where(flat != 1, picked, 0).reshape(tokens.shape)


def assert_scores_of_the_full_pass(variables, batch, hypotheses):
    valid = hypotheses.lengths > 0
    expected = np.asarray(full_pass(variables, batch, hypotheses.tokens))
    np.testing.assert_allclose(hypotheses.token_scores[valid], expected[valid], **SAME)
    totals = expected.sum(axis=-1) / np.maximum(hypotheses.lengths, 1)
    np.testing.assert_allclose(hypotheses.scores[valid], totals[valid], **SAME)


@pytest.mark.parametrize("method", ["beam", "sample"])
def test_scores_equal_those_of_the_full_pass(variables, method):
    config = DecodingConfig(method, beam_size=4, max_length=9)
    batch = text_batch() | {"decoder_code_mask": np.array([True, False, True])}
    found = run(variables, config, batch=batch, seed=0)
    assert (found.lengths > 0).all()
    assert_scores_of_the_full_pass(variables, batch, found)
    ends = np.take_along_axis(found.tokens, found.lengths[..., None] - 1, axis=-1)
    assert (ends == 2).all() and (np.sum(found.tokens == 2, axis=-1) == 1).all()
    assert ((found.tokens == 1) == (np.arange(10) >= found.lengths[..., None])).all()
    if method == "beam":
        assert (np.diff(found.scores, axis=1) <= 0).all()


def test_examples_are_decoded_independently_of_their_batch(variables):
    """Another prefix width and batch size compile another program with the same results."""
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
        # While the prefix is generated, only the forced hypothesis exists.
        assert len({tuple(tokens) for tokens in together.tokens[row].tolist()}) == 3


def test_beam_search_on_a_trie_finds_all_candidates_with_their_scores(variables):
    trie = Trie.from_sequences(SEQUENCES, 60)
    for prefix in (None, np.array([[10, 20], [40, 1], [1, 1]], np.int32)):
        batch = text_batch() | ({} if prefix is None else {"decoder_prefix_tokens": prefix})
        scores = np.asarray(make_scorer(MODEL, SEQUENCES, candidates_at_once=3)(variables, batch))
        config = DecodingConfig(beam_size=7, max_length=6, normalize_scores=False)
        found = run(variables, config, trie, batch)
        for row in range(3):
            width = 0 if prefix is None else int((prefix[row] != 1).sum())
            ours = {}
            for place, length in enumerate(found.lengths[row]):
                sequence = found.tokens[row, place, width : length - 1].tolist()
                ours[SEQUENCES.index(sequence)] = found.token_scores[row, place, width:].sum()
            assert len(ours) == len(SEQUENCES)
            for index, score in ours.items():
                np.testing.assert_allclose(score, scores[row, index], **SAME)


def test_candidates_can_be_scored_without_restriction_to_the_trie(variables):
    batch = text_batch()
    tokens = np.full((3, len(SEQUENCES), 4), 1, np.int32)
    for row, sequence in enumerate(SEQUENCES):
        tokens[:, row, : len(sequence) + 1] = [*sequence, 2]
    expected = np.asarray(full_pass(variables, batch, tokens)).sum(axis=-1)
    scores = make_scorer(MODEL, SEQUENCES, candidates_at_once=4, restrict_to_trie=False)(
        variables, batch
    )
    np.testing.assert_allclose(scores, expected, **SAME)


def frequencies(tokens, size=60):
    return np.stack([np.bincount(row, minlength=size) for row in tokens]) / tokens.shape[1]


def assert_drawn_from(observed, expected, draws):
    """Allows five standard deviations, exceeded with a probability of one in a million."""
    slack = 5 * np.sqrt(expected * (1 - expected) / draws) + 5 / draws
    assert (np.abs(observed - expected) <= slack).all()


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.6}, {"top_k": 12, "top_p": 0.7}]
)
def test_samples_follow_the_configured_distribution(variables, options):
    draws, batch = 4000, text_batch()
    logits = np.asarray(
        jax.jit(MODEL.apply)(
            variables, batch | {"decoder_input_tokens": np.zeros((3, 1), np.int32)}
        )
    )[:, 0]
    logits = logits / options.get("temperature", 1.0)
    logits[:, 1:3] = -np.inf  # no padding, and min_length forbids eos
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


def test_samples_on_a_trie_follow_the_candidate_probabilities(variables):
    draws, trie = 2000, Trie.from_sequences(SEQUENCES, 60)
    config = DecodingConfig("sample", beam_size=draws, max_length=4)
    found = run(variables, config, trie, seed=1)
    expected = np.exp(np.asarray(make_scorer(MODEL, SEQUENCES, trie)(variables, text_batch())))
    np.testing.assert_allclose(expected.sum(axis=1), 1, rtol=1e-5)
    drawn = np.array(
        [
            [
                SEQUENCES.index(tokens[: length - 1].tolist())
                for tokens, length in zip(*row, strict=True)
            ]
            for row in zip(found.tokens, found.lengths, strict=True)
        ]
    )
    assert_drawn_from(frequencies(drawn, len(SEQUENCES)), expected, draws)


def test_samples_are_determined_by_the_key(variables):
    config = DecodingConfig("sample", beam_size=6, max_length=8)
    first, again, other = (run(variables, config, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert (first.tokens != other.tokens).any()
    assert len({tuple(tokens) for tokens in first.tokens[0].tolist()}) > 1


def test_samples_that_cannot_end_are_invalid(variables):
    """Sequences of two tokens exceed max_length = 1."""
    trie = Trie.from_sequences([[5], [6, 7]], 60)
    found = run(variables, DecodingConfig("sample", beam_size=50, max_length=1), trie, seed=0)
    ends = found.tokens[..., 0] == 5
    assert ends.any() and not ends.all()
    np.testing.assert_array_equal(found.lengths, np.where(ends, 2, 0))
    assert (found.scores[~ends] == -np.inf).all() and (found.tokens[~ends] == 1).all()


class StepRecorder(OFA):
    """Records every step that is executed."""

    steps = []

    def decode_step(self, tokens, cache, position):
        jax.debug.callback(lambda position: self.steps.append(int(position)), position)
        return super().decode_step(tokens, cache, position)


@pytest.mark.parametrize(
    "options", [{"beam_size": 4}, {"method": "sample", "beam_size": 4}, {"beam_size": 2}]
)
def test_decoding_stops_when_every_example_is_done(variables, options):
    """All sequences have two tokens and eos, so three of the thirty steps suffice.

    Two beams are done when two sequences are finished; four beams, when none is left to continue.
    """
    trie = Trie.from_sequences([[5, 6], [5, 7], [9, 6]], 60)
    StepRecorder.steps.clear()
    decode = make_decoder(StepRecorder(SMALL), DecodingConfig(max_length=29, **options), trie)
    found = decode(variables, text_batch(), jax.random.key(0))
    jax.block_until_ready(found)
    jax.effects_barrier()
    assert sorted(StepRecorder.steps) == [0, 1, 2]
    assert found.tokens.shape[-1] == 30


def test_dynamic_settings_share_a_program(variables):
    before = search._encode_and_generate._cache_size()
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
    assert search._encode_and_generate._cache_size() == before + 1


PROGRAM = """
import json, sys
import jax, numpy as np
from official_model import random_variables
from test_search import SEQUENCES, MODEL, text_batch
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
        trie = Trie.from_sequences(SEQUENCES, 60)
        found = [
            make_decoder(
                MODEL, DecodingConfig(beam_size=3, max_length=6, no_repeat_ngram_size=2), trie)(
                    variables, global_batch),
            make_decoder(MODEL, DecodingConfig("sample", beam_size=3, max_length=6, top_k=9))(
                variables, global_batch, jax.random.key(0))]
        scores = make_scorer(MODEL, SEQUENCES, trie, 4)(variables, global_batch)
    results[name] = {
        "tokens": [np.asarray(x.tokens).tolist() for x in found],
        "scores": [np.asarray(x).tolist() for x in (*(x.scores for x in found), scores)],
        "rows": [x.addressable_shards[0].data.shape[0]
                 for x in (*(x.tokens for x in found), scores)]}
print(json.dumps(results))
"""


@pytest.mark.slow
def test_meshes_decode_equally_and_keep_the_batch_sharded():
    results = run_on_eight_devices(PROGRAM)
    for name, rows in (("data", 1), ("mixed", 2)):
        assert results[name]["tokens"] == results["one"]["tokens"]
        for ours, one in zip(results[name]["scores"], results["one"]["scores"], strict=True):
            np.testing.assert_allclose(ours, one, rtol=1e-5, atol=1e-4)
        assert results[name]["rows"] == [rows] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "greedy"}, "For greedy search use method = 'beam' with beam_size = 1"),
        ({"beam_size": 0}, "beam_size is 0; it must be at least 1"),
        ({"temperature": 0.0}, "must be positive"),
        ({"top_p": 0.0}, "above 0 and at most 1"),
        ({"top_k": 5}, "are for sampling"),
        ({"constraint_range": (0, 9)}, "constraint_range is"),
        ({"constraint_range": [9, 9]}, "constraint_range is"),
        ({"constraint_range": (9, 61)}, "exceeds the vocabulary of 60 tokens"),
        ({"beam_size": 30}, "needs more than 60 tokens; the vocabulary has 60"),
        ({"method": "sample", "top_k": 61}, "only 60 tokens"),
        ({"max_length": 40}, "output with its eos is 41 tokens long, the model has 40 positions"),
        ({"min_length": 17}, "min_length 17 is more than the longest output, 16 tokens"),
        ({"method": "sample"}, "give the decoder a key"),
    ],
)
def test_invalid_settings_raise_clear_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        make_decoder(MODEL, DecodingConfig(**settings))(None, text_batch())


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (np.zeros((2, 3), np.int32), r"give \[3, P\]"),
        (np.full((3, 17), 5, np.int32), "17 tokens long, the output at most 16"),
        (np.full((3, 2), 60, np.int32), "reaches from 60 to 60"),
        (np.array([[1, 5]] * 3, np.int32), "padding before a token"),
    ],
)
def test_invalid_prefixes_raise_clear_errors(prefix, message):
    batch = text_batch() | {"decoder_prefix_tokens": prefix}
    for decode in (make_decoder(MODEL, DecodingConfig()), make_scorer(MODEL, SEQUENCES)):
        if "at most" in message and decode.__qualname__.startswith("make_scorer"):
            continue  # a scorer has room for any prefix
        with pytest.raises(ValueError, match=message):
            decode(None, batch)


def test_tries_of_another_vocabulary_or_with_a_range_raise():
    with pytest.raises(ValueError, match="made for 50 tokens, OFAConfig.vocab_size is 60"):
        make_decoder(MODEL, DecodingConfig(), Trie.from_sequences(SEQUENCES, 50))
    with pytest.raises(ValueError, match="not both"):
        make_decoder(
            MODEL, DecodingConfig(constraint_range=(5, 9)), Trie.from_sequences(SEQUENCES, 60)
        )


def test_stacked_layers_and_padded_vocabularies_decode_equally():
    """The program converts the variables to the plain layout."""
    stacked, variables = DEEP.replace(scan_layers=True, vocab_multiple=8), uncertain_variables(DEEP)
    batch, config = text_batch(), DecodingConfig(beam_size=2, max_length=4)
    expected = make_decoder(OFA(DEEP), config)(variables, batch)
    found = make_decoder(OFA(stacked), config)(layout.from_plain(variables, stacked), batch)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, **SAME)
