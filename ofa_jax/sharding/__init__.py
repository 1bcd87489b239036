"""Placement of arrays on a device mesh.

axis_rules       mesh axes, and the default rules from logical axes to mesh axes
mesh             `Partitioner`: the mesh, shardings of parameters, and batches
param_gathering  gathering sharded weights once per step
train_state      `TrainState`: what training updates, created with its shardings

partitioner = Partitioner(data=-1, fsdp=4)
state = create_state(model, optimizer, abstract_state(model, optimizer, partitioner), seed=0)
with partitioner.mesh_context():
    state, metrics = train_step(state, partitioner.put_batch(batch))
"""

from ofa_jax.sharding.axis_rules import BATCH_AXES, DEFAULT_AXIS_RULES, MESH_AXES, AxisRules
from ofa_jax.sharding.mesh import Partitioner
from ofa_jax.sharding.train_state import TrainState, abstract_state, create_state

__all__ = [
    "BATCH_AXES",
    "DEFAULT_AXIS_RULES",
    "MESH_AXES",
    "AxisRules",
    "Partitioner",
    "TrainState",
    "abstract_state",
    "create_state",
]
