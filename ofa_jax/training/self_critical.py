"""Self-critical sequence training (Rennie et al. 2017, arXiv 1612.00563): maximises a reward.

The model generates G sequences for each example, by beam search or sampling. With their rewards
r_1 ... r_G (CIDEr-D for captions, a CLIP's scores for images), the loss of token t of sample i is

    -(r_i - b_i) log p(y_i,t | y_i,<t, example),         b_i = the mean of the other G - 1 rewards,

summed over all tokens of all samples, eos included, and divided by their number: the gradient is
that of REINFORCE with the other samples as its baseline, as in the official OFA code.

A step has three parts: the compiled search with the current parameters, the rewards on the host,
and the ordinary training step. There a sample is a target like any other, whose tokens have the
weight r_i - b_i instead of a confidence:

    batch ──▶ decoder ──▶ samples [B, G, T] ──▶ rewards [B, G] ──▶ batch with the samples as
                                                                    targets ──▶ train_step
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import Float, Float32, Int32

from ofa_jax.decoding import DecodingConfig, make_decoder
from ofa_jax.decoding.hypotheses import BOS, PAD
from ofa_jax.evaluation.image_ranking import ImageRanker
from ofa_jax.model import OFA
from ofa_jax.sharding import Partitioner, TrainState
from ofa_jax.training.losses import LossConfig
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked

Reward = Callable[[int, np.ndarray], np.ndarray]
"""(step, samples int32 [B, G, T]) -> rewards float [B, G], for this host's rows of the step."""


@checked
@dataclasses.dataclass(frozen=True)
class SelfCriticalConfig:
    """How the model draws its samples, and what they are worth.

    Attributes:
      decoding: with beam_size = G, at least 2; the published one of captions when left out (beam
        5, at most 16 tokens, no 3-gram twice). Use method = 'sample' for independent random
        samples, with exact_length for images.
      ranker: for images from captions: scores each sample with its caption, such as CLIP; None
        rewards captions by CIDEr-D.
      reward_scale: factor of the ranker's scores; the published one when left out.
    """

    decoding: DecodingConfig = DecodingConfig(no_repeat_ngram_size=3)
    ranker: ImageRanker | None = None
    reward_scale: options.Positive = 2.5

    def __post_init__(self) -> None:
        if self.decoding.beam_size < 2:
            raise ValueError(
                f"SelfCriticalConfig.decoding has beam_size {self.decoding.beam_size}: each "
                "sample is compared with the others of its example; give at least 2."
            )
        if self.ranker is not None and not self.decoding.exact_length:
            raise ValueError(
                "SelfCriticalConfig.ranker scores images, but SelfCriticalConfig.decoding does not "
                "generate whole ones: set its method = 'sample', exact_length = True, and "
                "max_length to the number of codes of an image."
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
    """Replaces the targets of a batch by samples; the loop calls it before every step."""

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
          model: the one that is trained.
          config: how it draws its samples.
          partitioner: the mesh.
          stream: name of the stream whose targets are replaced.
          reward: of samples.
          seed: of samples, with the step.

        Raises:
          ValueError: the model cannot decode with this configuration.
        """
        decode = make_decoder(model, config.decoding)
        self._search = jax.jit(
            lambda variables, batch, key: decode(variables, batch, key).tokens,
            out_shardings=partitioner.batch_sharding,
        )
        # An image ends with its last code: its eos is no target, as in the first stage.
        self._length = config.decoding.max_length if config.decoding.exact_length else None
        self._partitioner = partitioner
        self._stream = stream
        self._reward = reward
        self._seed = seed
        self._rewards: list[np.ndarray] = []

    def __call__(
        self, step: int, state: TrainState, batches: Mapping[str, Mapping[str, jax.Array]]
    ) -> dict[str, Mapping[str, jax.Array]]:
        """Returns the batches of a step with the samples of the stream as targets.

        Args:
          step: its number; 0 is the first one.
          state: whose parameters draw the samples.
          batches: {stream: batch} on the devices. Their targets are not used, but a row without one
            (its record was invalid) gets no samples either, nor does one without a reward.
        """
        batch, put = batches[self._stream], self._partitioner
        key = jax.random.fold_in(jax.random.key(self._seed), step)
        given = {
            name: x
            for name, x in batch.items()
            if name == "decoder_code_mask" or not name.startswith("decoder_")
        }
        samples = put.local_rows(self._search(state.variables, given, key))
        samples = samples[..., : self._length]
        good = (put.local_rows(batch["decoder_target_tokens"]) != PAD).any(-1)
        valid = (samples != PAD).any(-1) & good[:, None]
        rewards = np.where(valid, self._reward(step, samples), np.nan)
        self._rewards.append(rewards[good])
        targets = np.where(np.isfinite(rewards)[..., None], samples, PAD)
        sampled = as_targets(targets, advantages(rewards))
        return {**batches, self._stream: {**batch, **put.put_batch(sampled)}}

    def scalars(self) -> dict[str, float]:
        """Returns the rewards of the samples since the last call, on this host; empty for none.

        Returns:
          reward: mean over all samples. best_reward: mean over the examples of their best sample.
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


def advantages(rewards: Float[np.ndarray, "b g"]) -> Float32[np.ndarray, "b g"]:
    """Returns each sample's reward minus the mean of the others'.

    >>> advantages(np.array([[1.0, 2.0, 6.0]])).tolist()
    [[-3.0, -1.5, 4.5]]

    Args:
      rewards: of each sample; NaN where there is none.

    Returns:
      0 for samples that do not exist, or are the only one.
    """
    valid = np.isfinite(rewards)
    own = np.where(valid, rewards, 0)
    others = valid.sum(axis=1, keepdims=True) - 1
    baseline = (own.sum(axis=1, keepdims=True) - own) / np.maximum(others, 1)
    return np.where(valid & (others > 0), own - baseline, 0).astype(np.float32)


def as_targets(
    tokens: Int32[np.ndarray, "b g t"], weights: Float32[np.ndarray, "b g"]
) -> dict[str, np.ndarray]:
    """Returns samples as targets of the training step.

    Args:
      tokens: of each sample, ended by eos, then padding.
      weights: of each sample.

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
