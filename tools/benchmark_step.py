"""Times the training step on this machine: seconds, examples and FLOPs per second, and their parts.

    python -m tools.benchmark_step
    python -m tools.benchmark_step --steps=0      # times nothing: what XLA made of each program
    python -m tools.benchmark_step --size=base --steps=3
    python -m tools.benchmark_step --size=tiny --batch_size=8 --dtype=bfloat16 --json

The step is the real one: dropout, stochastic depth, batch statistics, clipping and Adam, on one
batch of images with sampled patches. FLOPs are those that XLA
counts before optimisation. `share_of_matmul_rate` is relative to a float32 matrix product that is
measured on the same machine just before. The parts are timed as separate programs; the whole step
may overlap them or share work between them, so their times need not add up. Bytes are those that
XLA's instructions read and write after optimisation, "temporary" is the memory of a run beside
arguments and results, and page faults are the kernel's count for a run; none of these depends on
how busy the machine is.
"""

import argparse
import dataclasses
import functools
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.table import Table

from ofa_jax.model import OFA, SIZES, OFAConfig
from ofa_jax.model.resnet import ResNet, normalise_images
from ofa_jax.sharding import Partitioner, train_state
from ofa_jax.training import losses, step
from ofa_jax.training.losses import LossConfig
from ofa_jax.training.optimizer import OptimizerConfig, make_optimizer
from ofa_jax.utils import platforms

from .command import user_command

