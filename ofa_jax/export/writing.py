"""Writes the folder of an export: complete, or not at all.

manifest.json       shapes, settings, preprocessing, versions, checksums
encoder.stablehlo ... generate.stablehlo    see `programs`; read by `jax.export.deserialize`
parameters.npz      float32, shared by all programs
interface/          vocabulary, image sizes and image tokenizer, as in a run directory
tokenizer.json      the BPE, for the library tokenizers
text_ids.npy        int32: the BPE's id -> the model's id
loader.py           runs the programs; needs JAX, flatbuffers and numpy only
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import ofa_jax
from ofa_jax.decoding import Trie
from ofa_jax.export import loader, programs
from ofa_jax.export.programs import PLATFORMS, Program
from ofa_jax.inference import presets
from ofa_jax.inference.loading import LoadedModel
from ofa_jax.inference.presets import DecodePreset
from ofa_jax.model import OFA, layout
from ofa_jax.preprocessing import instructions
from ofa_jax.preprocessing.examples import make_example
from ofa_jax.tokenizers.processor import FOLDER
from ofa_jax.tokenizers.vocabulary import OFAVocabulary

__all__ = ["ExportOptions", "export_model"]

FORMAT = "ofa_jax export 1"
_EXAMPLE = "what does the image describe?"
_UNKNOWN = OFAVocabulary.unk_id


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What is exported.

    Attributes:
      task: a key of `presets.PRESETS`; None for free text.
      batch_size: rows of every program; None for any number, one or more.
      source_length: tokens of an instruction, with bos, eos and padding.
      target_length: tokens of the longest output, without eos; that of the decoding settings when
        None.
      image_size: pixels a side; the task's when None, 0 without images.
      decoding: fields of `DecodingConfig` that differ from the task's.
      candidates: the only outputs allowed; None for all.
      platforms: what the programs are lowered for.
    """

    task: str | None = None
    batch_size: int | None = 1
    source_length: int = 64
    target_length: int | None = None
    image_size: int | None = None
    decoding: dict[str, Any] = dataclasses.field(default_factory=dict)
    candidates: Sequence[str] | None = None
    platforms: Sequence[str] = PLATFORMS


def export_model(
    loaded: LoadedModel,
    out: str | os.PathLike[str],
    options: ExportOptions,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Exports a model; compiles nothing.

    Args:
      loaded: the model.
      out: the folder to make; an empty one may be there.
      options: what is exported.
      report: gets a line for each program.

    Returns:
      The manifest.

    Raises:
      ValueError: the options do not fit the model, or there is something at `out`.
    """
    folder = pathlib.Path(os.path.abspath(out))
    check_target(folder)
    preset = _find_preset(loaded, options)
    variables, config = layout.ensure_plain(loaded.variables, loaded.model.config)
    # The programs run on every platform, whichever they are written on; a kernel is of one, and of
    # known shapes.
    config = config.on_platform("cpu")
    if config.attention_implementation == "fused":
        config = config.replace(attention_implementation="columns")
    parameters = programs.flatten_variables(variables)
    built = _build(loaded, OFA(config), parameters, preset, options)
    temporary = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    temporary.mkdir(parents=True)
    try:
        described = {}
        for name, program in built.items():
            described[name] = _write_program(temporary, name, program, parameters, options)
            report(f"{name}: {described[name]['bytes'] / 1024:,.0f} KiB")
        arrays = {name: np.asarray(x) for name, x in parameters.items()}
        np.savez(temporary / "parameters.npz", allow_pickle=False, **arrays)
        _write_tokenizer(temporary, loaded)
        shutil.copyfile(loader.__file__, temporary / "loader.py")
        manifest = _describe(loaded, preset, options, described, arrays)
        manifest["sha256"] = _checksums(temporary)
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        (temporary / "manifest.json").write_text(text, "utf-8")
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def check_target(folder: pathlib.Path) -> None:
    """Raises ValueError unless a folder can be made; an empty one may be there."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise ValueError(
            f"--out is {folder}, where there is something already: choose a new folder, or remove "
            "it."
        )


