"""Codes in training: drawn or nearest, with straight-through gradients; revival of unused ones."""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ofa_jax.training.image_tokenizer.config import GUMBEL, NEAREST, QuantizerConfig

_EPSILON = 1e-10


@flax.struct.dataclass
class Quantized:
    """Codes of a batch.

    Attributes:
      vectors: float32 [B, h, w, code_width], what the decoder sees.
      codes: int32 [B, h, w].
      loss: float32 scalar, of the quantiser.
    """

    vectors: jax.Array
    codes: jax.Array
    loss: jax.Array


def temperature(config: QuantizerConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    """Returns the temperature of the Gumbel-softmax at a step."""
    if not config.anneal_steps:
        return jnp.float32(config.temperature)
    share = jnp.minimum(step / config.anneal_steps, 1.0)
    ratio = config.end_temperature / config.temperature
    return jnp.float32(config.temperature) * jnp.float32(ratio) ** share


def gumbel(
    scores: Float[Array, "b h w codes"],
    table: Float[Array, "codes width"],
    key: jax.Array,
    tau: Float[Array, ""],
    config: QuantizerConfig,
) -> Quantized:
    """Draws codes by a Gumbel-softmax (Jang et al. 2017).

    Args:
      scores: logits of the codes.
      table: vectors of the codes.
      key: of the noise.
      tau: temperature.
      config: options.

    Returns:
      The codes and their vectors, with the gradient of the mean of all vectors by their
      probabilities. The loss is the divergence from even probabilities.
    """
    noisy = jax.nn.softmax((scores + jax.random.gumbel(key, scores.shape)) / tau)
    codes = noisy.argmax(-1).astype(jnp.int32)
    if config.straight_through:
        hard = jax.nn.one_hot(codes, scores.shape[-1], dtype=noisy.dtype)
        noisy = hard + noisy - jax.lax.stop_gradient(noisy)
    vectors = jnp.einsum("bhwn,nd->bhwd", noisy, table, precision="highest")
    probabilities = jax.nn.softmax(scores)
    divergence = probabilities * jnp.log(probabilities * scores.shape[-1] + _EPSILON)
    return Quantized(vectors, codes, config.kl_weight * divergence.sum(-1).mean())


def nearest(
    latents: Float[Array, "b h w width"],
    table: Float[Array, "codes width"],
    config: QuantizerConfig,
) -> Quantized:
    """Takes the code nearest to each latent vector (van den Oord et al. 2017, equation 3).

    Args:
      latents: of the encoder.
      table: vectors of the codes.
      config: options.

    Returns:
      The codes and their vectors; the gradient of the vectors goes to the latents unchanged. The
      loss draws codes to the latents and, by `commitment`, latents to the codes.
    """
    kernel, bias = nearest_scores(table)
    scores = jnp.einsum("bhwd,dn->bhwn", latents, kernel, precision="highest") + bias
    codes = jax.lax.stop_gradient(scores).argmax(-1).astype(jnp.int32)
    vectors = table[codes]
    still = jax.lax.stop_gradient
    loss = jnp.square(vectors - still(latents)).mean()
    loss += config.commitment * jnp.square(latents - still(vectors)).mean()
    return Quantized(latents + still(vectors - latents), codes, loss)


def nearest_scores(
    table: Float[Array, "codes width"],
) -> tuple[Float[Array, "width codes"], Float[Array, " codes"]]:
    """Returns kernel and bias of linear scores whose best code is the nearest one."""
    return table.T, -0.5 * jnp.square(table).sum(-1)


def with_tied_scores(network: Mapping[str, Any], config: QuantizerConfig) -> dict[str, Any]:
    """Returns parameters of a VQGAN whose scores are those of its quantiser.

    A VQGAN scores codes linearly. For "nearest" these scores follow from the codes.
    """
    if config.kind != NEAREST:
        return dict(network)
    kernel, bias = nearest_scores(network["quantize"]["embed"]["embedding"])
    proj = {"kernel": kernel[None, None], "bias": bias}
    return {**network, "quantize": {**network["quantize"], "proj": proj}}


def initial_use(
    config: QuantizerConfig, num_codes: int, is_new: bool = True
) -> Float[Array, " codes"]:
    """Returns the use of each code before the first step.

    New nearest codes begin unused: the first step replaces them by latent vectors of its batch, so
    that all of them lie where the encoder's output does.
    """
    is_used = config.kind == GUMBEL or not is_new
    return jnp.full(num_codes, 1 / num_codes if is_used else 0.0, jnp.float32)


def updated_use(
    use: Float[Array, " codes"], codes: Int[Array, "b h w"], config: QuantizerConfig
) -> Float[Array, " codes"]:
    """Returns the moving average of the shares of each code."""
    share = jnp.zeros_like(use).at[codes.reshape(-1)].add(1.0 / codes.size)
    return config.use_decay * use + (1 - config.use_decay) * share


def unused(
    use: Float[Array, " codes"], step: Int[Array, ""], config: QuantizerConfig
) -> Bool[Array, " codes"]:
    """Returns which codes to revive after a step; none between two revivals."""
    if not config.revive_period:
        return jnp.zeros(use.shape, bool)
    return (use < config.revive_below / len(use)) & (step % config.revive_period == 0)


def revive(
    network: Mapping[str, Any],
    dead: Bool[Array, " codes"],
    latents: Float[Array, "b h w width"],
    codes: Int[Array, "b h w"],
    key: jax.Array,
    config: QuantizerConfig,
) -> dict[str, Any]:
    """Returns parameters of a VQGAN in which unused codes are replaced.

    A nearest code becomes a latent vector of the batch. A Gumbel code becomes a copy of a code that
    the batch uses, with a little noise on its scores: the two share its place, and part.

    Args:
      network: parameters of `vqgan.Network`.
      dead: which codes to replace.
      latents: of the batch.
      codes: of the batch.
      key: draws the places in the batch, and the noise.
      config: options.
    """
    draw, noise = jax.random.split(key)
    places = jax.random.randint(draw, dead.shape, 0, codes.size)
    table = network["quantize"]["embed"]["embedding"]
    if config.kind == NEAREST:
        found = latents.reshape(-1, latents.shape[-1])[places]
        table = jnp.where(dead[:, None], found, table)
        quantize = {**network["quantize"], "embed": {"embedding": table}}
        return with_tied_scores({**network, "quantize": quantize}, config)
    source = codes.reshape(-1)[places]
    proj = network["quantize"]["proj"]
    kernel, bias = proj["kernel"], proj["bias"]
    copied = kernel[..., source]
    copied += 0.01 * jnp.abs(copied).mean() * jax.random.normal(noise, copied.shape)
    quantize = {
        "embed": {"embedding": jnp.where(dead[:, None], table[source], table)},
        "proj": {
            "kernel": jnp.where(dead, copied, kernel),
            "bias": jnp.where(dead, bias[source], bias),
        },
    }
    return {**network, "quantize": quantize}
