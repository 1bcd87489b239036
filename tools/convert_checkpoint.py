"""Converts checkpoints between fairseq's layout (official OFA), Hugging Face's and ours.

    python -m tools.convert_checkpoint ofa_base.pt runs/ofa_base
    python -m tools.convert_checkpoint runs/ofa_base ofa_base_again.pt
    python -m tools.convert_checkpoint ofa_base.pt ofa_base_hf --layout=huggingface
    python -m tools.convert_checkpoint vqa_large_best.pt runs/vqa_large --weights=ema
    python -m tools.convert_checkpoint ofa_base.pt runs/more_bins --vocab_size=60457
    python -m tools.convert_checkpoint bart.base.pt runs/from_bart --bart --size=base

INPUT is recognised by its content: a `.pt` of fairseq, a folder with pytorch_model.bin (or
model.safetensors) and config.json, or a run directory of ours. What it holds and was not taken
(averaged weights, an optimiser's state) is listed. OUTPUT (`.pt` is fairseq's) and --layout decide
the result. INITIAL_CHECKPOINT_PATH accepts the resulting run directory, and the `.pt` itself.
Nothing in a `.pt` is executed. Converting there and back gives the same tensors bit for bit:
origin.json keeps what our variables do not hold.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import logging

from ofa_jax.checkpoints import storage
from ofa_jax.interop import (
    averages,
    files,
    from_fairseq,
    initialise_from_bart,
    resize_vocabulary,
    to_fairseq,
    torch_file,
)
from ofa_jax.model import OFA, OFAConfig
from ofa_jax.utils import platforms, progress
from ofa_jax.utils.files import write_text
from tools import output_folders
from tools.command import user_command

BART_MASK_ID = 50264
"""<mask> in the official vocabulary: BART's text ids come before it."""

Loaded = tuple[dict[str, Any], OFAConfig, Mapping[str, Any] | None]


def load(path: str, vocab_size: int | None, weights: str = averages.MODEL) -> Loaded:
    """Loads (variables, configuration, origin) of any checkpoint; prints what it does not take."""
    if not files.is_official(path):
        return _load_ours(path, vocab_size, weights)
    official = files.read(path, weights)
    state_dict, config = official.state_dict, official.config
    if vocab_size is not None:
        state_dict = resize_vocabulary(state_dict, vocab_size)
        config = config.replace(vocab_size=vocab_size)
    variables = from_fairseq(state_dict, config)
    if sentence := official.describe_weights(path, "--weights"):
        print(sentence)
    if official.unread:
        print(f"{path} also holds what is not read: {', '.join(official.unread)}.")
    return variables, config, official.origin


def _load_ours(path: str, vocab_size: int | None, weights: str) -> Loaded:
    """Loads a checkpoint of a run."""
    if weights not in (averages.MODEL, averages.EMA):
        raise ValueError(f"{path} does not hold the weights {weights}: give model or ema.")
    averaged = weights == averages.EMA
    has_average = storage.has_average(path)
    if averaged and not has_average:
        raise ValueError(f"{path} has no averaged weights: leave --weights=ema out.")
    with progress.substage("reading the checkpoint"):
        variables = storage.load_numpy_variables(path, averaged)
    config, origin = storage.read_model_config(path), _origin_beside(path)
    if vocab_size is not None:
        state_dict = resize_vocabulary(to_fairseq(variables, config), vocab_size)
        config = config.replace(vocab_size=vocab_size)
        variables = from_fairseq(state_dict, config)
    if has_average and not averaged:
        print(f"{path} holds averaged weights, which are not taken: --weights=ema takes them.")
    return variables, config, origin


def _origin_beside(path: str) -> Mapping[str, Any] | None:
    folder = storage.find_checkpoint(path)
    for directory in (folder, *folder.parents[:2]):
        if (directory / "origin.json").is_file():
            return files.read_origin(directory / "origin.json")
    return None


def from_bart(path: str, size: str, seed: int) -> Loaded:
    """Initialises a model of a published size whose text part is BART's."""
    config = getattr(OFAConfig, size)()
    bart = torch_file.load_state_dict(path, "BART", ("model",))
    new = jax.jit(lambda key: nn.meta.unbox(OFA(config).init(key, _ANY_BATCH)))(
        jax.random.key(seed)
    )
    state_dict = to_fairseq(jax.tree.map(np.asarray, new), config)
    state_dict, taken = initialise_from_bart(state_dict, bart, BART_MASK_ID)
    print(f"Took {len(taken)} of BART's {len(bart)} tensors.")
    return from_fairseq(state_dict, config), config, None


_ANY_BATCH = {
    "encoder_input_tokens": np.zeros((1, 2), np.int32),
    "decoder_input_tokens": np.zeros((1, 2), np.int32),
}


def save(path: str, loaded: Loaded, layout: str | None) -> str:
    """Writes a checkpoint; returns what was written."""
    variables, config, origin = loaded
    if layout is None:
        layout = "fairseq" if pathlib.Path(path).suffix == ".pt" else "ours"
    if layout == "fairseq":
        files.write(path, variables, config, origin, layout)
        return f"{path} ({layout})"
    with output_folders.complete_or_absent(pathlib.Path(path)) as folder:
        if layout != "ours":
            files.write(folder, variables, config, origin, layout)
            return f"{path} ({layout})"
        with progress.substage("writing the checkpoint"):
            written = storage.save_variables(folder, variables)
        storage.write_model_config(folder, config)
        if origin is not None:
            write_text(folder / "origin.json", json.dumps(origin) + "\n")
    return f"{pathlib.Path(path) / pathlib.Path(written).relative_to(folder.resolve())} (ours)"


@user_command
def main(arguments: Sequence[str]) -> None:
    """Runs the command line."""
    logging.set_verbosity(logging.ERROR)
    parser = argparse.ArgumentParser(
        prog="python -m tools.convert_checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", metavar="INPUT")
    parser.add_argument("output", metavar="OUTPUT")
    parser.add_argument(
        "--layout",
        choices=("ours", *files.LAYOUTS),
        help="what to write; follows from OUTPUT if not given",
    )
    parser.add_argument(
        "--vocab_size", type=int, help="extend the embedding to this many ids; new rows at the end"
    )
    parser.add_argument(
        "--weights",
        default=averages.MODEL,
        metavar="model|ema|PLACE",
        help="which weights to take where INPUT holds several: the last ones (model, the default), "
        "the averaged ones (ema), or those at a place that the command lists",
    )
    parser.add_argument(
        "--bart",
        action="store_true",
        help="INPUT is BART: begin a new model with it as its text part",
    )
    parser.add_argument(
        "--size",
        default="base",
        choices=("tiny", "medium", "base", "large", "huge"),
        help="of the new model, with --bart",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the new model's other parameters")
    options = parser.parse_args(arguments)
    platforms.skip_missing_tpu()
    try:
        if pathlib.Path(options.output).exists():
            raise FileExistsError(f"{options.output} exists already: choose another OUTPUT.")
        with progress.stage("converting", 2, "parts", is_even=False) as stage:
            if options.bart:
                loaded = from_bart(options.input, options.size, options.seed)
            else:
                loaded = load(options.input, options.vocab_size, options.weights)
            stage.advance()
            written = save(options.output, loaded, options.layout)
            stage.advance()
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    count = sum(array.size for array in jax.tree.leaves(loaded[0]["params"]))
    print(f"Wrote {written}: {count:,} parameters, {loaded[1].vocab_size:,} ids.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
