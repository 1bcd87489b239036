"""The command line of `python -m ofa_jax.convert`; see there."""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import logging

from ofa_jax.checkpoints import storage
from ofa_jax.inference import loading
from ofa_jax.interop import (
    averages,
    fairseq,
    files,
    from_fairseq,
    huggingface_processor,
    huggingface_shards,
    initialise_from_bart,
    resize_vocabulary,
    tensor_layout,
    to_fairseq,
    torch_file,
    writer,
)
from ofa_jax.model import OFA, OFAConfig
from ofa_jax.reports import model_card
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.utils import platforms, progress
from ofa_jax.utils.files import write_text
from ofa_jax.utils.output_folders import complete_or_absent

OURS = "ours"
BART_MASK_ID = 50264
"""<mask> in the official vocabulary: BART's text ids come before it."""
_SIZES = ("tiny", "medium", "base", "large", "huge")
_BOTH = "both"


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A checkpoint of any layout.

    Attributes:
      config: of the model.
      variables: ours; None where an official state dict is enough.
      state_dict: the official one, as views of its file; None for a checkpoint of ours.
      origin: see `files.OfficialCheckpoint`.
      processor: vocabulary and image sizes; None if they are not known.
      results: of its evaluations.
    """

    config: OFAConfig
    variables: dict[str, Any] | None = None
    state_dict: Mapping[str, np.ndarray] | None = None
    origin: Mapping[str, Any] | None = None
    processor: Processor | None = None
    results: Sequence[model_card.Result] = ()

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the model."""
        if self.variables is not None:
            return sum(array.size for array in jax.tree.leaves(self.variables["params"]))
        entries = tensor_layout.tensor_entries(self.config)
        return sum(math.prod(entry.shape) for entry in entries if entry.path[0] == "params")


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
                loaded = _from_bart(options.input, options.size, options.seed)
            else:
                loaded = _load(options, layout)
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
        choices=(OURS, *files.LAYOUTS),
        help="what to write; follows from OUTPUT if not given",
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
    if options.dtype is not None and layout == OURS:
        raise ValueError("--dtype is for the other layouts: our checkpoints are float32.")
    kinds = options.weight_files or _BOTH
    return writer.WriteOptions(
        weight_files=tuple(writer.WEIGHT_FILES) if kinds == _BOTH else (kinds,),
        max_shard_bytes=huggingface_shards.parse_size(
            options.max_shard_size or huggingface_shards.DEFAULT_SIZE
        ),
        dtype=options.dtype,
    )


def _load(options: argparse.Namespace, layout: str) -> Loaded:
    """Loads any checkpoint; prints what it does not take."""
    path = options.input
    if files.is_official(path):
        loaded = _load_official(path, options.vocab_size, options.weights, layout)
    else:
        loaded = _load_ours(path, options.vocab_size, options.weights)
    processor = _find_processor(path, options.vocabulary, loaded.config)
    return dataclasses.replace(loaded, processor=processor, results=_find_results(options, layout))


def _load_official(path: str, vocab_size: int | None, weights: str, layout: str) -> Loaded:
    """Loads an official checkpoint; into variables of ours only if these are to be written."""
    official = files.read(path, weights)
    state_dict, config = official.state_dict, official.config
    if vocab_size is not None:
        state_dict = resize_vocabulary(state_dict, vocab_size)
        config = config.replace(vocab_size=vocab_size)
    variables = from_fairseq(state_dict, config) if layout == OURS else None
    if sentence := official.describe_weights(path, "--weights"):
        print(sentence)
    if official.unread:
        print(f"{path} also holds what is not read: {', '.join(official.unread)}.")
    if official.is_chinese:
        print(
            f"{path} was trained with the vocabulary of the Chinese models, which this library "
            "does not read: its weights are converted, but the result cannot be asked anything."
        )
    return Loaded(config, variables, state_dict, official.origin)


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
    return Loaded(config, variables, origin=origin)


def _origin_beside(path: str) -> Mapping[str, Any] | None:
    folder = storage.find_checkpoint(path)
    for directory in (folder, *folder.parents[:2]):
        if (directory / "origin.json").is_file():
            return files.read_origin(directory / "origin.json")
    return None


def _find_processor(path: str, vocabulary: str | None, config: OFAConfig) -> Processor | None:
    """Returns vocabulary and image sizes; None, with a sentence, if INPUT's cannot be used."""
    try:
        processor = loading.find_processor(path, vocabulary)
    except (ValueError, OSError) as error:
        if vocabulary is not None:
            raise
        print(f"The vocabulary beside the weights is not taken: {error}")
        return None
    if processor is None:
        return None
    size = processor.vocabulary.vocab_size
    if size == config.vocab_size:
        return processor
    sentence = f"the vocabulary has {size:,} ids and the model {config.vocab_size:,}"
    if vocabulary is not None:
        raise ValueError(f"{sentence}: give that of its training.")
    print(f"The vocabulary beside the weights is not taken: {sentence}.")
    return None


def _find_results(options: argparse.Namespace, layout: str) -> Sequence[model_card.Result]:
    """Returns the results that a model card shows."""
    if layout != "huggingface":
        return ()
    if options.results is not None:
        return model_card.read_results(pathlib.Path(options.results))
    if files.is_official(options.input):
        return ()
    folder = storage.find_checkpoint(options.input)
    try:
        run = pathlib.Path(folder.parents[1])
        return model_card.read_results(run, storage.step_of(folder.name))
    except (ValueError, OSError) as error:
        print(f"The model card has no results: {error}")
        return ()


def _from_bart(path: str, size: str, seed: int) -> Loaded:
    """Initialises a model of a published size whose text part is BART's."""
    config = getattr(OFAConfig, size)()
    bart = torch_file.load_state_dict(path, "BART", ("model",))
    new = jax.jit(lambda key: nn.meta.unbox(OFA(config).init(key, _ANY_BATCH)))(
        jax.random.key(seed)
    )
    state_dict = to_fairseq(jax.tree.map(np.asarray, new), config)
    state_dict, taken = initialise_from_bart(state_dict, bart, BART_MASK_ID)
    print(f"Took {len(taken)} of BART's {len(bart)} tensors.")
    return Loaded(config, from_fairseq(state_dict, config))


_ANY_BATCH = {
    "encoder_input_tokens": np.zeros((1, 2), np.int32),
    "decoder_input_tokens": np.zeros((1, 2), np.int32),
}


def _save(
    options: argparse.Namespace, loaded: Loaded, layout: str, write_options: writer.WriteOptions
) -> str:
    """Writes a checkpoint; returns what was written."""
    path = pathlib.Path(options.output)
    if layout == "fairseq":
        _write_official(path, loaded, layout, write_options)
        return f"{options.output} ({layout})"
    with complete_or_absent(path) as folder:
        if layout == OURS:
            written = _write_ours(folder, loaded).relative_to(folder.resolve())
            return f"{path / written} (ours)"
        _write_official(folder, loaded, layout, write_options)
        _write_beside(folder, options, loaded)
    return f"{options.output} ({layout})"


def _write_ours(folder: pathlib.Path, loaded: Loaded) -> pathlib.Path:
    """Writes a run directory; returns the folder of the checkpoint."""
    variables = loaded.variables
    if variables is None:
        raise TypeError("the variables were not converted")
    with progress.substage("writing the checkpoint"):
        written = storage.save_variables(folder, variables)
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
