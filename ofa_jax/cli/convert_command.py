"""The command line of `python -m ofa_jax.convert`; see there."""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from absl import logging

from ofa_jax.checkpoints import storage, t5x_files
from ofa_jax.checkpoints.t5x_files import T5XState
from ofa_jax.cli import convert_inputs
from ofa_jax.cli.convert_inputs import OURS, T5X, Loaded
from ofa_jax.inference import loading
from ofa_jax.interop import (
    averages,
    fairseq,
    files,
    huggingface_processor,
    huggingface_shards,
    writer,
)
from ofa_jax.reports import model_card
from ofa_jax.utils import platforms, progress
from ofa_jax.utils.files import write_text
from ofa_jax.utils.output_folders import complete_or_absent

_SIZES = ("tiny", "medium", "base", "large", "huge")
_BOTH = "both"


def run_command(program: str, description: str, arguments: Sequence[str]) -> None:
    """Converts what the command line asks for, and prints what was written.

    Args:
      program: name of the command, for `--help`.
      description: for `--help`.
      arguments: the command line without the program.

    Raises:
      SystemExit: code 2, with a sentence, for a mistake of the user's.
    """
    logging.set_verbosity(logging.ERROR)
    options = _parser(program, description).parse_args(arguments)
    platforms.skip_missing_tpu()
    try:
        if pathlib.Path(options.output).exists():
            raise FileExistsError(f"{options.output} exists already: choose another OUTPUT.")
        layout = _layout(options)
        write_options = _write_options(options, layout)
        with progress.stage("converting", 2, "parts", is_even=False) as stage:
            if options.bart:
                loaded = convert_inputs.load_bart(options.input, options.size, options.seed)
            else:
                loaded = convert_inputs.load(options, layout)
            stage.advance()
            written = _save(options, loaded, layout, write_options)
            stage.advance()
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    print(
        f"Wrote {written}: {loaded.num_parameters:,} parameters, {loaded.config.vocab_size:,} ids."
    )


def _parser(program: str, description: str) -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("input", metavar="INPUT")
    add("output", metavar="OUTPUT")
    add(
        "--layout",
        choices=(OURS, T5X, *files.LAYOUTS),
        help="what to write; follows from OUTPUT if not given",
    )
    add(
        "--model_config",
        metavar="PATH",
        help="the model of a checkpoint of t5x whose folder has no model.json: such a file, or a "
        "run directory that has it",
    )
    add("--vocab_size", type=int, help="extend the embedding to this many ids; new rows at the end")
    add(
        "--weights",
        default=averages.MODEL,
        metavar="model|ema|PLACE",
        help="which weights to take where INPUT holds several: the last ones (model, the default), "
        "the averaged ones (ema), or those at a place that the command lists",
    )
    add(
        "--vocabulary",
        metavar="PATH",
        help="the vocabulary of INPUT, if it does not store it: the folder of the official BPE, or "
        "a file of a tokenizer",
    )
    add(
        "--dtype",
        choices=writer.DTYPES,
        help="of the weights that are written; as in INPUT if not given",
    )
    add(
        "--weight_files",
        choices=(_BOTH, *writer.WEIGHT_FILES),
        help="what a Hugging Face folder gets: model.safetensors, pytorch_model.bin, or both (the "
        "default)",
    )
    add(
        "--max_shard_size",
        metavar="SIZE",
        help="divide the weights of a Hugging Face folder into files of this size, such as 500MB "
        f"({huggingface_shards.DEFAULT_SIZE} if not given)",
    )
    add(
        "--results",
        metavar="PATH",
        help="what the model card of a Hugging Face folder shows: a run directory, or the "
        "metrics.json of an evaluation; INPUT's own if not given",
    )
    add(
        "--bart",
        action="store_true",
        help="INPUT is BART: begin a new model with it as its text part",
    )
    add("--size", default="base", choices=_SIZES, help="of the new model, with --bart")
    add("--seed", type=int, default=0, help="of the new model's other parameters")
    return parser


def _layout(options: argparse.Namespace) -> str:
    """Returns what is to be written."""
    if options.layout is not None:
        return options.layout
    return "fairseq" if pathlib.Path(options.output).suffix == ".pt" else OURS