def _find_preset(loaded: LoadedModel, options: ExportOptions) -> DecodePreset:
    """Returns the task's preset with the options in it; raises ValueError if they do not fit."""
    config, processor = loaded.model.config, loaded.processor
    preset = presets.find_preset(options.task, processor, config)
    candidates = options.candidates
    if candidates is not None:
        beams = options.decoding.get("beam_size", preset.decoding.beam_size)
        preset = presets.apply_options(preset, None, candidates, processor.vocabulary, beams)
    fields = dict(options.decoding)
    if options.target_length is not None:
        fields |= {"max_length": options.target_length, "max_length_per_source_token": 0.0}
    decoding = preset.decoding.replace(**fields)
    size = preset.image_size if options.image_size in (None, 0) else options.image_size
    assert size is not None
    preset = dataclasses.replace(preset, decoding=decoding, image_size=size)
    if options.source_length > config.max_source_positions:
        raise ValueError(
            f"--source_length is {options.source_length}, but the model has "
            f"{config.max_source_positions} positions: shorten it."
        )
    if preset.infills_center and options.image_size == 0:
        raise ValueError("Image infilling needs an image: leave --image_size=0 out.")
    length = options.source_length
    presets.check_decodable(preset, candidates, False, length, processor.vocabulary, config)
    return preset


def _build(
    loaded: LoadedModel,
    model: OFA,
    parameters: programs.Arrays,
    preset: DecodePreset,
    options: ExportOptions,
) -> dict[str, Program]:
    """Returns the programs before they are lowered."""
    vocabulary = loaded.processor.vocabulary
    requests = programs.request_shapes(
        options.batch_size,
        options.source_length,
        None if options.image_size == 0 else preset.image_size,
        preset.code_grid > 0,
    )
    trie = None
    if options.candidates is not None:
        encoded = [vocabulary.encode(text).tolist() for text in options.candidates]
        trie = Trie.from_sequences(encoded, model.config.vocab_size)
    unconditional = None
    if preset.decoding.is_guided:
        assert preset.unconditional is not None  # see presets.check_decodable
        ids = vocabulary.encode(preset.unconditional, add_bos=True, add_eos=True)
        if len(ids) > options.source_length:
            raise ValueError(
                f"The instruction without a caption has {len(ids)} tokens: raise --source_length, "
                "or leave guidance_scale at 1."
            )
        unconditional = np.full(options.source_length, vocabulary.pad_id, np.int32)
        unconditional[: len(ids)] = ids
    return programs.build_programs(
        model, parameters, requests, preset.decoding, trie, unconditional
    )


def _write_program(
    folder: pathlib.Path,
    name: str,
    program: Program,
    parameters: programs.Arrays,
    options: ExportOptions,
) -> dict[str, Any]:
    """Lowers and writes a program; returns its entry in the manifest."""
    exported = programs.lower(program, parameters, options.platforms)
    content = exported.serialize()
    (folder / f"{name}.stablehlo").write_bytes(content)
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return {
        "description": program.description,
        "file": f"{name}.stablehlo",
        "bytes": len(content),
        "calling_convention": exported.calling_convention_version,
        "inputs": _shapes(program.inputs),
        "outputs": _shapes(outputs),
    }


def _shapes(arrays: programs.Arrays) -> dict[str, Any]:
    """Returns shapes and dtypes as JSON; an open size is written by its name."""

    def sizes(shape: Sequence[Any]) -> list[int | str]:
        return [size if isinstance(size, int) else str(size) for size in shape]

    return {name: {"shape": sizes(x.shape), "dtype": str(x.dtype)} for name, x in arrays.items()}


def _write_tokenizer(folder: pathlib.Path, loaded: LoadedModel) -> None:
    """Writes vocabulary and image tokenizer, also in forms that other libraries read."""
    loaded.processor.save(folder)
    content = json.loads((folder / FOLDER / "vocabulary.json").read_text("utf-8"))
    (folder / "tokenizer.json").write_text(
        json.dumps(content["tokenizer"], ensure_ascii=False), "utf-8"
    )
    symbols = content["text_symbols"]
    ids = [symbol for symbol in symbols if isinstance(symbol, int)]
    table = np.full(max(ids, default=0) + 1, _UNKNOWN, np.int32)
    for number, symbol in enumerate(symbols):
        if isinstance(symbol, int):
            table[symbol] = number + _UNKNOWN + 1  # text follows the four special symbols
    np.save(folder / "text_ids.npy", table)


