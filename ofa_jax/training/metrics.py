"""Sums per task, computed on the device and read rarely."""

from collections.abc import Sequence

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


@flax.struct.dataclass
class TaskSums:
    """Sums over the tokens of each task, float32 [K].

    Attributes:
      nll: negative log-likelihood in nats, not weighted by confidence.
      tokens: number of scored tokens.
      correct: number of tokens that are the most likely ones; zeros in training.
      examples: number of examples with a scored token.
    """

    nll: jax.Array
    tokens: jax.Array
    correct: jax.Array
    examples: jax.Array

    @classmethod
    def zeros(cls, num_tasks: int) -> "TaskSums":
        """Returns the sums of no tokens."""
        return cls(*(jnp.zeros(num_tasks, jnp.float32) for _ in range(4)))

    def __add__(self, other: "TaskSums") -> "TaskSums":
        return jax.tree.map(lambda a, b: a + b, self, other)


def task_sums(
    nll: Float[Array, "b t"],
    scored: Bool[Array, "b t"],
    task_ids: Int[Array, " b"],
    num_tasks: int,
    correct: Bool[Array, "b t"] | None = None,
) -> TaskSums:
    """Sums a batch's tokens by task.

    Args:
      nll: of each token.
      scored: False on padding.
      task_ids: of each example.
      num_tasks: K.
      correct: whether the token was predicted; None where it is not known.
    """
    # A one-hot product: K is small, and it stays sharded over the batch.
    members = jax.nn.one_hot(task_ids, num_tasks, dtype=jnp.float32)
    per_example = [
        jnp.where(scored, nll, 0).sum(-1),
        scored.sum(-1),
        (scored & correct).sum(-1) if correct is not None else jnp.zeros(len(task_ids)),
        scored.any(-1),
    ]
    return TaskSums(*(value.astype(jnp.float32) @ members for value in per_example))


def mean_losses(sums: TaskSums, task_names: Sequence[str]) -> dict[str, float]:
    """Returns task -> nats per token, for tasks with tokens; waits for the device."""
    nll, tokens = np.asarray(sums.nll), np.asarray(sums.tokens)
    return {name: float(nll[k] / tokens[k]) for k, name in enumerate(task_names) if tokens[k]}
