"""A trie of allowed token sequences, stored in flat arrays for use in compiled programs.

Nodes are numbered level by level; the children of a node are adjacent and sorted by token:

    [159]  [159 245]  [93 220]          0 ─ 159 ─▶ 2 ─ </s> ─▶ 4        first_child 0: 1
                                        │          └─ 245 ──▶ 5 ─▶ 7                1: 3
                                        └─ 93 ──▶ 1 ─ 220 ──▶ 3 ─▶ 6                2: 4 …

A node stores only the number of its first child and the token that leads to it, and the child for a
token is found by bisection. The few nodes with many children (such as the root) also have a bitmap
over the vocabulary, so that the cost of a step does not depend on the number of sequences.
Sequences of one to six tokens with common prefixes take 0.05 MB (1,000), 0.34 MB (3,129) or 4.3 MB
(100,000).
"""

from collections.abc import Sequence

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from ofa_jax.tokenizers.vocabulary import OFAVocabulary

MANY_CHILDREN = 32
"""Nodes with more children than this have a bitmap: 7.4 kB per node for 59,457 tokens."""


class Trie(flax.struct.PyTreeNode):
    """A trie of token sequences, each ended by eos. Node 0 is the root.

    Attributes:
      first_child: the children of node n are first_child[n] to first_child[n + 1] (excluded).
      tokens: the token that leads to each node; -1 for the root.
      bits_row: row in `bits` of each node with many children; -1 for other nodes.
      bits: bitmaps of children over the vocabulary, lowest bit first.
      vocab_size: number of tokens.
      most_children: largest number of children of a node.
    """

    first_child: Int[Array, " nodes+1"]
    tokens: Int[Array, " nodes"]
    bits_row: Int[Array, " nodes"]
    bits: UInt32[Array, "rows vocab/32"]
    vocab_size: int = flax.struct.field(pytree_node=False)
    most_children: int = flax.struct.field(pytree_node=False)

    @classmethod
    def from_sequences(cls, sequences: Sequence[Sequence[int]], vocab_size: int) -> "Trie":
        """Builds a trie of token ids without bos and eos; duplicates count once.

        Args:
          sequences: token ids of each sequence.
          vocab_size: number of tokens.

        Returns:
          The trie.

        Raises:
          ValueError: if there are no sequences, an empty one, or ids outside of the vocabulary.
        """
        tokens, parents = _number_nodes(_pad_sequences(sequences, vocab_size), vocab_size)
        num_nodes = len(tokens)
        first_child = np.searchsorted(parents, np.arange(num_nodes + 1))
        children = np.diff(first_child)

        wide_nodes = np.flatnonzero(children > MANY_CHILDREN)
        bits_row = np.full(num_nodes, -1)
        bits_row[wide_nodes] = np.arange(len(wide_nodes))
        bits = np.zeros((len(wide_nodes), -(-vocab_size // 32)), np.uint32)
        ids = np.concatenate(
            [np.arange(0)] + [np.arange(first_child[n], first_child[n + 1]) for n in wide_nodes]
        )
        np.bitwise_or.at(
            bits,
            (bits_row[parents[ids]], tokens[ids] // 32),
            np.uint32(1) << (tokens[ids] % 32).astype(np.uint32),
        )
        return cls(
            first_child=jnp.asarray(first_child, jnp.int32),
            tokens=jnp.asarray(tokens, jnp.int32),
            bits_row=jnp.asarray(bits_row, jnp.int32),
            bits=jnp.asarray(bits),
            vocab_size=vocab_size,
            most_children=int(children.max()),
        )

    @property
    def num_nodes(self) -> int:
        """Number of nodes, including the root and the eos of every sequence."""
        return self.tokens.shape[0]

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return sum(x.nbytes for x in jax.tree.leaves(self))

    def allowed(self, nodes: Int[Array, "*shape"]) -> Bool[Array, "*shape vocab"]:
        """Returns which tokens may follow each node."""
        allowed = self._allowed_after
        for _ in range(nodes.ndim):
            # Unlike a single flat scatter, vmap keeps the sharding of the nodes.
            allowed = jax.vmap(allowed)
        return allowed(nodes)

    def _allowed_after(self, node: Int[Array, ""]) -> Bool[Array, " vocab"]:
        """Returns which tokens may follow a single node."""
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

    def allowed_along(
        self, targets: Int[Array, "batch length"]
    ) -> Bool[Array, "batch length vocab"]:
        """Returns which tokens are allowed at each position of known targets.

        The token of the target is always allowed, even if the target is not in the trie.

        Args:
          targets: one sequence per row, with padding before and after it.

        Returns:
          The allowed tokens.
        """

        def walk(nodes: Array, tokens: Array) -> tuple[Array, Array]:
            after = self.advance(nodes, tokens)
            return jnp.where(tokens == OFAVocabulary.pad_id, nodes, after), nodes

        start = jnp.zeros(targets.shape[0], jnp.int32)
        _, nodes = jax.lax.scan(walk, start, targets.T)
        ids = jnp.arange(self.vocab_size)
        return self.allowed(nodes.T) | (ids == targets[..., None])

    def advance(
        self, nodes: Int[Array, "*shape"], tokens: Int[Array, "*shape"]
    ) -> Int[Array, "*shape"]:
        """Returns the child of each node for a token, or a leaf if there is no such child."""
        low, end = self.first_child[nodes], self.first_child[nodes + 1]
        high = end
        for _ in range(self.most_children.bit_length()):
            middle = (low + high) // 2
            right = (low < high) & (self.tokens.at[middle].get(mode="clip") < tokens)
            low, high = jnp.where(right, middle + 1, low), jnp.where(right, high, middle)
        found = (low < end) & (self.tokens.at[low].get(mode="clip") == tokens)
        return jnp.where(found, low, self.num_nodes - 1)  # the last node is a leaf


def _number_nodes(
    table: Int[np.ndarray, "sequences length"], vocab_size: int
) -> tuple[Int[np.ndarray, " nodes"], Int[np.ndarray, " nodes"]]:
    """Numbers the nodes of a trie level by level.

    Args:
      table: sequences ended by eos, then -1.
      vocab_size: number of tokens.

    Returns:
      The token that leads to each node, and the parent of each node; -1 for the root.
    """
    tokens, parents = [np.array([-1])], [np.array([-1])]
    nodes, num_nodes = np.zeros(len(table), np.int64), 1
    for column in table.T:
        present = column >= 0
        edges, child = np.unique(nodes[present] * vocab_size + column[present], return_inverse=True)
        parents.append(edges // vocab_size)
        tokens.append(edges % vocab_size)
        nodes[present] = num_nodes + child
        num_nodes += len(edges)
    return np.concatenate(tokens), np.concatenate(parents)


def _pad_sequences(
    sequences: Sequence[Sequence[int]], vocab_size: int
) -> Int[np.ndarray, "sequences length"]:
    """Returns an int64 table of the sequences, each ended by eos, then -1."""
    if not len(sequences):
        raise ValueError("a trie needs at least one sequence of tokens; none was given.")
    lengths = np.array([len(sequence) for sequence in sequences])
    if not lengths.all():
        raise ValueError(f"sequence {int(np.argmin(lengths))} has no tokens; leave it out.")
    table = np.full((len(sequences), lengths.max() + 1), -1, np.int64)
    flat = np.fromiter(
        (token for sequence in sequences for token in sequence), np.int64, lengths.sum()
    )
    table[np.arange(table.shape[1]) < lengths[:, None]] = flat
    table[np.arange(len(table)), lengths] = OFAVocabulary.eos_id
    outside = flat[(flat < 0) | (flat >= vocab_size)]
    if outside.size:
        raise ValueError(
            f"the sequences hold the token {outside[0]}, the vocabulary has the ids 0 "
            f"to {vocab_size - 1}."
        )
    return table
