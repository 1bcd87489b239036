"""Lower bounds of a model's parameters and of the memory of a batch, without building anything.

They take no time even for sizes that could never be built, so that these are refused first.
"""

from ofa_jax.model.config import PATCH_STRIDE, OFAConfig

__all__ = ["bytes_per_number", "decoding_bytes", "num_parameters", "num_patches"]


def num_parameters(config: OFAConfig) -> int:
    """Returns a lower bound of the number of parameters, within a few per cent of it."""
    width, heads = config.width, config.num_heads
    attention, feed_forward = 4 * width * width, 2 * width * config.ffn_width
    layers = config.encoder_layers * (attention + feed_forward)
    layers += config.decoder_layers * (2 * attention + feed_forward)
    adapters = 2 * width * config.adapter_width
    prefixes = 2 * width * config.prefix_length
    layers += (config.encoder_layers + config.decoder_layers) * (adapters + prefixes)
    grid = config.image_bucket_size**2
    positions = config.max_source_positions + config.max_target_positions + grid
    relative = (2 * config.token_bucket_size - 1) + (2 * config.image_bucket_size - 1) ** 2
    layers += (config.encoder_layers + config.decoder_layers) * heads * relative
    return config.padded_vocab_size * width + positions * width + layers + _resnet(config)


def _resnet(config: OFAConfig) -> int:
    """Returns the weights of the bottleneck blocks: 1x1, 3x3 and 1x1 convolutions of each."""
    return sum(
        blocks * 17 * (config.resnet_width << stage) ** 2
        for stage, blocks in enumerate(config.resnet_layers)
    )


def bytes_per_number(config: OFAConfig) -> int:
    """Returns the bytes of a number of the computation."""
    return 2 if config.dtype == "bfloat16" else 4


def num_patches(image_size: int | None) -> int:
    """Returns the number of patches of an image; 0 without one."""
    return 0 if image_size is None else (image_size // PATCH_STRIDE) ** 2


def decoding_bytes(
    config: OFAConfig, examples: int, beams: int, length: int, source_length: int
) -> dict[str, int]:
    """Returns what decoding a batch takes at least.

    Args:
      config: of the model.
      examples: of the batch, on one device.
      beams: hypotheses of each example.
      length: tokens of the longest output.
      source_length: tokens and patches of the encoder.

    Returns:
      What takes memory -> bytes.
    """
    number, rows = bytes_per_number(config), examples * beams
    per_layer = 2 * config.decoder_layers * config.width * number
    return {
        "parameters": 4 * num_parameters(config),
        "the beams' cache": rows * length * per_layer,
        "the encoder's cache": examples * source_length * per_layer,
        "probabilities": rows * config.padded_vocab_size * 4,
    }
