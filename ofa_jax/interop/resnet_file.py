"""Reads and writes a ResNet alone, as torchvision saves it.

The official code starts from a ResNet trained on ImageNet (option `--resnet-model-path`). Names in
the file are torchvision's (conv1.weight, layer1.0.bn1.weight); the fourth stage and the classifier,
which OFA does not have, are ignored.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax
import numpy as np

from ofa_jax.interop import torch_file
from ofa_jax.interop.tensor_layout import RESNET, resnet_entries
from ofa_jax.model import layout
from ofa_jax.model.config import OFAConfig


def read(path: str | pathlib.Path, config: OFAConfig) -> dict[str, Any]:
    """Reads the ResNet's variables from a torch file.

    Args:
      path: of a state dict, or of a file that holds one as "state_dict" or "model".
      config: of the model that it is for.

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
                f"{key} is {list(np.shape(held[key]))} in the file, and must be "
                f"{list(entry.official_shape)}"
            )
        else:
            variables[entry.path] = entry.to_ours(held[key])
    if wrong:
        more = f" (and {len(wrong) - 1} more)" * (len(wrong) > 1)
        raise ValueError(
            f"The ResNet in {path} is not the model's, whose resnet_layers are "
            f"{config.resnet_layers} and resnet_width {config.resnet_width}: {wrong[0]}{more}. "
            "Give the model these sizes, or take another ResNet."
        )
    return layout.from_plain(flax.traverse_util.unflatten_dict(variables), config)


def write(path: str | pathlib.Path, variables: Mapping[str, Any], config: OFAConfig) -> None:
    """Writes a ResNet as `read` reads it.

    Args:
      path: of the new file.
      variables: as `read` returns them; the rest of a whole model is ignored.
      config: of the model.
    """
    flat = flax.traverse_util.flatten_dict(layout.to_plain(variables, config))
    torch_file.save(
        path,
        {
            entry.key.removeprefix(f"{RESNET}."): entry.to_official(flat[entry.path])
            for entry in resnet_entries(config)
        },
    )
