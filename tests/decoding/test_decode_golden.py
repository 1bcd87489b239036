"""Every decoding run of the reference implementation: equal tokens, scores within 1e-4.

Logits of this model are of size 15, and float32 sums of a few hundred terms in another order differ
by 3e-5 (see test_model_golden.py). Scores are means of log-probabilities, or sums over up to 65
tokens with independent errors.
"""

import functools
import json

import jax
import numpy as np
import pytest

from ofa_jax.decoding import DecodingConfig, Trie, make_decoder, make_scorer
from ofa_jax.decoding.search import generate
from ofa_jax.interop import from_fairseq

CLOSE = dict(rtol=0, atol=1e-4)
LARGE_TRIE_RUNS = (
    "beam5_trie",
    "beam5_trie_unnormalized",
    "beam5_trie_zeroshot",
    "beam5_trie_prefix",
)
SMALL_TRIE_RUNS = ("beam3_trie_3answers", "beam2_trie_3answers")


class Golden:
    """Decoding runs of the reference implementation, their model, and its encoded inputs."""

    def __init__(self, official, folder):
        description = json.loads((folder / "decode.json").read_text())
        self.runs, self.candidates = description["runs"], description["answers"]
        self.model = official.model
        self.tries = {
            name: Trie.from_sequences(description[key], official.config.vocab_size)
            for key, names in (("answers", LARGE_TRIE_RUNS), ("small_answers", SMALL_TRIE_RUNS))
            for name in names
        }
        overrides = dict(np.load(folder / "weight_overrides.npz"))
        overrides |= {
            key: overrides["encoder.embed_tokens.weight"]
            for key in ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
            if key in official.state_dict
        }
        self.variables = from_fairseq(official.state_dict | overrides, official.config)
        inputs = np.load(folder / "inputs.npz")
        self.batch = {
            "encoder_input_tokens": inputs["src_tokens"].astype(np.int32),
            "encoder_images": inputs["patch_images"].transpose(0, 2, 3, 1),
            "encoder_image_mask": inputs["patch_masks"],
        }
        self.encoded = official.encode(self.variables, self.batch)

    def config(self, name):
        """Returns the arguments of a run as a DecodingConfig."""
        args = dict(self.runs[name]["args"])
        gen_code, zero_shot = args.pop("gen_code", False), args.pop("zero_shot", False)
        names = {
            "max_len_b": "max_length",
            "max_len_a": "max_length_per_source_token",
            "min_len": "min_length",
            "len_penalty": "length_penalty",
        }
        ours = {names.get(key, key): value for key, value in args.items()}
        if "constraint_range" in ours:
            first, end = ours["constraint_range"].split(",")
            ours["constraint_range"] = (int(first), int(end))
        return DecodingConfig(exact_length=gen_code, renormalize=not zero_shot, **ours)

    def decode(self, config, trie=None, prefix=None, samples=None, is_image_code=None):
        """Decodes the encoded inputs, since the encoder takes most of the time to compile."""
        encoded = self.encoded if samples is None else self.encoded.select(np.array(samples))
        source_length = self.batch["encoder_input_tokens"].shape[1]
        max_output_length = config.max_output_length(source_length, self.model.config)
        return jax.tree.map(
            np.asarray,
            _generate(
                self.variables,
                encoded,
                config.dynamic_params,
                trie,
                prefix,
                is_image_code,
                model=self.model,
                config=config.static_config,
                max_output_length=max_output_length,
            ),
        )

    def run(self, name):
        """Returns our hypotheses of a run and the expected ones."""
        run, config = self.runs[name], self.config(name)
        prefix = run["prefix_tokens"]
        prefix = None if prefix is None else np.array(prefix, np.int32)
        is_image_code = np.ones(len(run["hypos"]), bool) if config.exact_length else None
        trie = self.tries.get(name)
        return self.decode(config, trie, prefix, run["samples"], is_image_code), run["hypos"]


