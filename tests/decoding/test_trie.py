"""The flat trie against a trie of Python sets and dictionaries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.decoding import Trie
from ofa_jax.decoding.trie import MANY_CHILDREN

EOS = 2


class NaiveTrie:
    """Maps each prefix to the tokens that may follow."""

    def __init__(self, sequences):
        self.follow = {}
        for sequence in sequences:
            sequence = (*map(int, sequence), EOS)
            for place, token in enumerate(sequence):
                self.follow.setdefault(sequence[:place], set()).add(token)


def random_sequences(count, vocab_size, seed=0, common=40):
    """Returns sequences with common prefixes: most tokens are among a few common ones."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 7, count)
    tokens = rng.integers(4, vocab_size, (count, 6))
    frequent = rng.integers(4, 4 + common, (count, 6))
    tokens = np.where(rng.random((count, 6)) < 0.6, frequent, tokens)
    return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]


@jax.jit
def walk(trie, tokens):
    """Returns the nodes before and after each token, int32 [A, 1 + L]."""

    def step(nodes, token):
        after = trie.advance(nodes, token)
        return after, after

    start = jnp.zeros(len(tokens), jnp.int32)
    _, nodes = jax.lax.scan(step, start, tokens.T)
    return jnp.concatenate([start[None], nodes]).T


@jax.jit
def allowed(trie, nodes):
    return trie.allowed(nodes)


@pytest.mark.parametrize(("count", "vocab_size"), [(1, 10), (12, 31), (300, 97), (3129, 1000)])
def test_allowed_tokens_equal_those_of_a_naive_trie(count, vocab_size):
    sequences = random_sequences(count, vocab_size, common=min(40, vocab_size - 4))
    trie, naive = Trie.from_sequences(sequences, vocab_size), NaiveTrie(sequences)
    chosen = sequences[:: max(1, count // 40)]
    tokens = np.full((len(chosen), 6), EOS, np.int32)
    for row, sequence in enumerate(chosen):
        tokens[row, : len(sequence)] = sequence
    nodes = np.asarray(walk(trie, tokens))
    masks = np.asarray(allowed(trie, nodes))
    for row, sequence in enumerate(chosen):
        for place in range(len(sequence) + 1):
            assert set(np.flatnonzero(masks[row, place])) == naive.follow[tuple(sequence[:place])]
        assert not masks[row, len(sequence) + 1 :].any()  # nothing follows eos


def test_unknown_tokens_lead_to_a_leaf():
    sequences = [[159], [159, 245], [93, 220]]
    trie, naive = Trie.from_sequences(sequences, 300), NaiveTrie(sequences)
    for prefix in ((), (159,), (93,)):
        tokens = np.array([[*prefix, token] for token in range(300)], np.int32)
        masks = np.asarray(allowed(trie, walk(trie, tokens)[:, -1]))
        for token in range(300):
            expected = naive.follow.get((*prefix, token), set()) if token != EOS else set()
            assert set(np.flatnonzero(masks[token])) == expected


def test_nodes_are_numbered_as_in_the_module_docstring():
    trie = Trie.from_sequences([[159], [159, 245], [93, 220]], 300)
    assert trie.tokens.tolist() == [-1, 93, 159, 220, 2, 245, 2, 2]
    assert trie.first_child.tolist() == [1, 3, 4, 6, 7, 7, 8, 8, 8]


@pytest.mark.parametrize("children", [MANY_CHILDREN - 1, MANY_CHILDREN, MANY_CHILDREN + 1])
def test_bitmaps_of_wide_nodes_allow_the_same_tokens(children):
    sequences = [[7, 64 + 2 * k] for k in range(children)]
    trie = Trie.from_sequences(sequences, 200)
    assert trie.bits.shape == (int(children > MANY_CHILDREN), 7)
    mask = np.asarray(allowed(trie, np.int32(1)))
    assert np.flatnonzero(mask).tolist() == [sequence[1] for sequence in sequences]


@pytest.mark.parametrize(("count", "megabytes"), [(1000, 0.1), (3129, 0.5), (100_000, 6)])
def test_memory_is_small_with_the_published_vocabulary(count, megabytes):
    """Sequences have up to 6 tokens out of 59,457; the root and common tokens have many children.

    This takes 12 bytes for each of up to four nodes per sequence, and 7.4 kB for each of a few
    dozen nodes with more than 32 children.
    """
    trie = Trie.from_sequences(random_sequences(count, 59457), 59457)
    assert trie.nbytes < megabytes * 1e6
    roots = np.asarray(allowed(trie, np.zeros((2, 5), np.int32)))
    assert (roots.sum(axis=-1) == trie.first_child[1] - 1).all()


def test_duplicates_and_order_do_not_matter():
    sequences = random_sequences(50, 40, common=20)
    trees = [
        Trie.from_sequences(given, 40) for given in (sequences, sequences[::-1] + sequences[:9])
    ]
    jax.tree.map(np.testing.assert_array_equal, *trees)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "at least one sequence"),
        ([[5], []], "sequence 1 has no tokens"),
        ([[5], [6, 40]], "hold the token 40, the vocabulary has the ids 0 to 39"),
        ([[-1]], "hold the token -1"),
    ],
)
def test_invalid_sequences_raise_clear_errors(sequences, message):
    with pytest.raises(ValueError, match=message):
        Trie.from_sequences(sequences, 40)


def test_allowed_along_known_targets():
    sequences = random_sequences(40, 60, seed=3)
    trie, naive = Trie.from_sequences(sequences, 60), NaiveTrie(sequences)
    pad, front, longest = 1, 2, 10
    targets = np.full((len(sequences) + 1, longest), pad, np.int32)
    for row, sequence in enumerate(sequences):
        # Padding in front, as in place of a prompt; every third target lacks its eos.
        ended = [*sequence, EOS][: len(sequence) + (row % 3 > 0)]
        targets[row, front : front + len(ended)] = ended
    unknown = [59, 58, 59, EOS]
    targets[-1, : len(unknown)] = unknown
    masks = np.asarray(jax.jit(Trie.allowed_along)(trie, targets))
    for row, sequence in enumerate(sequences):
        for place, token in enumerate(targets[row]):
            prefix = tuple(sequence[: max(place - front, 0)])
            if token != pad:
                expected = naive.follow[prefix]
                assert set(np.flatnonzero(masks[row, place])) == expected, (row, place)
                assert token in expected
    # The tokens of a target outside of the trie are allowed too, which keeps its loss finite.
    first = naive.follow[()] | {59}
    assert set(np.flatnonzero(masks[-1, 0])) == first
    assert all(masks[-1, place, token] for place, token in enumerate(unknown))
    assert masks.any(axis=-1).all()