NUM_SPECIAL_IDS = 4


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is timed; the defaults are the shapes of the `pairs` stream at a batch of 4.

    Attributes:
      size: of the model.
      batch_size: examples.
      image_size: pixels a side; 0 for text alone.
      num_patches: sampled ones; 0 for all.
      source_length, target_length: tokens.
      dtype: "float32" or "bfloat16".
    """

    size: str = "tiny"
    batch_size: int = 4
    image_size: int = 384
    num_patches: int = 196
    source_length: int = 32
    target_length: int = 30
    dtype: str = "float32"

    @property
    def config(self) -> OFAConfig:
        """The model, as it is pretrained."""
        return getattr(OFAConfig, self.size)(dtype=self.dtype)

    def batch(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Returns a random batch of full length, without padding."""
        rng = np.random.default_rng(seed)
        ids = lambda length: rng.integers(  # noqa: E731
            NUM_SPECIAL_IDS, self.config.vocab_size, (self.batch_size, length), np.int32
        )
        batch = {
            "encoder_input_tokens": ids(self.source_length),
            "decoder_input_tokens": ids(self.target_length),
            "decoder_target_tokens": ids(self.target_length),
            "decoder_loss_weights": np.ones((self.batch_size, self.target_length), np.float32),
            "task_ids": np.zeros(self.batch_size, np.int32),
        }
        if self.image_size:
            shape = (self.batch_size, self.image_size, self.image_size, 3)
            batch["encoder_images"] = rng.integers(0, 256, shape, np.uint8)
            grid = (self.image_size // 16) ** 2
            if self.num_patches:
                orders = [rng.permutation(grid)[: self.num_patches] for _ in range(self.batch_size)]
                batch["encoder_patch_indices"] = np.array(orders, np.int32)
        return batch


@dataclasses.dataclass(frozen=True)
class Timing:
    """The timing of a program.

    Attributes:
      seconds: median of the runs; NaN without runs.
      flops: of one run, as XLA counts the program before optimisation.
      compile_seconds: until the program could run.
      runs: seconds of each run.
      bytes_accessed: that the compiled program's instructions read and write, as XLA counts them.
      temporary_bytes: memory of a run beside arguments and results.
      page_faults: of a run, on average; NaN without runs.
    """

    seconds: float
    flops: float
    compile_seconds: float
    runs: tuple[float, ...] = ()
    bytes_accessed: float = np.nan
    temporary_bytes: float = np.nan
    page_faults: float = np.nan

    @property
    def flops_per_second(self) -> float:
        """FLOP/s."""
        return self.flops / self.seconds


def time_program(
    function: Callable[..., Any], arguments: Sequence[Any], runs: int, donate: bool = False
) -> Timing:
    """Compiles a function, runs it once for nothing, then `runs` times.

    Args:
      function: of arrays; with `donate` it returns its first argument's successor first.
      arguments: to call it with.
      runs: counted ones; 0 to compile alone.
      donate: give the first argument's memory away, as training does.
    """
    start = time.perf_counter()
    lowered = jax.jit(function, donate_argnums=0 if donate else ()).lower(*arguments)
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - start
    arguments, seconds, faults = list(arguments), [], [_page_faults()]
    for _ in range(runs + 1 if runs else 0):
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
        faults.append(_page_faults())
        if donate:
            arguments[0] = result[0]
    counted = tuple(seconds[1:])
    return Timing(
        seconds=float(np.median(counted)) if runs else np.nan,
        flops=_flops(lowered),
        compile_seconds=compile_seconds,
        runs=counted,
        bytes_accessed=float((compiled.cost_analysis() or {}).get("bytes accessed", np.nan)),
        temporary_bytes=float(getattr(compiled.memory_analysis(), "temp_size_in_bytes", np.nan)),
        page_faults=(faults[-1] - faults[1]) / runs if runs else np.nan,
    )


def _page_faults() -> int:
    """Returns the pages that the kernel has given to this process until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _flops(lowered: Any) -> float:
    analysis = lowered.cost_analysis() or {}
    return float(analysis.get("flops", np.nan))


def matmul_rate(runs: int, side: int = 2048) -> float:
    """Measures the FLOP/s of a float32 product of two square matrices on one device."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((side, side), np.float32))
    timing = time_program(lambda x: x @ x, [x], max(runs, 5) if runs else 0)
    return 2 * side**3 / timing.seconds


def time_step(work: Workload, runs: int) -> Timing:
    """Times the whole training step with its state donated."""
    model, device = OFA(work.config), jax.devices()[:1]
    optimizer_config = OptimizerConfig(1e-4, total_steps=1000)
    optimizer = make_optimizer(optimizer_config)
    abstract = train_state.abstract_state(model, optimizer, Partitioner(devices=tuple(device)))
    train_step = step.make_train_step(
        model, optimizer, optimizer_config, LossConfig(), {"pairs": "pairs"}, 1, seed=0
    )
    first = train_state.create_state(model, optimizer, abstract, seed=0)
    return time_program(train_step, [first, {"pairs": work.batch()}], runs, donate=True)


def time_parts(work: Workload, runs: int) -> dict[str, Timing]:
    """Times the ResNet, the whole model and the optimizer update, one by one."""
    batch = work.batch()
    boxed = OFA(work.config).init(
        jax.random.key(0),
        {name: batch[name][:1] for name in ("encoder_input_tokens", "decoder_input_tokens")},
    )
    variables = nn.meta.unbox(boxed)
    parts = {}
    if work.image_size:
        parts |= _time_resnet(work.config, variables, batch["encoder_images"], runs)
    parts |= _time_model(work.config, variables, batch, runs)
    parts["clipping and Adam"] = _time_update(variables["params"], runs)
    return parts


def _time_resnet(
    config: OFAConfig,
    variables: Mapping[str, Any],
    images: UInt8[np.ndarray, "batch height width 3"],
    runs: int,
) -> dict[str, Timing]:
    """Times the ResNet on a batch of images."""
    own = [variables[part]["encoder"]["resnet"] for part in ("params", "batch_stats")]

    def features(params, statistics, images, config, train):
        """Returns the sum of the features, a scalar to differentiate, and new statistics."""
        x, updates = ResNet(config).apply(
            {"params": params, "batch_stats": statistics},
            normalise_images(images),
            train,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return x.astype(jnp.float32).sum(), updates

    def forward(config, train):
        return functools.partial(features, config=config, train=train)

    def backward(config):
        return jax.grad(forward(config, True), has_aux=True)

    frozen = config.replace(freeze_batch_norm=True)
    programs = {
        "ResNet, evaluation": forward(config, False),
        "ResNet, forward": forward(config, True),
        "ResNet, forward and backward": backward(config),
        "the same, norms frozen": backward(frozen),
    }
    return {name: time_program(program, [*own, images], runs) for name, program in programs.items()}


def _time_model(
    config: OFAConfig, variables: Mapping[str, Any], batch: Mapping[str, np.ndarray], runs: int
) -> dict[str, Timing]:
    """Times the whole model and its loss."""
    model, key = OFA(config), jax.random.key(0)

    def loss(params, batch):
        """Returns the summed loss of the batch."""
        logits, _ = model.apply(
            variables | {"params": params},
            batch,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        tokens = losses.token_losses(
            logits, batch["decoder_target_tokens"], batch["decoder_loss_weights"], LossConfig()
        )
        return tokens.loss.sum()

    arguments = [variables["params"], batch]
    return {
        "model and loss, forward": time_program(loss, arguments, runs),
        "model and loss, forward and backward": time_program(jax.grad(loss), arguments, runs),
    }


def _time_update(gradients: Any, runs: int) -> Timing:
    """Times clipping and Adam; parameters of the same values stand for the gradients."""
    optimizer = make_optimizer(OptimizerConfig(1e-4, total_steps=1000))
    params = jax.tree.map(jnp.copy, gradients)

    def update(carried, gradients):
        params, moments = carried
        updates, moments = optimizer.update(gradients, moments, params)
        return (jax.tree.map(jnp.add, params, updates), moments), None

    return time_program(update, [(params, optimizer.init(params)), gradients], runs, donate=True)


@user_command
def main(arguments: Sequence[str]) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for field in dataclasses.fields(Workload):
        choices = {"size": SIZES, "dtype": ("float32", "bfloat16")}.get(field.name)
        parser.add_argument(
            f"--{field.name}", type=type(field.default), default=field.default, choices=choices
        )
    parser.add_argument("--steps", type=int, default=5, help="counted runs; 0 compiles alone")
    parser.add_argument("--no_parts", action="store_true", help="time the whole step alone")
    parser.add_argument("--json", action="store_true", help="one object instead of a table")
    options = parser.parse_args(arguments)
    platforms.skip_missing_tpu()
    work = Workload(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Workload)})
    if min(work.batch_size, work.source_length, work.target_length, options.steps + 1) < 1:
        parser.error(
            "batch_size, source_length and target_length must be at least 1, and steps 0 or more."
        )
    if work.image_size % 16 or work.num_patches > (work.image_size // 16) ** 2:
        parser.error(
            f"images of {work.image_size} pixels have no {work.num_patches} patches of 16: "
            "choose a multiple of 16, and fewer patches (0 for all)."
        )

    rate = matmul_rate(options.steps)
    timings = {"whole step": time_step(work, options.steps)}
    if not options.no_parts:
        timings |= time_parts(work, options.steps)
    if options.json:
        print(json.dumps(_as_json(work, rate, timings)))
    else:
        _print_table(work, rate, timings, options.steps)


def _as_json(work: Workload, rate: float, timings: dict[str, Timing]) -> dict[str, Any]:
    """Returns what `--json` prints."""
    figures = {
        "workload": dataclasses.asdict(work),
        "device": jax.devices()[0].device_kind,
        "matmul_flops_per_second": rate,
        "examples_per_second": work.batch_size / timings["whole step"].seconds,
        "programs": {
            name: dataclasses.asdict(timing)
            | {
                "flops_per_second": timing.flops_per_second,
                "share_of_matmul_rate": timing.flops_per_second / rate,
            }
            for name, timing in timings.items()
        },
    }
    return _without_nan(figures)


def _without_nan(figures: Any) -> Any:
    """Replaces NaN, which JSON does not know, by None in nested dicts."""
    if isinstance(figures, dict):
        return {name: _without_nan(value) for name, value in figures.items()}
    return None if isinstance(figures, float) and np.isnan(figures) else figures


def _print_table(work: Workload, rate: float, timings: dict[str, Timing], steps: int) -> None:
    """Prints the timings as a table."""
    table = Table(
        title=f"OFA-{work.size}, batch {work.batch_size}, {work.image_size} px, "
        f"{work.num_patches or 'all'} patches, {work.source_length} + {work.target_length} tokens, "
        f"{work.dtype}, on {jax.devices()[0].device_kind}"
    )
    for name in (
        "program",
        "seconds",
        "GFLOP",
        "GFLOP/s",
        "of matmul rate",
        "GB moved",
        "GB temporary",
        "page faults",
        "compiled in",
    ):
        table.add_column(name, justify="left" if name == "program" else "right")

    def shown(number: float, form: str) -> str:
        return "" if np.isnan(number) else format(number, form)

    for name, timing in timings.items():
        table.add_row(
            name,
            shown(timing.seconds, ".3f"),
            f"{timing.flops / 1e9:.1f}",
            shown(timing.flops_per_second / 1e9, ".1f"),
            shown(timing.flops_per_second / rate, ".0%"),
            shown(timing.bytes_accessed / 1e9, ".2f"),
            shown(timing.temporary_bytes / 1e9, ".2f"),
            shown(timing.page_faults, ",.0f"),
            f"{timing.compile_seconds:.0f} s",
        )
    console = Console(width=max(Console().width, 120))  # where narrower, columns would be cut
    console.print(table)
    if not steps:
        return
    console.print(
        f"{work.batch_size / timings['whole step'].seconds:.2f} examples/s; float32 matmul here: "
        f"{rate / 1e9:.0f} GFLOP/s; median of {steps} runs.",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
