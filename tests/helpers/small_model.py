"""A model with a few thousand parameters, and random batches for it."""

import numpy as np

from ofa_jax.model import OFAConfig

# One layer per side, because tests compile about a thousand programs.
SMALL = OFAConfig(
    vocab_size=60,
    width=16,
    ffn_width=32,
    num_heads=2,
    encoder_layers=1,
    decoder_layers=1,
    resnet_layers=(1, 1, 1),
    resnet_width=4,
    image_bucket_size=6,
    token_bucket_size=16,
    max_source_positions=40,
    max_target_positions=40,
    code_image_size=16,
)
DEEP = SMALL.replace(encoder_layers=2, decoder_layers=2)
"""For tests of several layers."""


def random_batch(seed=0, size=3, source=7, target=6, pixels=48, codes=True) -> dict:
    """Returns random tokens and pixels for `SMALL`; every second row has image codes."""
    rng = np.random.default_rng(seed)
    batch = {
        "encoder_input_tokens": rng.integers(4, 60, (size, source), np.int32),
        "decoder_input_tokens": rng.integers(4, 60, (size, target), np.int32),
    }
    if pixels:
        batch["encoder_images"] = rng.integers(0, 256, (size, pixels, pixels, 3), np.uint8)
    if codes:
        batch["decoder_code_mask"] = np.arange(size) % 2 == 0
    return batch
