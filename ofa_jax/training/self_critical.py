"""Self-critical sequence training (Rennie et al. 2017, arXiv 1612.00563): a reward is maximised.

The model answers each example G times, by beam search or sampling. With the rewards r_1 ... r_G of
these answers (CIDEr-D for captions), the loss of token t of answer i is

    -(r_i - b_i) log p(y_i,t | y_i,<t, example),         b_i = the mean of the other G - 1 rewards,

summed over all tokens of all answers, eos included, and divided by their number: the gradient is
that of REINFORCE with the other answers as its baseline, as in the original OFA.

A step has three parts: the compiled search with the present parameters, the rewards on the host,
and the ordinary training step. For that one an attempt is an answer like any other, whose tokens
have the weight r_i - b_i instead of a confidence:

    batch ──▶ decoder ──▶ samples [B, G, T] ──▶ rewards [B, G] ──▶ batch with the samples as
                                                                    targets ──▶ train_step
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np

from ofa_jax.decoding import DecodingConfig, make_decoder
from ofa_jax.decoding.hypotheses import BOS, PAD
from ofa_jax.model import OFA
from ofa_jax.sharding import Partitioner, TrainState
from ofa_jax.training.losses import LossConfig

Reward = Callable[[int, np.ndarray], np.ndarray]
"""(step, samples int32 [B, G, T]) -> rewards float [B, G], for this host's rows of the step."""


@dataclasses.dataclass(frozen=True)
class SelfCriticalConfig:
    """How the model makes its samples.

    Attributes:
      decoding: with beam_size = G, at least 2; the published one when left out (beam 5, at most 16
        tokens, no 3-gram twice). Use method = 'sample' for independent random samples.
    """

    decoding: DecodingConfig = DecodingConfig(no_repeat_ngram_size=3)

    def __post_init__(self) -> None:
        if self.decoding.beam_size < 2:
            raise ValueError(
                f"SelfCriticalConfig.decoding has beam_size {self.decoding.beam_size}: an attempt "
                "is judged by the others of its example; give at least 2."
            )

    def check(self, loss: LossConfig) -> None:
        """Raises ValueError for options of the loss that are not those of a reward."""
        for name in ("label_smoothing", "drop_worst_ratio", "rdrop_alpha", "encouraging_end"):
            if getattr(loss, name):
                raise ValueError(
                    f"LossConfig.{name} is {getattr(loss, name)}, but self-critical training "
                    "weights the plain log-probabilities by rewards: set it to "
                    f"{None if name == 'encouraging_end' else 0}."
                )


class SelfCritical:
    """Makes of a step's batch one of samples; the loop calls it before every step."""

    def __init__(
        self,
        model: OFA,
        config: SelfCriticalConfig,
        partitioner: Partitioner,
        stream: str,
        reward: Reward,
        seed: int,
    ):
        """Compiles nothing yet.

        Args:
          model: that is trained.
          config: how it makes its samples.
          partitioner: the mesh.
          stream: name of the stream that is learned so.
          reward: of samples.
          seed: of samples, with the step.

        Raises:
          ValueError: the model cannot search so.
        """
        decode = make_decoder(model, config.decoding)
        self._search = jax.jit(
            lambda variables, batch, key: decode(variables, batch, key).tokens,
            out_shardings=partitioner.batch_sharding,
        )
        self._partitioner = partitioner
        self._stream = stream
        self._reward = reward
        self._seed = seed
        self._rewards: list[np.ndarray] = []

    def __call__(
        self, step: int, state: TrainState, batches: Mapping[str, Mapping[str, jax.Array]]
    ) -> dict[str, Mapping[str, jax.Array]]:
        """The batches of a step with the samples of the stream as what is to be learned.

        Args:
          step: its number; 0 is the first one.
          state: whose parameters make the samples.
          batches: {stream: batch} on the devices. The answers that they have are not looked at, but
            a row that has none (its record was bad) gets no samples either, nor does one without
            a reward.
        """
        batch, put = batches[self._stream], self._partitioner
        key = jax.random.fold_in(jax.random.key(self._seed), step)
        encoder_inputs = {k: x for k, x in batch.items() if not k.startswith("decoder_")}
        samples = put.local_rows(self._search(state.variables, encoder_inputs, key))
        good = (put.local_rows(batch["decoder_target_tokens"]) != PAD).any(-1)
        there = (samples != PAD).any(-1) & good[:, None]
        rewards = np.where(there, self._reward(step, samples), np.nan)
        self._rewards.append(rewards[good])
        targets = np.where(np.isfinite(rewards)[..., None], samples, PAD)
        learned = as_answers(targets, advantages(rewards))
        return {**batches, self._stream: {**batch, **put.put_batch(learned)}}

    def scalars(self) -> dict[str, float]:
        """What the samples since the last call were worth, on this host; empty for none.

        Returns:
          reward: mean over all samples. best_reward: mean over the examples of their best attempt.
        """
        rewards = np.concatenate(self._rewards) if self._rewards else np.zeros((0, 0))
        self._rewards.clear()
        rewards = rewards[np.isfinite(rewards).any(-1)] if len(rewards) else rewards
        if not len(rewards):
            return {}
        return {
            "reward": float(np.nanmean(rewards)),
            "best_reward": float(np.nanmean(np.nanmax(rewards, axis=1))),
        }


def advantages(rewards: np.ndarray) -> np.ndarray:
    """Each attempt's reward minus the mean of the others'.

    >>> advantages(np.array([[1.0, 2.0, 6.0]])).tolist()
    [[-3.0, -1.5, 4.5]]

    Args:
      rewards: float [B, G]; NaN where there is no attempt.

    Returns:
      float32 [B, G]; 0 for samples that are not there, or are the only one.
    """
    there = np.isfinite(rewards)
    own = np.where(there, rewards, 0)
    others = there.sum(axis=1, keepdims=True) - 1
    baseline = (own.sum(axis=1, keepdims=True) - own) / np.maximum(others, 1)
    return np.where(there & (others > 0), own - baseline, 0).astype(np.float32)


def as_answers(tokens: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Attempts as what the training step learns.

    Args:
      tokens: int32 [B, G, T], ended by eos, then padding.
      weights: float32 [B, G], of each attempt.

    Returns:
      The decoder's arrays of the batch, each [B, G, T].
    """
    scored = tokens != PAD
    inputs = np.full_like(tokens, PAD)
    inputs[..., 0] = BOS
    inputs[..., 1:] = np.where(scored[..., 1:], tokens[..., :-1], PAD)
    return {
        "decoder_input_tokens": inputs,
        "decoder_target_tokens": tokens,
        "decoder_loss_weights": np.where(scored, weights[..., None], 0).astype(np.float32),
    }
