"""A ResNet by itself, in the file that torchvision has for one.

The original begins from a ResNet that has learned to name the images of ImageNet (its option
`--resnet-model-path`). Names within the file are torchvision's: conv1.weight, layer1.0.bn1.weight;
the fourth stage and the classifier, which OFA does not have, are passed over.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax
import numpy as np

from ofa_jax.interop import torch_file
from ofa_jax.interop.fairseq import RESNET, resnet_entries
from ofa_jax.model import layout
from ofa_jax.model.config import OFAConfig


def read(path: str | pathlib.Path, config: OFAConfig) -> dict[str, Any]:
    """The ResNet's variables, out of a file of torch.

    Args:
      path: of a state dict; one that holds it as "state_dict" or "model" is opened too.
      config: of the model that is to have it.

    Returns:
      {"params": {"encoder": {"resnet": ...}}, "batch_stats": ...} of float32 numpy arrays.

    Raises:
      FileNotFoundError, ValueError: there is none, or it is of another shape.
    """
    held = torch_file.load_state_dict(path, "ResNet", ("state_dict", "model"))
    variables, wrong = {}, []
    for entry in resnet_entries(config):
        key = entry.key.removeprefix(f"{RESNET}.")
        if key not in held:
            wrong.append(f"{key} is missing")
        elif np.shape(held[key]) != entry.official_shape:
            wrong.append(
                f"{key} is {list(np.shape(held[key]))} there and {list(entry.official_shape)} here"
            )
        else:
            variables[entry.path] = entry.ours(held[key])
    if wrong:
        more = f" (and {len(wrong) - 1} more)" * (len(wrong) > 1)
        raise ValueError(
            f"The ResNet in {path} is not the model's, whose resnet_layers are "
            f"{config.resnet_layers} and resnet_width {config.resnet_width}: {wrong[0]}{more}. "
            "Give the model these sizes, or take another ResNet."
        )
    return layout.from_plain(flax.traverse_util.unflatten_dict(variables), config)


def write(path: str | pathlib.Path, variables: Mapping[str, Any], config: OFAConfig) -> None:
    """The inverse of `read`.

    Args:
      path: of the new file.
      variables: as `read` returns them; what a whole model has besides is passed over.
      config: what they are of.
    """
    flat = flax.traverse_util.flatten_dict(layout.to_plain(variables, config))
    torch_file.save(
        path,
        {
            entry.key.removeprefix(f"{RESNET}."): entry.official(flat[entry.path])
            for entry in resnet_entries(config)
        },
    )
