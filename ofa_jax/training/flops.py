"""Counts the arithmetic of a step from shapes alone, which MFU is measured against.

Two operations per multiply-add of every matrix product and convolution, forward; a training step
needs three times that (PaLM, Chowdhery et al. 2022, appendix B): as much again towards the weights
and towards the inputs, less where parts are frozen. Norms, softmax, look-ups, the optimiser and
what is computed a second time to save memory are left out. A convolution counts the taps that see a
pixel, not the padding.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ofa_jax.model import OFAConfig
from ofa_jax.model.positions import patch_grid

TRAINING_FACTOR = 3
"""Forward, and backward towards weights and inputs."""


def forward_flops(batch: Mapping[str, Any], config: OFAConfig) -> dict[str, int]:
    """Counts the operations of one forward pass over the batch of one stream.

    Args:
      batch: arrays, or anything else with shapes, by the names that the model takes.
      config: of the model.

    Returns:
      Part -> floating point operations: "resnet", "encoder", "decoder", "positions" (the absolute
      biases) and "logits".
    """
    c, d = config, config.width
    size, source = batch["encoder_input_tokens"].shape
    target = batch["decoder_input_tokens"].shape[1]
    resnet = patches = places = 0
    sampled = False
    for height, width, number in _images(batch):
        resnet += size * resnet_flops(height, width, c)
        grid = math.prod(patch_grid(height, width))
        places += grid
        sampled |= number is not None
        patches += grid if number is None else number
    length, places = patches + source, places + source

    feed_forward = 4 * d * c.ffn_width + 4 * d * c.adapter_width
    encoder = size * (
        2 * patches * c.patch_channels * d
        + c.encoder_layers * length * (8 * d * d + feed_forward + _attention(length, c))
    )
    cross = 4 * target * d * d + 4 * length * d * d + 4 * target * length * d
    decoder = (
        size
        * c.decoder_layers
        * (target * (8 * d * d + feed_forward + _attention(target, c)) + cross)
    )

    # Rows of text alone, or of both kinds; once for all examples, unless they sampled patches.
    kinds = 2 if "decoder_code_mask" in batch else 1
    positions = 4 * places * d * d + (size if sampled else 1) * 2 * length * length * d
    positions += kinds * (4 * target * d * d + 2 * target * target * d)
    positions += kinds * 2 * target * d * d + 2 * places * d * d
    positions += (size if sampled else kinds) * 2 * target * length * d
    return {
        "resnet": resnet,
        "encoder": encoder,
        "decoder": decoder,
        "positions": positions,
        "logits": 2 * size * target * d * c.vocab_size,
    }


def training_factors(params: Any, learns: Any) -> dict[str, float]:
    """Returns the cost of a training step in forward passes, for each part of the model.

    One pass forward; one backward towards the inputs where anything is trained in the part or
    before it; and one towards the weights, by the share of entries that are trained. In a part that
    gradients only pass through, attention's products of activations count as if one of their sides
    needed none.

    Args:
      params: of the model, boxed or plain, arrays or shapes.
      learns: which of them are trained, see `parameter_groups.trainable_mask`.

    Returns:
      A factor for each part of `forward_flops`, 3 where everything is trained.
    """
    weights: dict[str, list[int]] = {}  # part -> [entries of its weights, those that learn]
    reached = set()
    for (path, learning), param in zip(
        jax.tree_util.tree_leaves_with_path(learns), jax.tree.leaves(params), strict=True
    ):
        keys = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        part = {"token_embedding": "logits"}.get(keys[0], keys[0])
        part = "resnet" if keys[:2] == ["encoder", "resnet"] else part
        reached |= {part} if learning else set()
        if keys[-1] in ("kernel", "embedding"):
            entries = weights.setdefault(part, [0, 0])
            entries[0] += math.prod(param.shape)
            entries[1] += learning * math.prod(param.shape)
    # Tokens are looked up before the encoder reads them.
    before = {"resnet": {"resnet"}, "encoder": {"resnet", "encoder", "logits"}}
    factors = {
        part: 1 + bool(reached & before.get(part, reached)) + learned / entries
        for part, (entries, learned) in weights.items()
    }
    return factors | {"positions": max(factors["encoder"], factors["decoder"])}


def training_flops(
    streams: Mapping[str, Mapping[str, Any]],
    config: OFAConfig,
    passes: int = 1,
    factors: Mapping[str, float] | None = None,
) -> int:
    """Counts the operations of one training step over a batch of every stream.

    Args:
      streams: stream -> batch, see `forward_flops`.
      config: of the model.
      passes: 2 under R-Drop.
      factors: of `training_factors`, where parts are frozen.
    """
    factors = factors or {}
    return passes * round(
        sum(
            factors.get(part, TRAINING_FACTOR) * number
            for batch in streams.values()
            for part, number in forward_flops(batch, config).items()
        )
    )


def decoding_flops(batch: Mapping[str, Any], config: OFAConfig, beams: int, length: int) -> int:
    """Counts the operations of decoding a batch: `beams` hypotheses of `length` tokens each.

    The encoder runs once; of its output each decoder layer projects keys and values once for all
    beams of an example. Every step attends to a cache of the full length.

    Args:
      batch: see `forward_flops`; its decoder_* arrays are not used.
      config: of the model.
      beams: hypotheses of an example.
      length: tokens of each, eos included.
    """
    c, d = config, config.width
    size = batch["encoder_input_tokens"].shape[0]
    shapes = {**batch, "decoder_input_tokens": jax.ShapeDtypeStruct((size, length), np.int32)}
    parts = forward_flops(shapes, c)
    # Work per token is done for every beam; work on the encoder's output, once.
    once = size * c.decoder_layers * 4 * _encoder_length(batch) * d * d
    per_token = parts["decoder"] - once + parts["logits"]
    return parts["resnet"] + parts["encoder"] + parts["positions"] + once + beams * per_token


def _attention(length: int, config: OFAConfig) -> int:
    """Returns the operations of scores and mixing, for one query of a self-attention."""
    return 4 * (length + config.prefix_length) * config.width


def _images(batch: Mapping[str, Any]) -> Iterator[tuple[int, int, int | None]]:
    """Yields (height, width, number of sampled patches or None) of the images of an example."""
    for prefix in ("encoder_", "encoder_second_"):
        if f"{prefix}images" in batch:
            sampled = batch.get(f"{prefix}patch_indices")
            yield (
                *batch[f"{prefix}images"].shape[1:3],
                None if sampled is None else sampled.shape[1],
            )


def _encoder_length(batch: Mapping[str, Any]) -> int:
    """Returns the number of patches and tokens that the decoder can attend to."""
    patches = (
        math.prod(patch_grid(height, width)) if number is None else number
        for height, width, number in _images(batch)
    )
    return sum(patches) + batch["encoder_input_tokens"].shape[1]


def resnet_flops(height: int, width: int, config: OFAConfig) -> int:
    """Counts the operations of the ResNet on one image of height x width pixels."""
    shape: tuple[int, ...] = (height, width)
    channels, total = 3, 0

    def convolution(
        shape: tuple[int, ...], inputs: int, outputs: int, size: int, stride: int
    ) -> tuple[int, ...]:
        """Adds a convolution; returns the shape of its output."""
        nonlocal total
        total += 2 * inputs * outputs * math.prod(_taps(n, size, stride) for n in shape)
        return tuple(-(-n // stride) for n in shape)

    shape = convolution(shape, channels, config.resnet_width, 7, 2)
    shape, channels = tuple(-(-n // 2) for n in shape), config.resnet_width  # pooling
    for stage, blocks in enumerate(config.resnet_layers):
        inside = config.resnet_width * 2**stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            convolution(shape, channels, inside, 1, 1)
            after = convolution(shape, inside, inside, 3, stride)
            convolution(after, inside, 4 * inside, 1, 1)
            if stride != 1 or channels != 4 * inside:
                convolution(shape, channels, 4 * inside, 1, stride)
            shape, channels = after, 4 * inside
    return total


def _taps(size: int, kernel: int, stride: int) -> int:
    """Counts pairs of an output and a tap on a value, along one axis padded by half the kernel."""
    low = kernel // 2
    return sum(
        min(out * stride - low + kernel, size) - max(out * stride - low, 0)
        for out in range(-(-size // stride))
    )
