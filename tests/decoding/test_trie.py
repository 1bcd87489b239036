"""The flat trie against one of Python sets and dictionaries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.decoding import Trie
from ofa_jax.decoding.trie import MANY_CHILDREN

EOS = 2


class NaiveTrie:
    """{prefix: what may follow}."""

    def __init__(self, answers):
        self.follow = {}
        for answer in answers:
            answer = (*map(int, answer), EOS)
            for place, token in enumerate(answer):
                self.follow.setdefault(answer[:place], set()).add(token)


def random_answers(count, vocab_size, seed=0, common=40):
    """Answers that share beginnings: most tokens are among a few common ones."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 7, count)
    tokens = rng.integers(4, vocab_size, (count, 6))
    frequent = rng.integers(4, 4 + common, (count, 6))
    tokens = np.where(rng.random((count, 6)) < 0.6, frequent, tokens)
    return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]


@jax.jit
def walk(trie, tokens):
    """Nodes after each token, int32 [A, 1 + L], and what may follow them."""

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
def test_it_allows_what_a_naive_trie_allows_wherever_answers_go(count, vocab_size):
    answers = random_answers(count, vocab_size, common=min(40, vocab_size - 4))
    trie, naive = Trie.from_answers(answers, vocab_size), NaiveTrie(answers)
    chosen = answers[:: max(1, count // 40)]
    tokens = np.full((len(chosen), 6), EOS, np.int32)
    for row, answer in enumerate(chosen):
        tokens[row, : len(answer)] = answer
    nodes = np.asarray(walk(trie, tokens))
    masks = np.asarray(allowed(trie, nodes))
    for row, answer in enumerate(chosen):
        for place in range(len(answer) + 1):
            assert set(np.flatnonzero(masks[row, place])) == naive.follow[tuple(answer[:place])]
        assert not masks[row, len(answer) + 1 :].any()  # nothing follows eos


def test_a_token_that_no_answer_has_leads_where_nothing_follows():
    answers = [[159], [159, 245], [93, 220]]
    trie, naive = Trie.from_answers(answers, 300), NaiveTrie(answers)
    for prefix in ((), (159,), (93,)):
        tokens = np.array([[*prefix, token] for token in range(300)], np.int32)
        masks = np.asarray(allowed(trie, walk(trie, tokens)[:, -1]))
        for token in range(300):
            expected = naive.follow.get((*prefix, token), set()) if token != EOS else set()
            assert set(np.flatnonzero(masks[token])) == expected


def test_nodes_are_numbered_as_the_image_shows():
    trie = Trie.from_answers([[159], [159, 245], [93, 220]], 300)
    assert trie.tokens.tolist() == [-1, 93, 159, 220, 2, 245, 2, 2]
    assert trie.first_child.tolist() == [1, 3, 4, 6, 7, 7, 8, 8, 8]


@pytest.mark.parametrize("children", [MANY_CHILDREN - 1, MANY_CHILDREN, MANY_CHILDREN + 1])
def test_a_node_with_many_children_allows_the_same_from_bits(children):
    answers = [[7, 64 + 2 * k] for k in range(children)]
    trie = Trie.from_answers(answers, 200)
    assert trie.bits.shape == (int(children > MANY_CHILDREN), 7)
    mask = np.asarray(allowed(trie, np.int32(1)))
    assert np.flatnonzero(mask).tolist() == [answer[1] for answer in answers]


@pytest.mark.parametrize(("count", "megabytes"), [(1000, 0.1), (3129, 0.5), (100_000, 6)])
def test_memory_stays_small_with_the_published_vocabulary(count, megabytes):
    """Answers of up to 6 tokens out of 59,457; the root and the common tokens have many children.

    12 bytes for each of up to four nodes an answer, and 7.4 kB for each node with more than 32
    children, of which there are a few dozen.
    """
    trie = Trie.from_answers(random_answers(count, 59457), 59457)
    assert trie.nbytes < megabytes * 1e6
    roots = np.asarray(allowed(trie, np.zeros((2, 5), np.int32)))
    assert (roots.sum(axis=-1) == trie.first_child[1] - 1).all()


def test_answers_that_come_twice_count_once_and_order_does_not_matter():
    answers = random_answers(50, 40, common=20)
    trees = [Trie.from_answers(given, 40) for given in (answers, answers[::-1] + answers[:9])]
    jax.tree.map(np.testing.assert_array_equal, *trees)


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ([], "at least one answer"),
        ([[5], []], "answer 1 has no tokens"),
        ([[5], [6, 40]], "hold the token 40, the vocabulary has the ids 0 to 39"),
        ([[-1]], "hold the token -1"),
    ],
)
def test_answers_that_make_no_trie_are_refused_in_words(answers, sentence):
    with pytest.raises(ValueError, match=sentence):
        Trie.from_answers(answers, 40)


def test_what_may_stand_along_an_answer_that_is_known():
    answers = random_answers(40, 60, seed=3)
    trie, naive = Trie.from_answers(answers, 60), NaiveTrie(answers)
    pad, front, longest = 1, 2, 10
    targets = np.full((len(answers) + 1, longest), pad, np.int32)
    for row, answer in enumerate(answers):
        # Padding in front, as where a prompt is; every third without its eos.
        ended = [*answer, EOS][: len(answer) + (row % 3 > 0)]
        targets[row, front : front + len(ended)] = ended
    stranger = [59, 58, 59, EOS]
    targets[-1, : len(stranger)] = stranger
    masks = np.asarray(jax.jit(Trie.allowed_along)(trie, targets))
    for row, answer in enumerate(answers):
        for place, token in enumerate(targets[row]):
            prefix = tuple(answer[: max(place - front, 0)])
            if token != pad:
                expected = naive.follow[prefix]
                assert set(np.flatnonzero(masks[row, place])) == expected, (row, place)
                assert token in expected
    # One that is not in the trie keeps a finite loss: beside what the trie allows, it is allowed.
    first = naive.follow[()] | {59}
    assert set(np.flatnonzero(masks[-1, 0])) == first
    assert all(masks[-1, place, token] for place, token in enumerate(stranger))
    assert masks.any(axis=-1).all()
