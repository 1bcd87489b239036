"""Builds a batch inference job from its configuration.

inputs ─▶ output shards ─▶ compare with an earlier start ─▶ load the model ─▶ decoder and batches
"""

import dataclasses
import os
import pathlib
import zlib
from collections.abc import Sequence
from typing import Annotated, Any

import jax

from ofa_jax.checkpoints import storage
from ofa_jax.data.features import PATCH_SIZE, Stream
from ofa_jax.data.task_settings import TaskSettings
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation import eval_spec, memory_checks
from ofa_jax.evaluation.batch_decoder import BatchDecoder
from ofa_jax.evaluation.eval_sources import EvalBatcher, EvalSource
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.inference import presets, shards, task_inputs
from ofa_jax.inference.job import Job, RequestEvalSource, RequestPipeline
from ofa_jax.inference.loading import LoadedModel, load_model
from ofa_jax.inference.presets import DecodePreset
from ofa_jax.inference.sources import ImageFolder, JsonLines, RequestSource, Tsv
from ofa_jax.inference.task_inputs import LoadedTask, TaskInputs
from ofa_jax.interop import files
from ofa_jax.model import OFAConfig
from ofa_jax.preprocessing import instructions
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers import ImageTokenizer
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils import options
from ofa_jax.utils.modules import import_task_modules
from ofa_jax.utils.option_checks import checked

INPUTS = {"JsonLines": JsonLines, "Tsv": Tsv, "ImageFolder": ImageFolder, "TaskInputs": TaskInputs}
"""Name in gin -> class of inputs."""

_MAX_TRIED = 100
_INPUTS_HELP = options.Help(
    f"Give one of {', '.join(f'@{name}()' for name in INPUTS)}, and set what it reads, as in "
    "--gin.JsonLines.path=\"'requests.jsonl'\"."
)
InputSize = Annotated[
    int,
    options.AtLeast(0),
    options.AtMost(2**16),
    options.MultipleOf(PATCH_SIZE),
    options.Help(f"A patch has {PATCH_SIZE} x {PATCH_SIZE} pixels; 0 is for text alone."),
]
"""The side of the images that a model reads; 0 for none."""