def _write_options(options: argparse.Namespace, layout: str) -> writer.WriteOptions:
    """Returns how weights are written; raises ValueError for options without an effect."""
    for name in ("weight_files", "max_shard_size", "results"):
        if getattr(options, name) is not None and layout != "huggingface":
            raise ValueError(
                f"--{name} is for Hugging Face folders: add --layout=huggingface, or leave it out."
            )
    if options.vocabulary is not None and (options.bart or layout == "fairseq"):
        raise ValueError(
            "--vocabulary is for run directories and Hugging Face folders, which store it, and not "
            "for --bart: leave it out."
        )
    if options.model_config is not None and not t5x_files.is_t5x(options.input):
        raise ValueError("--model_config is for checkpoints of t5x: leave it out.")
    if options.dtype is not None and layout in (OURS, T5X):
        raise ValueError(
            "--dtype is for the other layouts: our checkpoints, and those of t5x, are float32."
        )
    kinds = options.weight_files or _BOTH
    return writer.WriteOptions(
        weight_files=tuple(writer.WEIGHT_FILES) if kinds == _BOTH else (kinds,),
        max_shard_bytes=huggingface_shards.parse_size(
            options.max_shard_size or huggingface_shards.DEFAULT_SIZE
        ),
        dtype=options.dtype,
    )


def _save(
    options: argparse.Namespace, loaded: Loaded, layout: str, write_options: writer.WriteOptions
) -> str:
    """Writes a checkpoint; returns what was written."""
    path = pathlib.Path(options.output)
    if layout == "fairseq":
        _write_official(path, loaded, layout, write_options)
        return f"{options.output} ({layout})"
    with complete_or_absent(path) as folder:
        if layout in (OURS, T5X):
            written = _write_run(folder, loaded, layout).relative_to(folder.resolve())
            return f"{path / written} ({layout})"
        _write_official(folder, loaded, layout, write_options)
        _write_beside(folder, options, loaded)
    return f"{options.output} ({layout})"


def _write_run(folder: pathlib.Path, loaded: Loaded, layout: str) -> pathlib.Path:
    """Writes a run directory, ours or of t5x; returns the folder of the checkpoint."""
    variables = loaded.variables
    if variables is None:
        raise TypeError("the variables were not converted")
    training = loaded.training or T5XState(0, variables)
    with progress.substage("writing the checkpoint"):
        if layout == T5X:
            written = t5x_files.write(folder, training)
        else:
            state = t5x_files.to_train_state(training)
            written = storage.save_variables(
                folder, state or variables, training.step, training.run if state else None
            )
    storage.write_model_config(folder, loaded.config)
    if loaded.processor is not None:
        loaded.processor.save(folder)
    if loaded.origin is not None:
        write_text(folder / "origin.json", json.dumps(loaded.origin) + "\n")
    return pathlib.Path(written)


def _write_official(
    path: pathlib.Path, loaded: Loaded, layout: str, write_options: writer.WriteOptions
) -> None:
    """Writes an official checkpoint, one tensor at a time."""
    if loaded.variables is not None:
        tensors = fairseq.to_fairseq_lazily(loaded.variables, loaded.config)
    else:
        tensors = fairseq.complete(loaded.state_dict or {}, loaded.config)
    writer.write_tensors(path, tensors, loaded.config, loaded.origin, layout, write_options)


def _write_beside(folder: pathlib.Path, options: argparse.Namespace, loaded: Loaded) -> None:
    """Writes what a Hugging Face folder has beside the weights."""
    processor = loaded.processor
    args = (loaded.origin or {}).get("args", {})
    size = args.get("patch_image_size")
    if type(size) is not int:
        size = loading.OFFICIAL_IMAGE_SIZE
    if processor is not None:
        size = processor.image_size
        try:
            processor.vocabulary.save_for_huggingface(folder)
        except ValueError as error:
            print(f"The folder has no tokenizer files: {error}")
    else:
        print(
            f"{options.output} has no tokenizer files, because no vocabulary is stored beside the "
            "weights: --vocabulary=PATH gives one."
        )
    known = {"image_size": size, "max_image_size": args.get("max_image_size")}
    huggingface_processor.write_preprocessor(
        folder, processor, **{name: value for name, value in known.items() if type(value) is int}
    )
    card = model_card.model_card(
        pathlib.Path(options.output).resolve().name,
        loaded.config,
        loaded.num_parameters,
        loaded.results,
        size,
        pathlib.Path(options.input).resolve().name,
    )
    write_text(folder / model_card.FILE, card)
