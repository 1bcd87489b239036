r"""The command line of the export.

    ofa-export runs/pretrain_scenes --out=exported
    ofa-export runs/pretrain_scenes --out=exported --task=visual_grounding --batch_size=any
    ofa-export ofa_base.pt --vocabulary=BPE_FOLDER --out=exported --image_size=480 \
      --source_length=32 --target_length=16 --decoding.beam_size=3 --platforms=cuda

CHECKPOINT is a run directory (its newest checkpoint), one of its folders `checkpoints/<step>`, a
converted official checkpoint, or an official one with --vocabulary. Writes encoder, decoder step
and whole generation as StableHLO programs, the parameters beside them, and a loader that needs jax,
flatbuffers and numpy only. Shapes are fixed, but for the number of rows with --batch_size=any.
Nothing is compiled, and the chips need not be here.

Every --decoding.NAME=VALUE sets a field of DecodingConfig; the others are the task's. Exit code 2:
a mistake in the arguments, reported in one sentence.
"""

import argparse
import ast
import dataclasses
import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any

import jax
from absl import logging

from ofa_jax.cli import common, errors
from ofa_jax.data.choices import read_choices
from ofa_jax.data.features import PATCH_SIZE
from ofa_jax.decoding import DecodingConfig
from ofa_jax.export.programs import PLATFORMS
from ofa_jax.export.writing import ExportOptions, check_target, export_model
from ofa_jax.inference import presets
from ofa_jax.inference.loading import load_model
from ofa_jax.sharding import Partitioner
from ofa_jax.utils import options, platforms
from ofa_jax.utils.option_checks import check_options
from ofa_jax.utils.suggestions import nearest

__all__ = ["main"]

_PREFIX = "--decoding."
_SHAPES = ("batch_size", "source_length", "target_length", "image_size")
_ImageSize = Annotated[
    int, options.AtLeast(0), options.AtMost(2**16), options.MultipleOf(PATCH_SIZE)
]
_SourceLength = Annotated[int, options.AtLeast(2), options.AtMost(options.LARGEST)]


def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (without the program); returns the exit code."""
    logging.set_verbosity(logging.ERROR)
    with errors.user_errors():
        decoding, rest = _split_decoding(arguments)
        chosen = _parse(rest)
        wanted = ExportOptions(
            task=chosen.task,
            decoding=decoding,
            candidates=_read_candidates(chosen.candidates_file),
            platforms=_parse_platforms(chosen.platforms),
            **{name: getattr(chosen, name) for name in _SHAPES},
        )
        folder = pathlib.Path(chosen.out)
        check_target(folder)
        platforms.skip_missing_tpu()
        if importlib.util.find_spec("flatbuffers") is None:
            raise errors.ConfigError(
                "ofa-export needs the Python package 'flatbuffers', which is not installed: run "
                "`pip install 'ofa_jax[export]'`."
            )
        loaded = load_model(
            chosen.checkpoint,
            Partitioner(devices=tuple(jax.local_devices()[:1])),
            chosen.vocabulary,
            chosen.dtype,
            chosen.weights,
        )
        export_model(loaded, folder, wanted, lambda line: print(line, flush=True))
    print(f"{folder}: exported for {', '.join(wanted.platforms)}; loader.py there runs it.")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses and checks the flags but those of decoding. Raises ConfigError or ValueError."""
    parser = common.ArgumentParser(
        prog="ofa-export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="what to load, see above")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to make")
    parser.add_argument(
        "--task", help=f"whose inputs and decoding: {', '.join(presets.PRESETS)} (free text)"
    )
    parser.add_argument(
        "--batch_size",
        type=_parse_rows,
        default=1,
        metavar="ROWS|any",
        help="rows of a call; any: as many as a call has (%(default)s)",
    )
    parser.add_argument(
        "--image_size", type=int, help="pixels a side; 0 without images (that of the run)"
    )
    parser.add_argument(
        "--source_length", type=int, default=64, help="tokens of an instruction (%(default)s)"
    )
    parser.add_argument(
        "--target_length", type=int, help="tokens of the longest output, without eos (the task's)"
    )
    parser.add_argument(
        "--candidates_file", metavar="FILE", help="the only outputs allowed, one per line"
    )
    parser.add_argument(
        "--platforms", default=",".join(PLATFORMS), help="separated by commas (%(default)s)"
    )
    parser.add_argument(
        "--vocabulary", help="for official checkpoints: the folder of their byte pair encoding"
    )
    parser.add_argument("--weights", choices=("model", "ema"), help="which parameters are used")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the computation")
    chosen = parser.parse_args(list(arguments))
    check_options(_flags, {name: getattr(chosen, name) for name in _SHAPES}, "ofa-export")
    return chosen


def _parse_rows(text: str) -> int | None:
    """Returns a number of rows; None for any. Raises ArgumentTypeError for something else."""
    try:
        return None if text == "any" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of rows, or any") from None


def _flags(
    batch_size: options.Count | None,
    source_length: _SourceLength,
    target_length: options.Count | None,
    image_size: _ImageSize | None,
) -> None:
    """Declares what the flags may be."""


def _split_decoding(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Returns the fields of `DecodingConfig` that are set, and the other arguments.

    Raises:
      ConfigError, ValueError: a field is unknown, or cannot have the value.
    """
    known = [field.name for field in dataclasses.fields(DecodingConfig)]
    fields: dict[str, Any] = {}
    rest = []
    for argument in arguments:
        if not argument.startswith(_PREFIX):
            rest.append(argument)
            continue
        name, separator, value = argument.removeprefix(_PREFIX).partition("=")
        if name not in known:
            raise errors.ConfigError(
                f"DecodingConfig has no field {name} ({argument}).{nearest(name, known)}"
            )
        if not separator:
            raise errors.ConfigError(
                f"{argument} has no value: write {_PREFIX}{name}=VALUE, without a space."
            )
        try:
            fields[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            fields[name] = value  # text, as in --decoding.method=sample
    check_options(DecodingConfig, fields)
    return fields, rest


def _parse_platforms(text: str) -> tuple[str, ...]:
    """Returns the platforms of a flag; raises ConfigError for an unknown one or none."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if unknown := [name for name in names if name not in PLATFORMS]:
        raise errors.ConfigError(
            f"--platforms names {unknown[0]}; known are {', '.join(PLATFORMS)}."
            f"{nearest(unknown[0], PLATFORMS)}"
        )
    if not names:
        raise errors.ConfigError(f"--platforms is empty: give some of {', '.join(PLATFORMS)}.")
    return names


def _read_candidates(path: str | None) -> list[str] | None:
    """Returns the candidates of a file as they are encoded; None without a file."""
    if path is None:
        return None
    if not pathlib.Path(path).is_file():
        raise errors.ConfigError(f"There is no file {path} (--candidates_file).")
    return presets.format_candidates(read_choices(pathlib.Path(path)))