@checked
def build_job(
    checkpoint: options.Path,
    output_dir: options.Path,
    inputs: Annotated[RequestSource | TaskInputs, _INPUTS_HELP],
    vocabulary: OFAVocabulary | options.Path | None = None,
    image_tokenizer: ImageTokenizer | None = None,
    task: Annotated[str, options.OneOf(tuple(presets.PRESETS))] | None = None,
    candidates: Sequence[str] | None = None,
    candidates_file: options.Path | None = None,
    score_all: bool = False,
    decoding: DecodingConfig | None = None,
    image_size: InputSize | None = None,
    source_length: Annotated[int, options.AtLeast(2), options.AtMost(options.LARGEST)] = 128,
    batch_size: options.Count = 32,
    shard_size: options.Count = 1024,
    seed: options.Seed = 0,
    dtype: options.Dtype | None = None,
    weights: options.Name | None = None,
    host: options.Natural | None = None,
    num_hosts: options.Count | None = None,
    num_threads: options.Threads = 2,
    partitioner: Partitioner | None = None,
    settings: TaskSettings | None = None,
    mixture_or_task_module: options.Modules | None = None,
    check_memory: bool = True,
) -> Job:
    """Builds every part of a job and checks that the parts fit together; compiles nothing.

    gin knows it as `infer`.

    Args:
      checkpoint: a run directory (its newest checkpoint), a folder `checkpoints/<step>`, or an
        official checkpoint.
      output_dir: folder of the output files, on a disk.
      inputs: the inputs to decode.
      vocabulary: for checkpoints that do not store theirs, see `loading.load_model`.
      image_tokenizer: decodes image codes, if the run does not store one.
      task: selects the decode preset, a key of `presets.PRESETS`, e.g. "visual_grounding"; the
        task of the first valid instruction when None. A seqio task has its own.
      candidates: the only outputs allowed, e.g. ["yes", "no"]; a seqio task has its own.
      candidates_file: a file with one candidate per line, instead.
      score_all: whether to score every candidate instead of searching among them.
      decoding: settings of the decoder; those of the preset or the task when None.
      image_size: size of the model's images in pixels a side; the run's when None; 0 for text
        alone. A seqio task has its own.
      source_length: tokens to which an instruction is padded; longer ones are truncated, and
        counted.
      batch_size: requests that are decoded at once, on this host's devices.
      shard_size: requests of an output file; a multiple of batch_size.
      seed: seed of sampling.
      dtype: "float32" or "bfloat16"; as in training when None.
      weights: "model" or "ema" (averaged) parameters, see `loading.load_model`.
      host: number of this host; that of the cluster when None. Hosts do not wait for each other, so
        they may be the tasks of a SLURM array.
      num_hosts: number of hosts, which share the output files; that of the cluster when None.
      num_threads: threads that prepare requests.
      partitioner: the mesh; the devices of this host, along `data`, when None.
      settings: settings of the project's tasks; None for other inputs.
      mixture_or_task_module: module(s) to import, which register tasks.
      check_memory: whether to refuse what needs more memory than there is, by an estimate from
        below.

    Returns:
      The job; without a pipeline if it is finished.

    Raises:
      ValueError, FileNotFoundError, ImportError: an argument cannot be used; the message says what
        to do.
    """
    import_task_modules(mixture_or_task_module, settings)
    host = jax.process_index() if host is None else host
    num_hosts = jax.process_count() if num_hosts is None else num_hosts
    partitioner = partitioner or Partitioner(devices=tuple(jax.local_devices()))
    _check_shapes(batch_size, shard_size, partitioner)
    _check_hosts(host, num_hosts, partitioner)
    if check_memory:
        shapes = _shapes(batch_size, source_length, image_size)
        memory_checks.check_host([shapes], partitioner, 0, "infer.check_memory")
    directory = _local_directory(output_dir)
    examples: RequestSource | LoadedTask = (
        task_inputs.load_task(inputs, source_length, num_threads, settings)
        if isinstance(inputs, TaskInputs)
        else inputs
    )
    num_inputs = _num_inputs(examples)
    outputs = shards.Shards(directory, num_inputs, shard_size)
    allowed = _read_candidates(candidates, candidates_file)
    name = checkpoint if files.is_official(checkpoint) else str(storage.find_checkpoint(checkpoint))
    # Everything that the predictions depend on, under the keys of existing job.json files.
    fingerprint = {
        "checkpoint": name,
        "inputs": _describe_inputs(inputs),
        "num_inputs": num_inputs,
        "shard_size": shard_size,
        "batch_size": batch_size,
        "source_length": source_length,
        "image_size": image_size,
        "seed": seed,
        "dtype": dtype,
        "task": task,
        "score_all": score_all,
        "decoding": None if decoding is None else dataclasses.asdict(decoding),
        "answers": None if allowed is None else zlib.crc32("\n".join(allowed).encode()),
    }
    if weights is not None:
        fingerprint["weights"] = weights
    shards.check_job_file(outputs.directory, fingerprint)
    # Restoring is collective: all hosts read the checkpoint, or none.
    if not outputs.unfinished(range(outputs.count)):
        return Job(None, outputs, host, num_hosts)
    loaded = load_model(
        name,
        partitioner,
        vocabulary,
        dtype,
        weights,
        image_tokenizer=image_tokenizer,
        image_size=image_size or None,
    )
    source: EvalSource
    if isinstance(examples, LoadedTask):
        spec = _task_spec(examples, loaded, settings)
        spec = spec if decoding is None else spec.replace(decoding=decoding)
        loaded = loaded.with_processor(max_image_size=spec.max_image_size)
        source = _task_source(examples, spec.kind, loaded.processor, batch_size, source_length)
    else:
        preset = _find_preset(examples, task, loaded, decoding, allowed)
        if image_size:
            preset = dataclasses.replace(preset, image_size=image_size)
        stream = _request_stream(preset, batch_size, source_length, with_images=image_size != 0)
        source = RequestEvalSource(examples, loaded.processor, preset, stream, num_threads)
        spec = presets.inference_spec(preset.decoding, allowed, score_all)
    if check_memory:
        size = loaded.processor.image_size if image_size is None else image_size
        memory_checks.check_task(
            loaded.model.config,
            _shapes(batch_size, source_length, size),
            spec.decoding,
            None,
            partitioner,
            "infer.check_memory",
        )
    decoder = BatchDecoder(loaded.model, spec, loaded.processor.vocabulary, partitioner, seed)
    _check_lengths(spec.decoding, source_length, loaded.model.config)
    shards.write_job_file(outputs.directory, fingerprint)
    return Job(RequestPipeline(loaded, decoder, source, batch_size), outputs, host, num_hosts)


