"""A run of the small model on random batches, which follow from the step alone."""

import functools
import io

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from rich.console import Console
from small_model import SMALL, random_batch

from ofa_jax.model import OFA, layout
from ofa_jax.sharding import Partitioner, train_state
from ofa_jax.training import step
from ofa_jax.training.loop_config import LoopConfig
from ofa_jax.training.losses import LossConfig
from ofa_jax.training.optimizer import OptimizerConfig, make_optimizer
from ofa_jax.training.run import Run

TASKS = ("first", "second")
GROUPS = {"pairs": "pairs", "text": "others"}


def stream_batch(seed, pixels, size=4):
    """Returns a batch of one stream with its targets."""
    batch = random_batch(seed, size=size, pixels=pixels, codes=bool(pixels))
    targets = np.roll(batch["decoder_input_tokens"], -1, axis=1)
    targets[:, -1] = SMALL.pad_id
    scored = targets != SMALL.pad_id
    task_ids = np.arange(size, dtype=np.int32) % 2
    return batch | {
        "decoder_target_tokens": targets,
        "decoder_loss_weights": scored.astype(np.float32),
        "task_ids": task_ids,
    }


def batches(start=0):
    """Yields {stream: batch} for every step from `start` on."""
    number = start
    while True:
        yield {"pairs": stream_batch(2 * number, 48), "text": stream_batch(2 * number + 1, 0)}
        number += 1


class Events:
    """A metric writer that keeps all scalars in memory."""

    def __init__(self):
        self.scalars: dict[int, dict[str, float]] = {}

    def write_scalars(self, step, scalars):
        self.scalars.setdefault(step, {}).update(scalars)

    def flush(self):
        pass


def make_parts(
    config=SMALL, loss=None, partitioner=None, groups=GROUPS, gradient_accumulation=1, **options
):
    """Returns (abstract state, function that makes a state, train step, eval step)."""
    model, loss = OFA(config), loss or LossConfig()
    optimizer_config = OptimizerConfig(1e-2, total_steps=100, warmup=0, **options)
    optimizer = make_optimizer(optimizer_config)
    partitioner = partitioner or Partitioner()
    abstract = train_state.abstract_state(
        model, optimizer, partitioner, optimizer_config.ema_decay is not None
    )
    train_step = step.make_train_step(
        model,
        optimizer,
        optimizer_config,
        loss,
        groups,
        len(TASKS),
        3,
        gradient_accumulation,
        gather=partitioner.make_gather_params(abstract.params, config.dtype),
    )
    eval_step = step.make_eval_step(model, len(TASKS))
    return abstract, lambda: new_state(config, abstract), train_step, eval_step


def new_state(config, abstract):
    """Returns a state of step 0, whose parameters are the same in all tests of a configuration.

    The first call must be outside of a mesh.
    """
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
    variables = layout.from_plain(
        _plain_variables(
            config.replace(
                dropout_rate=0.0,
                encoder_drop_path_rate=0.0,
                decoder_drop_path_rate=0.0,
                scan_layers=False,
                vocab_multiple=1,
            )
        ),
        config,
    )
    first = zeros.replace(
        **variables, ema_params=None if zeros.ema_params is None else variables["params"]
    )
    # Copies, because the step donates its state.
    return jax.tree.map(lambda x, like: jax.device_put(np.array(x), like.sharding), first, abstract)


@functools.cache
def _plain_variables(config):
    """Returns parameters distributed as the model's own, whose compilation would take longer."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(OFA(config).init, jax.random.key(0), random_batch()))

    def draw(path, x):
        *place, name = (entry.key for entry in path)
        if name in ("bias", "mean") or place[-1] == "up":
            return np.zeros(x.shape, x.dtype)
        if name in ("scale", "head_scale", "residual_scale", "var"):
            return np.ones(x.shape, x.dtype)
        deviation = np.sqrt(2 / (x.size / x.shape[-2])) if "resnet" in place else 0.02
        return (deviation * rng.standard_normal(x.shape)).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def _parts_of_a_run():
    """Returns the parts that all runs share, so that their steps are compiled only once."""
    parts = make_parts(SMALL.replace(dropout_rate=0.1))
    parts[1]()  # its parameters cannot be made within the loop's mesh
    return parts


def make_run(model_dir, validation=False, run_fingerprint=None, peak_flops=None, **config) -> Run:
    """Returns a run whose output goes to `run.console.file` and `run.writer`."""
    abstract, first_state, train_step, eval_step = _parts_of_a_run()
    held_out = [("pairs", stream_batch(1000, 48)), ("text", stream_batch(1001, 0))]
    tokens = np.array([20.0, 20.0])
    return Run(
        model_dir=epath.Path(model_dir),
        run_fingerprint=run_fingerprint or {"seed": 3, "shape": (1, 2)},
        config=LoopConfig(**config),
        partitioner=Partitioner(),
        train_step=train_step,
        eval_step=eval_step,
        abstract_state=abstract,
        new_state=first_state,
        batches=batches,
        validation_batches=(lambda: held_out) if validation else None,
        baselines=lambda: (tokens * 4.0, tokens * 0.25, tokens),
        examples_per_step=8,
        flops_per_step=4e6,
        peak_flops=peak_flops,
        task_names=TASKS,
        skipped_records=lambda: 7,
        pad_id=SMALL.pad_id,
        writer=Events(),
        console=Console(file=io.StringIO(), width=100),
    )
