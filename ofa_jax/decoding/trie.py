"""All allowed answers as a trie in a few flat arrays, so that a compiled program can walk it.

Nodes are numbered level by level, children of one node side by side and sorted by token:

    [159]  [159 245]  [93 220]          0 ─ 159 ─▶ 2 ─ </s> ─▶ 4        first_child 0: 1
                                        │          └─ 245 ──▶ 5 ─▶ 7                1: 3
                                        └─ 93 ──▶ 1 ─ 220 ──▶ 3 ─▶ 6                2: 4 …

so that a node needs only the number of its first child and the token that leads to it, and the
child for a token is found by bisection. The few nodes with many children (the root, say) also have
a row of bits over the vocabulary, so that a step costs the same however many answers there are.
Answers of one to six tokens that share beginnings take 0.05 MB (1,000), 0.34 MB (3,129) or 4.3 MB
(100,000).
"""

from collections.abc import Sequence

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.tokenizers.vocabulary import OFAVocabulary

MANY_CHILDREN = 32
"""More children than this are kept as bits: 7.4 kB a node for 59,457 tokens."""


@flax.struct.dataclass
class Trie:
    """Of answers, each ended by eos. Node 0 is the root.

    Attributes:
      first_child: int32 [N + 1]; the children of node n are first_child[n] to first_child[n + 1].
      tokens: int32 [N], the token that leads to each node; -1 at the root.
      bits_row: int32 [N], the row of a node with many children in `bits`; -1 for the others.
      bits: uint32 [R, ceil(vocab_size / 32)], children as bits, the lowest first.
      vocab_size: number of tokens.
      most_children: of any node.
    """

    first_child: jax.Array
    tokens: jax.Array
    bits_row: jax.Array
    bits: jax.Array
    vocab_size: int = flax.struct.field(pytree_node=False)
    most_children: int = flax.struct.field(pytree_node=False)

    @classmethod
    def from_answers(cls, answers: Sequence[Sequence[int]], vocab_size: int) -> "Trie":
        """Of token ids without bos and eos; an answer that comes twice counts once.

        Raises:
          ValueError: if there is no answer, an empty one, or an id out of the vocabulary.
        """
        table = _padded(answers, vocab_size)
        tokens, parents = [np.array([-1])], [np.array([-1])]
        at, count = np.zeros(len(table), np.int64), 1
        for column in table.T:
            there = column >= 0
            edges, child = np.unique(at[there] * vocab_size + column[there], return_inverse=True)
            parents.append(edges // vocab_size)
            tokens.append(edges % vocab_size)
            at[there] = count + child
            count += len(edges)
        tokens, parents = np.concatenate(tokens), np.concatenate(parents)
        first_child = np.searchsorted(parents, np.arange(count + 1))
        children = np.diff(first_child)

        many = np.flatnonzero(children > MANY_CHILDREN)
        bits_row = np.full(count, -1)
        bits_row[many] = np.arange(len(many))
        bits = np.zeros((len(many), -(-vocab_size // 32)), np.uint32)
        ids = np.concatenate(
            [np.arange(0)] + [np.arange(first_child[n], first_child[n + 1]) for n in many]
        )
        np.bitwise_or.at(
            bits,
            (bits_row[parents[ids]], tokens[ids] // 32),
            np.uint32(1) << (tokens[ids] % 32).astype(np.uint32),
        )
        first_child, tokens, bits_row = (
            jnp.asarray(x, jnp.int32) for x in (first_child, tokens, bits_row)
        )
        return cls(
            first_child, tokens, bits_row, jnp.asarray(bits), vocab_size, int(children.max())
        )

    @property
    def num_nodes(self) -> int:
        """N, the root and the eos of every answer included."""
        return self.tokens.shape[0]

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return sum(x.nbytes for x in jax.tree.leaves(self))

    def allowed(self, nodes: jax.Array) -> jax.Array:
        """Which tokens may follow: int32 [...] to bool [..., vocab_size]."""
        one = self._allowed_at
        for _ in range(nodes.ndim):
            one = jax.vmap(one)  # not one flat scatter: this one splits over the mesh as nodes do
        return one(nodes)

    def _allowed_at(self, node: jax.Array) -> jax.Array:
        start, end = self.first_child[node], self.first_child[node + 1]
        places = start + jnp.arange(min(MANY_CHILDREN, self.most_children))
        children = jnp.where(places < end, self.tokens.at[places].get(mode="clip"), self.vocab_size)
        mask = jnp.zeros(self.vocab_size, bool).at[children].set(True, mode="drop")
        if not self.bits.shape[0]:
            return mask
        row = self.bits_row[node]
        words = jnp.where(row < 0, jnp.uint32(0), self.bits[jnp.maximum(row, 0)])
        bits = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
        return mask | (bits.reshape(-1)[: self.vocab_size] != 0)

    def allowed_along(self, targets: jax.Array) -> jax.Array:
        """Which tokens may stand at each place of answers that are known.

        An answer that is not in the trie is allowed where it stands, beside what the trie allows.

        Args:
          targets: int32 [B, T], one answer each; padding before and behind it.

        Returns:
          bool [B, T, vocab_size].
        """

        def walk(nodes, tokens):
            after = self.advance(nodes, tokens)
            return jnp.where(tokens == OFAVocabulary.pad_id, nodes, after), nodes

        start = jnp.zeros(targets.shape[0], jnp.int32)
        _, nodes = jax.lax.scan(walk, start, targets.T)
        ids = jnp.arange(self.vocab_size)
        return self.allowed(nodes.T) | (ids == targets[..., None])

    def advance(self, nodes: jax.Array, tokens: jax.Array) -> jax.Array:
        """The children that tokens lead to; a node without children where none does.

        Args:
          nodes, tokens: int32 [...].

        Returns:
          int32 [...].
        """
        low, end = self.first_child[nodes], self.first_child[nodes + 1]
        high = end
        for _ in range(self.most_children.bit_length()):
            middle = (low + high) // 2
            right = (low < high) & (self.tokens.at[middle].get(mode="clip") < tokens)
            low, high = jnp.where(right, middle + 1, low), jnp.where(right, high, middle)
        found = (low < end) & (self.tokens.at[low].get(mode="clip") == tokens)
        return jnp.where(found, low, self.num_nodes - 1)  # the last node is of the deepest level


def _padded(answers: Sequence[Sequence[int]], vocab_size: int) -> np.ndarray:
    """int64 [A, L], every answer ended by eos, then -1."""
    if not len(answers):
        raise ValueError("a trie needs at least one answer; none was given.")
    lengths = np.array([len(answer) for answer in answers])
    if not lengths.all():
        raise ValueError(f"answer {int(np.argmin(lengths))} has no tokens; leave it out.")
    table = np.full((len(answers), lengths.max() + 1), -1, np.int64)
    flat = np.fromiter((token for answer in answers for token in answer), np.int64, lengths.sum())
    places = np.arange(table.shape[1])
    table[places < lengths[:, None]] = flat
    table[np.arange(len(table)), lengths] = OFAVocabulary.eos_id
    outside = flat[(flat < 0) | (flat >= vocab_size)]
    if outside.size:
        raise ValueError(
            f"the answers hold the token {outside[0]}, the vocabulary has the ids 0 "
            f"to {vocab_size - 1}."
        )
    return table