def _shapes(batch_size: int, source_length: int, image_size: int | None) -> Stream:
    """Returns the shapes of a batch, as far as they are known."""
    lengths = {"inputs": source_length, "targets": 1}
    return Stream("inputs", "infer", batch_size, lengths, image_size=image_size or None)


def _check_shapes(batch_size: int, shard_size: int, partitioner: Partitioner) -> None:
    """Raises ValueError for shapes that do not fit each other or the mesh."""
    if shard_size % batch_size:
        raise ValueError(
            f"infer.shard_size is {shard_size}, which is not a multiple of infer.batch_size = "
            f"{batch_size}: a file holds whole batches."
        )
    if batch_size % partitioner.num_data_shards:
        raise ValueError(
            f"infer.batch_size {batch_size} does not divide over the "
            f"{partitioner.num_data_shards} data shards of the mesh; choose a multiple."
        )


def _check_hosts(host: int, num_hosts: int, partitioner: Partitioner) -> None:
    """Raises ValueError for an unknown host, or a mesh over several hosts."""
    if not 0 <= host < num_hosts:
        raise ValueError(f"infer.host is {host} of {num_hosts}: hosts are counted from 0.")
    if any(device.process_index != jax.process_index() for device in partitioner.mesh.devices.flat):
        raise ValueError(
            "infer.partitioner has devices of other hosts, but each host works alone: leave it "
            "out, or give devices of this host."
        )


def _local_directory(output_dir: str) -> pathlib.Path:
    """Returns the output directory; raises ValueError if it is in an object store."""
    if "://" in output_dir:
        raise ValueError(
            f"OUTPUT_DIR is {output_dir}: output files are written to a disk or a mount, where "
            "renaming a file is atomic."
        )
    return pathlib.Path(output_dir)


def _num_inputs(inputs: RequestSource | LoadedTask) -> int:
    """Returns the number of inputs; raises ValueError if there is none."""
    if isinstance(inputs, LoadedTask):
        return inputs.num_examples
    if not len(inputs):
        what = "no image" if isinstance(inputs, ImageFolder) else "no request"
        where = getattr(inputs, "path", "it")
        raise ValueError(f"There is {what} in {where}: check INPUTS.")
    return len(inputs)


def _describe_inputs(inputs: Any) -> dict[str, Any]:
    """Returns the properties of the inputs that a restarted job must share."""
    fields = {}
    if dataclasses.is_dataclass(inputs) and not isinstance(inputs, type):
        fields = dataclasses.asdict(inputs)
    described = {name: value for name, value in fields.items() if name != "index_dir"}
    path = fields.get("path")
    if path is not None and os.path.isfile(path):
        described["bytes"] = os.path.getsize(path)
    return {"kind": type(inputs).__name__} | described


