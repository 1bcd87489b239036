"""Converts checkpoints between fairseq's layout (official OFA), Hugging Face's and ours.

    python -m tools.convert_checkpoint ofa_base.pt runs/ofa_base
    python -m tools.convert_checkpoint runs/ofa_base ofa_base_again.pt
    python -m tools.convert_checkpoint ofa_base.pt ofa_base_hf --layout=huggingface
    python -m tools.convert_checkpoint ofa_base.pt runs/more_bins --vocab_size=60457
    python -m tools.convert_checkpoint bart.base.pt runs/from_bart --bart --size=base

INPUT is recognised by its content: a `.pt` of fairseq, a folder with pytorch_model.bin and
config.json, or a run directory of ours. OUTPUT (`.pt` is fairseq's) and --layout decide the result.
INITIAL_CHECKPOINT_PATH accepts the resulting run directory, and the `.pt` itself. Nothing in a
`.pt` is executed. Converting there and back gives the same tensors bit for bit: origin.json keeps
what our variables do not hold.
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
    files,
    from_fairseq,
    initialise_from_bart,
    resize_vocabulary,
    to_fairseq,
    torch_file,
)
from ofa_jax.model import OFA, OFAConfig
from ofa_jax.utils import platforms

BART_MASK_ID = 50264
"""<mask> in the official vocabulary: BART's text ids come before it."""

Loaded = tuple[dict[str, Any], OFAConfig, Mapping[str, Any] | None]


def load(path: str, vocab_size: int | None) -> Loaded:
    """Loads (variables, configuration, origin) of any checkpoint."""
    if not files.is_official(path):
        variables, config = storage.load_numpy_variables(path), storage.read_model_config(path)
        if vocab_size is None:
            return variables, config, _origin_beside(path)
        state_dict = resize_vocabulary(to_fairseq(variables, config), vocab_size)
        config = config.replace(vocab_size=vocab_size)
        return from_fairseq(state_dict, config), config, _origin_beside(path)
    official = files.read(path)
    state_dict, config = official.state_dict, official.config
    if vocab_size is not None:
        state_dict = resize_vocabulary(state_dict, vocab_size)
        config = config.replace(vocab_size=vocab_size)
    return from_fairseq(state_dict, config), config, official.origin


def _origin_beside(path: str) -> Mapping[str, Any] | None:
    folder = storage.find_checkpoint(path)
    for directory in (folder, *folder.parents[:2]):
        if (directory / "origin.json").is_file():
            return json.loads((directory / "origin.json").read_text())
    return None


def from_bart(path: str, size: str, seed: int) -> Loaded:
    """Initialises a model of a published size whose text part is BART's."""
    config = getattr(OFAConfig, size)()
    bart = torch_file.load(path)
    bart = bart.get("model", bart)
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
    if layout != "ours":
        files.write(path, variables, config, origin, layout)
        return f"{path} ({layout})"
    folder = storage.save_variables(path, variables)
    storage.write_model_config(path, config)
    if origin is not None:
        (pathlib.Path(path) / "origin.json").write_text(json.dumps(origin) + "\n")
    return f"{folder} (ours)"


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
        if options.bart:
            loaded = from_bart(options.input, options.size, options.seed)
        else:
            loaded = load(options.input, options.vocab_size)
        written = save(options.output, loaded, options.layout)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    count = sum(array.size for array in jax.tree.leaves(loaded[0]["params"]))
    print(f"Wrote {written}: {count:,} parameters, {loaded[1].vocab_size:,} ids.")


if __name__ == "__main__":
    main(sys.argv[1:])
