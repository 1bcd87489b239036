"""A run for fault injection: the real loop, loader, checkpoints and mesh, and a tiny network.

    PYTHONPATH=. python tests/helpers/fault_run.py MODEL_DIR --steps=20 [flags of several hosts]

For every step, also of restarted runs, it writes into MODEL_DIR `losses.txt` ("step loss") and
`rows.<process>.txt` ("step row" and its target tokens); and `pid.<process>`.
"""

import argparse
import dataclasses
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from ofa_jax.checkpoints.manager import SaveError
from ofa_jax.data.features import PAD_ID, Stream
from ofa_jax.data.loader import Loader
from ofa_jax.data.sampling import WeightedTask
from ofa_jax.data.sources.memory import InMemoryRecords
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.sharding import Partitioner, TrainState
from ofa_jax.training import loop, loop_config, metrics
from ofa_jax.training.run import Run
from ofa_jax.training.step import StepMetrics
from ofa_jax.utils import distributed

VOCABULARY, WIDTH = 64, 8
STREAM = Stream("text", "texts", 8, {"inputs": 4, "targets": 4})
BAD = (3, 11)


@dataclasses.dataclass(frozen=True)
class EncodeNumber:
    """Makes an example whose targets are the record's number and a random draw."""

    def __call__(self, record, rng):
        if record["number"] in BAD:
            raise InvalidRecordError("is one of the bad ones")
        draw = int(rng.integers(4, VOCABULARY))
        number = record["number"] + 4
        return {
            "inputs": np.array([0, number, 2], np.int32),
            "targets": np.array([number, draw, 2], np.int32),
        }


def make_loader(partitioner):
    """Returns a loader of 40 and 20 records at rates of 2 to 1, two of them invalid."""
    tasks = [
        WeightedTask(
            name, rate, InMemoryRecords([{"number": k} for k in range(count)]), EncodeNumber()
        )
        for name, rate, count in (("often", 2.0, 40), ("rarely", 1.0, 20))
    ]
    return Loader(
        [STREAM], {"text": tasks}, 5, partitioner.num_data_shards, partitioner.data_shards
    )


OPTIMIZER = optax.adam(1e-2)


def new_params(key):
    """Returns random parameters: an embedding and a kernel."""
    shapes = {"embedding": (VOCABULARY, WIDTH), "kernel": (WIDTH, VOCABULARY)}
    keys = jax.random.split(key, len(shapes))
    return {
        name: 0.1 * jax.random.normal(k, shape)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def make_state(key):
    """Returns the state of step 0."""
    params = new_params(key)
    return TrainState(jnp.int32(0), jnp.int32(0), params, {}, OPTIMIZER.init(params))


def abstract_state(partitioner):
    """Returns the abstract state: matrices are split over fsdp, other arrays replicated."""

    def place(x):
        spec = PartitionSpec("fsdp") if x.ndim == 2 else PartitionSpec()
        sharding = NamedSharding(partitioner.mesh, spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, jax.eval_shape(make_state, jax.random.key(0)))


def train_step(state, batches):
    """Predicts each target token from the one before, under noise that follows from the step."""
    batch = batches["text"]
    targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]

    def loss_of(params):
        hidden = params["embedding"][batch["decoder_input_tokens"]]
        noise = jax.random.bernoulli(
            jax.random.fold_in(jax.random.key(9), state.step), 0.9, hidden.shape
        )
        nll = optax.softmax_cross_entropy_with_integer_labels(
            (hidden * noise) @ params["kernel"], targets
        )
        return (nll * weights).sum() / weights.sum(), nll

    (loss, nll), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = OPTIMIZER.update(gradients, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    new = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
    sums = metrics.task_sums(nll, weights > 0, batch["task_ids"], 2)
    norm = optax.tree.norm
    return new, StepMetrics(loss, norm(gradients), norm(params), jnp.float32(1e-2), sums)


class Losses:
    """A metric writer that appends the losses to a file."""

    def __init__(self, path):
        self._path = path

    def write_scalars(self, step, scalars):
        if jax.process_index() == 0 and "train/loss" in scalars:
            with self._path.open("a") as file:
                file.write(f"{step} {scalars['train/loss']!r}\n")

    def flush(self):
        pass


def log_rows(batches, start, path, partitioner):
    """Yields the batches unchanged, and logs the target tokens of every row."""
    for step, batch in enumerate(batches, start + 1):
        tokens = batch["text"]["decoder_target_tokens"]
        parts = np.split(tokens, len(partitioner.data_shards))
        with path.open("a") as file:
            for shard, rows in zip(partitioner.data_shards, parts, strict=True):
                place = shard * STREAM.batch_size // partitioner.num_data_shards
                for number, row in enumerate(rows, place):
                    file.write(f"{step} {number} {row.tolist()}\n")
        yield batch


def make_run(options, partitioner):
    """Returns the run that the loop trains."""
    directory = epath.Path(options.model_dir)
    directory.mkdir(parents=True, exist_ok=True)
    loader = make_loader(partitioner)
    abstract = abstract_state(partitioner)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    rows = directory / f"rows.{jax.process_index()}.txt"
    pid = directory / f"pid.{jax.process_index()}"
    temporary = pid.with_name(f"{pid.name}.tmp")
    temporary.write_text(str(os.getpid()))
    temporary.replace(pid)  # atomic

    def batches(start):
        for batch in log_rows(loader.batches(start), start, rows, partitioner):
            time.sleep(options.step_seconds)
            yield batch

    return Run(
        model_dir=directory,
        run_fingerprint={"seed": 5},
        config=loop_config.LoopConfig(
            total_steps=options.steps, log_period=1, checkpoint_period=options.checkpoint_period
        ),
        partitioner=partitioner,
        train_step=train_step,
        eval_step=lambda variables, batch, sums: sums,
        abstract_state=abstract,
        new_state=lambda: jax.jit(make_state, out_shardings=shardings)(jax.random.key(0)),
        batches=batches,
        validation_batches=None,
        baselines=lambda: None,
        examples_per_step=STREAM.batch_size,
        flops_per_step=6 * VOCABULARY * WIDTH * 4 * STREAM.batch_size,
        peak_flops=None,
        task_names=loader.task_names,
        skipped_records=loader.skipped_records.total,
        pad_id=PAD_ID,
        writer=Losses(directory / "losses.txt"),
        console=Console(quiet=jax.process_index() > 0, width=200),
    )


def parse(arguments):
    """Parses the options of a run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model_dir")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--checkpoint_period", type=int, default=2)
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--step_seconds", type=float, default=0.0)
    distributed.add_arguments(parser)
    return parser.parse_args(arguments)


def main(arguments):
    """Trains as the command line says; RunError exits with code 2, SaveError with 1."""
    options = parse(arguments)
    distributed.initialize(distributed.from_arguments(options))
    flags.FLAGS(["fault_run"])
    try:
        loop.train(make_run(options, Partitioner(fsdp=options.fsdp)))
    except loop.RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except SaveError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    with distributed.crashes_end_at_once():
        main(sys.argv[1:])
