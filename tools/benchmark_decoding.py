"""Times the encoder and the decoder on this machine.

    python -m tools.benchmark_decoding                       # base, beam 5, default device
    python -m tools.benchmark_decoding --size=tiny --batch=8 --beam=1 --json
    .venv-peer/bin/python -m tools.benchmark_decoding --peer      # see CONTRIBUTING.md

Random weights, random pixels, outputs of exactly `--tokens` tokens. The encoder, ResNet included,
and the decoder are compiled and timed apart: the fastest of `--repeats` runs after one that warms
up. The reference implementation (PyTorch, beam 5, batch 4, 16 tokens, base, 576 patches) takes
10.2 s in all on two quiet cores; `--peer` times its model and search as the package modelscope has
them, in two parts.
"""

import argparse
import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from ofa_jax.decoding import DecodingConfig
from ofa_jax.decoding.search import generate
from ofa_jax.model import OFA, SIZES, OFAConfig
from ofa_jax.model.config import PATCH_STRIDE
from ofa_jax.utils import platforms

from . import reference_model
from .command import user_command


@dataclasses.dataclass(frozen=True)
class Timings:
    """Seconds.

    Attributes:
      encoder: images and instructions of a batch.
      decoder: generation for that batch, the eos included.
      tokens: length of the outputs without the eos.
      encoder_runs, decoder_runs: of every run.
    """

    encoder: float
    decoder: float
    tokens: int
    encoder_runs: tuple[float, ...] = ()
    decoder_runs: tuple[float, ...] = ()

    @property
    def per_token(self) -> float:
        """Decoder seconds for one more token of all outputs of the batch."""
        return self.decoder / (self.tokens + 1)

    def protocol(self) -> dict[str, Any]:
        """Returns the runs as `tools.benchmark_peer` reads them."""
        runs = zip(self.encoder_runs, self.decoder_runs, strict=True)
        return {
            "seconds": [encoder + decoder for encoder, decoder in runs],
            "parts": {"encoder": list(self.encoder_runs), "decoder": list(self.decoder_runs)},
        }


def random_batch(batch_size: int, source: int, pixels: int) -> dict[str, np.ndarray]:
    """Instructions of `source` tokens and images of `pixels` a side."""
    rng = np.random.default_rng(0)
    return {
        "encoder_input_tokens": rng.integers(4, 1000, (batch_size, source), np.int32),
        "encoder_images": rng.integers(0, 256, (batch_size, pixels, pixels, 3), np.uint8),
    }


def random_variables(model: OFA, batch: dict[str, np.ndarray]) -> Any:
    """Parameters of the size that initialisation gives them; batch statistics are neutral."""
    targets = {"decoder_input_tokens": np.zeros((len(batch["encoder_images"]), 1), np.int32)}
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), batch | targets))
    rng = np.random.default_rng(0)

    def draw(path, shape):
        if path[-1].key in ("scale", "head_scale", "var"):
            return np.ones(shape.shape, np.float32)
        return 0.02 * rng.standard_normal(shape.shape, np.float32)

    return jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes))


def seconds_of_runs(function: Callable[[], Any], repeats: int) -> tuple[float, ...]:
    """Returns the seconds of some runs, after one that compiles."""
    jax.block_until_ready(function())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
    return tuple(seconds)


def measure(
    model: OFA, batch_size: int, beam: int, tokens: int, pixels: int, source: int, repeats: int
) -> Timings:
    """Times the encoder and the decoder."""
    config = DecodingConfig(beam_size=beam, max_length=tokens, min_length=tokens)
    config.check(model.config)
    longest = config.max_output_length(source, model.config)
    batch = random_batch(batch_size, source, pixels)
    variables = random_variables(model, batch)
    encode = jax.jit(functools.partial(model.apply, method="encode"))
    encoded = encode(variables, batch)
    decode = jax.jit(
        lambda variables, encoded, numbers: generate(
            model, variables, encoded, config.static_config, numbers, longest
        )
    )
    lengths = np.asarray(decode(variables, encoded, config.dynamic_params).lengths)
    if not (lengths == tokens + 1).all():
        raise RuntimeError(f"outputs of {tokens} tokens were expected, not of {lengths.min() - 1}.")
    encoder = seconds_of_runs(lambda: encode(variables, batch), repeats)
    decoder = seconds_of_runs(lambda: decode(variables, encoded, config.dynamic_params), repeats)
    return Timings(min(encoder), min(decoder), tokens, encoder, decoder)


def measure_peer(
    config: OFAConfig,
    batch_size: int,
    beam: int,
    tokens: int,
    pixels: int,
    source: int,
    repeats: int,
) -> Timings:
    """Times the reference implementation's model and search; see `reference_model`."""
    batch = random_batch(batch_size, source, pixels)
    runs = reference_model.search_seconds(config, batch, beam, tokens, repeats)
    encoder, decoder = zip(*runs, strict=True)
    return Timings(*min(runs, key=sum), tokens, encoder, decoder)


def show(timings: Timings, title: str, console: Console) -> None:
    """Prints the timings as a table."""
    table = Table(title=title, title_justify="left")
    table.add_column("part")
    table.add_column("seconds", justify="right")
    for name, seconds in (
        ("encoder, ResNet included", timings.encoder),
        (f"decoder, {timings.tokens} tokens and eos", timings.decoder),
        ("    per token", timings.per_token),
        ("both", timings.encoder + timings.decoder),
    ):
        table.add_row(name, f"{seconds:.4f}" if seconds < 0.1 else f"{seconds:.2f}")
    console.print(table)


def _make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark_decoding",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16, help="length of the outputs")
    parser.add_argument("--patches", type=int, default=576, help="of each image, a square number")
    parser.add_argument("--source", type=int, default=16, help="length of the instructions")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--peer", action="store_true", help="time the reference implementation instead"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead")
    return parser


@user_command
def main(arguments: Sequence[str]) -> None:
    """Runs the command line."""
    parser = _make_parser()
    options = parser.parse_args(arguments)
    platforms.skip_missing_tpu()
    side = math.isqrt(options.patches)
    if side * side != options.patches:
        parser.error(f"--patches={options.patches} is not a square number; try {side * side}.")
    model = OFA(getattr(OFAConfig, options.size)(dtype=options.dtype))
    shape = (
        options.batch,
        options.beam,
        options.tokens,
        side * PATCH_STRIDE,
        options.source,
        options.repeats,
    )
    if options.peer and options.dtype != "float32":
        parser.error("--peer is timed in float32: leave --dtype out.")
    try:
        timings = measure_peer(model.config, *shape) if options.peer else measure(model, *shape)
    except (ValueError, ImportError) as error:
        parser.error(" ".join(str(error).split()))
    device = "cpu" if options.peer else jax.devices()[0].device_kind
    if options.json:
        print(
            json.dumps(
                vars(options)
                | dataclasses.asdict(timings)
                | {"per_token": timings.per_token, "device": device}
                | timings.protocol()
            )
        )
        return
    whose = "the reference implementation, " if options.peer else ""
    show(
        timings,
        f"{whose}{options.size}, {options.dtype}, batch {options.batch}, beam "
        f"{options.beam}, {options.patches} patches, on {device}",
        Console(),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