def _describe(
    loaded: LoadedModel,
    preset: DecodePreset,
    options: ExportOptions,
    described: dict[str, Any],
    arrays: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Returns the manifest without checksums."""
    image_size = None if options.image_size == 0 else preset.image_size
    packages = ("jax", "jaxlib", "flax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "format": FORMAT,
        "checkpoint": loaded.name,
        "task": options.task,
        "versions": {"ofa_jax": ofa_jax.__version__} | versions,
        "platforms": list(options.platforms),
        "shapes": {
            "batch_size": programs.BATCH if options.batch_size is None else options.batch_size,
            "image_size": image_size,
            "source_length": options.source_length,
            "target_length": preset.decoding.max_output_length(
                options.source_length, loaded.model.config
            ),
        },
        "decoding": preset.decoding.to_json(),
        "candidates": None if options.candidates is None else list(options.candidates),
        "programs": described,
        "parameters": {
            "file": "parameters.npz",
            "count": sum(array.size for array in arrays.values()),
            "arrays": _shapes(arrays),
        },
        "vocabulary": _describe_vocabulary(loaded),
        "preprocessing": _describe_preprocessing(loaded, preset, image_size),
    }


def _describe_vocabulary(loaded: LoadedModel) -> dict[str, Any]:
    """Returns sizes, id ranges and files of the vocabulary, and an encoded instruction."""
    vocabulary = loaded.processor.vocabulary
    parts = instructions.encode(vocabulary, _EXAMPLE)
    ids = make_example(vocabulary, parts, ())["inputs"]
    first_text = _UNKNOWN + 1
    return {
        "size": vocabulary.vocab_size,
        "bos": vocabulary.bos_id,
        "pad": vocabulary.pad_id,
        "eos": vocabulary.eos_id,
        "unk": vocabulary.unk_id,
        "mask": vocabulary.mask_id,
        "text": {"first": first_text, "count": vocabulary.num_text},
        "image_codes": {"first": vocabulary.code_ids.start, "count": vocabulary.num_codes},
        "location_bins": {"first": vocabulary.bin_ids.start, "count": vocabulary.num_bins},
        "files": {
            "vocabulary": f"{FOLDER}/vocabulary.json",
            "tokenizer": "tokenizer.json",
            "text_ids": "text_ids.npy",
        },
        "example": {"instruction": _EXAMPLE, "text": "".join(map(str, parts)), "ids": ids.tolist()},
    }


def _describe_preprocessing(
    loaded: LoadedModel, preset: DecodePreset, image_size: int | None
) -> dict[str, Any]:
    """Returns what must be done before a program is called, and what it does itself."""
    crop = "the central square, its shorter side resized" if preset.infills_center else "none"
    image = {
        "size": [image_size, image_size],
        "channels": "RGB, uint8, [row, height, width, channel]",
        "resize": "bicubic (Pillow), the whole image to a square",
        "crop": crop,
        "normalisation_in_the_program": {"divide_by": 127.5, "then_subtract": 1.0},
    }
    return {
        "image": None if image_size is None else image,
        "text": {
            "form": "lower case, one leading space; bos, text, eos, then padding",
            "truncation": "the end is cut off, eos stays the last id",
        },
        "boxes": {
            "order": "x0 y0 x1 y1 in pixels of the resized image",
            "max_image_size": loaded.processor.max_image_size,
            "bin": "round(x / max_image_size * (location_bins.count - 1))",
        },
    }


def _checksums(folder: pathlib.Path) -> dict[str, str]:
    """Returns the SHA-256 of all files below a folder, by their names relative to it."""
    digests = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            name = path.relative_to(folder).as_posix()
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
