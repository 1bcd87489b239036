"""Lowers the training step, as the loop runs it and as a plan does."""

import dataclasses

import gin
import jax

from ofa_jax.cli import gin_registry, plan_command
from ofa_jax.planning import programs
from ofa_jax.planning.programs import PlannedRun
from ofa_jax.training.step import jit_train_step


def trained_step(run) -> str:
    """Returns the program that `loop.train` would compile for a run and its first batches."""
    batches = {
        name: run.partitioner.put_batch(batch) for name, batch in next(run.batches(0)).items()
    }
    with run.partitioner.mesh_context():
        jitted = jit_train_step(run.train_step, run.abstract_state)
        return jitted.lower(run.abstract_state, batches).as_text()


def planned_step(vocab_size, **replaced) -> str:
    """Returns the program that `ofa_jax.plan` lowers for the loaded gin files.

    Args:
      vocab_size: as on the command line.
      **replaced: fields of `PlannedRun` that depend on the data.
    """
    with gin.unlock_config():
        gin_registry.register({"plan": PlannedRun})
    planned = plan_command.configured_run(jax.devices(), 1, vocab_size)
    planned = dataclasses.replace(planned, **replaced)
    return programs.trace_training(planned).lowered.as_text()
