"""Loads a trained model for inference: configuration and variables of any checkpoint.

Example:
    model, variables = load_model("runs/pretrain_scenes", partitioner)
"""

from typing import Any

import optax

from ofa_jax.checkpoints import storage, warm_start
from ofa_jax.interop import files, from_fairseq
from ofa_jax.model import OFA, OFAConfig
from ofa_jax.sharding import Partitioner, train_state

__all__ = ["load_config", "load_model", "load_variables"]


def load_config(path: str) -> OFAConfig:
    """Loads the configuration of a checkpoint's model.

    Args:
      path: a run directory, a folder `checkpoints/<step>`, or an official checkpoint.

    Raises:
      FileNotFoundError: there is no checkpoint, or no configuration beside it.
      ValueError: an official checkpoint is damaged or unsupported.
    """
    if files.is_official(path):
        return files.read(path, verify=False).config
    return storage.read_model_config(path)


def load_variables(
    path: str, config: OFAConfig, partitioner: Partitioner, weights: str | None = None
) -> dict[str, Any]:
    """Loads parameters and batch statistics onto the mesh.

    Call this function outside of `partitioner.mesh_context()`. Weights that the checkpoint holds
    and that are not taken are logged.

    Args:
      path: as for `load_config`.
      config: of the checkpoint; only fields that do not affect parameters may differ.
      partitioner: the mesh.
      weights: "model" for the last parameters, "ema" for the averaged ones; when None, those of a
        run are the averaged ones if it has them, and those of an official checkpoint the last ones.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it is damaged, of another model, or does not hold these weights.
    """
    if not files.is_official(path):
        averaged = warm_start.takes_average(path, weights, default=True)
        wanted = train_state.abstract_state(OFA(config), optax.identity(), partitioner).variables
        return storage.restore_variables(path, wanted, averaged)
    official = files.read(path, weights or "model")
    variables = from_fairseq(official.state_dict, config)
    warm_start.log_weights(path, official)
    wanted = train_state.abstract_state(OFA(config), optax.identity(), partitioner).variables
    return warm_start.place(variables, wanted)


def load_model(
    path: str, partitioner: Partitioner, weights: str | None = None
) -> tuple[OFA, dict[str, Any]]:
    """Loads a checkpoint's model and variables; see `load_config` and `load_variables`."""
    config = load_config(path)
    return OFA(config), load_variables(path, config, partitioner, weights)
