"""Reproducible random weights, see "Recipe" in tests/golden/model_tiny/README.md."""

import json
import pathlib
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

EMBEDDING = "encoder.embed_tokens.weight"
TIED = (EMBEDDING, "decoder.embed_tokens.weight", "decoder.output_projection.weight")


def tensor(key: str, shape: Sequence[int]) -> np.ndarray:
    """Returns the float16 tensor of a parameter, named as in the reference implementation.

    The first rule that matches the name applies.
    """
    seed = zlib.crc32((EMBEDDING if key in TIED else key).encode())
    n = np.random.RandomState(seed).standard_normal(shape)
    if key.endswith("running_var"):
        value = 1 + 0.5 * np.abs(n)
    elif key.endswith("running_mean"):
        value = 0.2 * n
    elif key.endswith("c_attn"):
        value = 1 + 0.3 * n
    elif "rel_pos_table" in key:
        value = 0.5 * n
    elif "embed_tokens" in key or key in TIED:
        value = n * 2.8 / np.sqrt(shape[-1])
    elif any(
        part in key for part in ("embed_positions", "embed_image_positions", "type_embedding")
    ):
        value = 0.5 * n
    elif key.endswith(".bias"):
        value = 0.1 * n
    elif key.endswith("bn3.weight"):
        value = 0.5 + 0.1 * n
    elif len(shape) == 1:
        value = 1 + 0.2 * n
    elif len(shape) == 4:
        value = n * np.sqrt(2 / np.prod(shape[1:]))
    else:
        value = n / np.sqrt(shape[1])
    return value.astype(np.float16)


def state_dict(shapes: Mapping[str, tuple[Sequence[int], str]]) -> dict[str, np.ndarray]:
    """Returns all float tensors of {name: (shape, dtype)} as float32.

    Integer buffers follow from the configuration and are not part of the recipe.
    """
    return {
        key: tensor(key, shape).astype(np.float32)
        for key, (shape, dtype) in shapes.items()
        if "float" in dtype and not key.endswith("version")
    }


def official(size: str, golden: pathlib.Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Returns (arguments, state dict with integer buffers) of a published size."""
    from ofa_jax.interop import config_from_fairseq, from_fairseq, to_fairseq

    arch = json.loads((golden / "resnet" / "ofa_archs.json").read_text())[f"ofa_{size}"]
    config = config_from_fairseq(arch["args"], arch["args"]["vocab_size"])
    variables = from_fairseq(state_dict(arch["state_dict"]), config)
    return arch["args"], to_fairseq(variables, config)