def _read_candidates(
    candidates: Sequence[str] | None, candidates_file: str | None
) -> list[str] | None:
    """Returns the candidates as they are encoded; None for free generation."""
    if candidates is not None and candidates_file is not None:
        raise ValueError("Give infer.candidates or infer.candidates_file, not both.")
    if candidates_file is not None:
        path = pathlib.Path(candidates_file)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path} (infer.candidates_file).")
        candidates = path.read_text(encoding="utf-8").splitlines()
    if candidates is None:
        return None
    return presets.format_candidates([text for text in candidates if text.strip()])


# ------------------------------------------------------------------------------ requests


def _find_preset(
    source: RequestSource,
    task: str | None,
    loaded: LoadedModel,
    decoding: DecodingConfig | None,
    candidates: Sequence[str] | None,
) -> DecodePreset:
    """Returns the preset of all requests: that of the first valid one, or of the given task."""
    if task is None:
        task = instructions.recognise_task(_first_instruction(source))
    preset = presets.find_preset(task, loaded.processor, loaded.model.config)
    if decoding is None and candidates is not None:
        decoding = presets.candidate_decoding(candidates, loaded.processor.vocabulary)
    return preset if decoding is None else dataclasses.replace(preset, decoding=decoding)


def _first_instruction(source: RequestSource) -> str:
    """Returns the first valid instruction."""
    reason = "it has no lines"
    for index in range(min(len(source), _MAX_TRIED)):
        try:
            return source[index].instruction
        except InvalidRecordError as error:
            reason = str(error)
    raise ValueError(f"Every input is invalid, e.g. {source.location(0)}: {reason}.")


def _request_stream(
    preset: DecodePreset, batch_size: int, source_length: int, with_images: bool
) -> Stream:
    """Returns the shapes of a batch of requests."""
    return Stream(
        "inputs",
        "infer",
        batch_size,
        {"inputs": source_length, "targets": 1},
        image_size=preset.image_size if with_images else None,
        code_targets=preset.code_grid > 0,
    )


# ------------------------------------------------------------------------------ seqio tasks


def _task_spec(task: LoadedTask, loaded: LoadedModel, settings: TaskSettings | None) -> EvalSpec:
    """Returns the spec of a task; without one, the preset of its instruction."""
    if eval_spec.is_registered(task.name):
        return eval_spec.find(task.name, settings)
    instruction = loaded.processor.vocabulary.decode(task.example["inputs"])
    preset = presets.find_preset(
        instructions.recognise_task(instruction), loaded.processor, loaded.model.config
    )
    return presets.inference_spec(preset.decoding).replace(
        kind="codes" if task.example.get("code_mask", False) else "text",
        max_image_size=loaded.processor.max_image_size,
    )


def _task_source(
    task: LoadedTask, kind: str, processor: Processor, batch_size: int, source_length: int
) -> EvalSource:
    """Returns the examples of a task in batches."""
    if task.vocab_size != processor.vocabulary.vocab_size:
        raise ValueError(
            f"Task {task.name} has a vocabulary of {task.vocab_size} ids, the model one of "
            f"{processor.vocabulary.vocab_size}: set the task up as for training (infer.settings)."
        )
    image = task.example.get("image")
    # A forced prefix may be as long as the instruction.
    prefix_length = source_length if "target_prefix" in task.example else 1
    stream = Stream(
        "inputs",
        task.name,
        batch_size,
        {"inputs": source_length, "targets": prefix_length},
        image_size=None if image is None or not image.size else image.shape[0],
        code_targets=kind == "codes",
    )
    return task.make_source(EvalBatcher(stream, processor.vocabulary, presets.no_references))


def _check_lengths(decoding: DecodingConfig, source_length: int, model: OFAConfig) -> None:
    """Raises ValueError if the model has too few positions for instructions or outputs."""
    decoding.max_output_length(source_length, model)
    if source_length > model.max_source_positions:
        raise ValueError(
            f"infer.source_length is {source_length}, but the model has "
            f"{model.max_source_positions} positions: shorten it."
        )
