"""The small model of the golden tests, its cases, and models with random variables."""

import functools
import json

import flax.linen as nn
import jax
import numpy as np
from small_model import SMALL, random_batch

from ofa_jax.interop import config_from_fairseq, from_fairseq, to_fairseq
from ofa_jax.model import OFA


def batch_of(case) -> dict[str, np.ndarray]:
    """Converts a golden case (names of the reference, NCHW images) to a batch."""
    batch = {
        "encoder_input_tokens": case["in_src_tokens"].astype(np.int32),
        "decoder_input_tokens": case["in_prev_output_tokens"].astype(np.int32),
    }
    if "in_patch_images" in case:
        batch["encoder_images"] = case["in_patch_images"].transpose(0, 2, 3, 1)
        batch["encoder_image_mask"] = case["in_patch_masks"]
    if "in_code_masks" in case:
        batch["decoder_code_mask"] = case["in_code_masks"]
    if "patch_orders" in case:
        batch["encoder_patch_indices"] = case["patch_orders"].astype(np.int32)
    return batch


def read_tiny(golden) -> tuple[dict, int, dict[str, np.ndarray]]:
    """Returns arguments, vocabulary size and state dict (float16) of the small official model."""
    folder = golden / "model_tiny"
    description = json.loads((folder / "config.json").read_text())
    with np.load(folder / "state_dict_f16.npz") as arrays:
        return description["args"], description["vocab"]["size"], dict(arrays)


def make_tiny(golden) -> tuple[dict, dict[str, np.ndarray]]:
    """Returns its arguments and float32 state dict, with buffers and counters."""
    args, vocab_size, saved = read_tiny(golden)
    config = config_from_fairseq(args, vocab_size)
    return args, to_fairseq(from_fairseq(saved, config), config)


class Official:
    """A model with the weights of the golden runs of the official code, and its cases."""

    def __init__(self, folder):
        self.folder = folder
        description = json.loads((folder / "config.json").read_text())
        self.config = config_from_fairseq(description["args"], description["vocab"]["size"])
        self.state_dict = dict(np.load(folder / "state_dict_f16.npz"))
        self.variables = from_fairseq(self.state_dict, self.config)
        self.model = OFA(self.config)
        self.apply = jax.jit(self.model.apply)
        self.encode = jax.jit(lambda v, b: self.model.apply(v, b, method="encode"))

    def case(self, name):
        """Returns the arrays of a golden case and its batch."""
        case = dict(np.load(self.folder / f"case_{name}.npz"))
        return case, batch_of(case)


def random_variables(config=SMALL):
    """Returns random variables, so that no parameter has a neutral value."""
    variables = _shapes(config)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: (0.8 * rng.standard_normal(x.shape)).astype(np.float32), variables["params"]
    )
    statistics = jax.tree.map(
        lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32), variables["batch_stats"]
    )
    return {"params": params, "batch_stats": statistics}


@functools.cache
def _shapes(config):
    return nn.meta.unbox(jax.eval_shape(OFA(config).init, jax.random.key(0), random_batch()))
