"""A trained model to be asked: configuration and variables of a checkpoint, ours or the original's.

model, variables = trained_model.load("runs/pretrain_scenes", partitioner)
"""

from typing import Any

import optax

from ofa_jax.checkpoints import storage, warm_start
from ofa_jax.interop import files, from_fairseq
from ofa_jax.model import OFA, OFAConfig
from ofa_jax.sharding import Partitioner, train_state


def config_of(path: str) -> OFAConfig:
    """What model a checkpoint is of.

    Args:
      path: a run directory, a folder `checkpoints/<step>`, or a checkpoint of others.

    Raises:
      FileNotFoundError, ValueError: there is none, or it does not say.
    """
    if files.is_official(path):
        return files.read(path).config
    return storage.read_model(path)


def load_variables(path: str, config: OFAConfig, partitioner: Partitioner) -> dict[str, Any]:
    """Parameters and batch statistics, on the mesh; the averaged ones, if the run kept any.

    Call it outside of `partitioner.mesh_context()`.

    Args:
      path: as for `config_of`.
      config: of the checkpoint; only what is not learned may differ.
      partitioner: the mesh.

    Raises:
      FileNotFoundError, ValueError: there is none, or it is damaged, or of another model.
    """
    wanted = train_state.abstract_state(OFA(config), optax.identity(), partitioner).variables
    if files.is_official(path):
        return warm_start.placed(from_fairseq(files.read(path).state_dict, config), wanted)
    return storage.restore_variables(path, wanted, averaged=True)


def load(path: str, partitioner: Partitioner) -> tuple[OFA, dict[str, Any]]:
    """Model and variables of a checkpoint."""
    config = config_of(path)
    return OFA(config), load_variables(path, config, partitioner)