@functools.partial(jax.jit, static_argnames=("model", "config", "max_output_length"))
def _generate(
    variables,
    encoded,
    dynamic_params,
    trie,
    prefix,
    is_image_code,
    *,
    model,
    config,
    max_output_length,
):
    return generate(
        model,
        variables,
        encoded,
        config,
        dynamic_params,
        max_output_length,
        trie,
        prefix,
        is_image_code,
    )


@pytest.fixture(scope="module")
def decoding(official, golden):
    return Golden(official, golden / "decode")


def names_of_runs():
    import pathlib

    path = pathlib.Path(__file__).parent.parent / "golden" / "decode" / "decode.json"
    return [name for name, run in json.loads(path.read_text())["runs"].items() if "hypos" in run]


def assert_same(ours, theirs):
    for row, hypotheses in enumerate(theirs):
        assert ours.tokens.shape[1] == len(hypotheses)
        for place, expected in enumerate(hypotheses):
            length = len(expected["tokens"])
            assert ours.lengths[row, place] == length
            assert ours.tokens[row, place, :length].tolist() == expected["tokens"]
            assert (ours.tokens[row, place, length:] == 1).all()
            np.testing.assert_allclose(ours.scores[row, place], expected["score"], **CLOSE)
            np.testing.assert_allclose(
                ours.token_scores[row, place, :length], expected["positional_scores"], **CLOSE
            )
            assert not ours.token_scores[row, place, length:].any()


def test_logits_with_the_changed_weights_match_the_reference(decoding, golden):
    case = np.load(golden / "decode" / "teacher_forced.npz")
    logits = jax.jit(functools.partial(decoding.model.apply, method="decode"))(
        decoding.variables, decoding.encoded, case["prev_output_tokens"].astype(np.int32)
    )
    np.testing.assert_allclose(logits, case["logits"], **CLOSE)


@pytest.mark.parametrize("name", names_of_runs())
def test_hypotheses_match_the_reference(decoding, name):
    assert_same(*decoding.run(name))


@pytest.mark.parametrize("normalize", [False, True])
def test_all_sequences_of_a_trie_are_found_when_there_are_more_beams(decoding, normalize):
    """The reference crashes here; with as many beams as sequences it finds the same three."""
    config = DecodingConfig(beam_size=5, max_length=10, normalize_scores=normalize)
    trie = decoding.tries["beam3_trie_3answers"]
    found = decoding.decode(config, trie)
    assert ((found.lengths > 0) == [True, True, True, False, False]).all()
    assert (found.scores[:, 3:] == -np.inf).all() and (found.tokens[:, 3:] == 1).all()
    for row, hypotheses in enumerate(decoding.runs["beam3_trie_3answers"]["hypos"]):
        expected = {tuple(one["tokens"]): one["score"] for one in hypotheses}
        ours = {
            tuple(tokens[:length].tolist()): score
            for tokens, length, score in zip(
                found.tokens[row], found.lengths[row], found.scores[row], strict=True
            )
            if length
        }
        assert ours.keys() == expected.keys()
        for tokens, score in ours.items():
            total = score * (len(tokens) if normalize else 1)
            np.testing.assert_allclose(total, expected[tokens], **CLOSE)


def test_the_compiled_decoder_matches_the_reference(decoding):
    """One compiled program goes from pixels to tokens; the settings of two runs share it."""
    for name in ("beam5", "beam5_lenpen0.5"):
        decode = make_decoder(decoding.model, decoding.config(name))
        assert_same(
            jax.tree.map(np.asarray, decode(decoding.variables, decoding.batch)),
            decoding.runs[name]["hypos"],
        )


@pytest.mark.parametrize("at_once", [5, 32])
def test_candidate_scores_match_the_reference(decoding, at_once):
    score = make_scorer(decoding.model, decoding.candidates, candidates_at_once=at_once)
    scores = score(decoding.variables, decoding.batch)
    expected = np.array(decoding.runs["allcand_scores"]["scores"])
    np.testing.assert_allclose(scores, expected, **CLOSE)
    assert scores.argmax(axis=1).tolist() == decoding.runs["allcand_scores"]["argmax"]
