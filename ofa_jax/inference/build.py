"""Builds a batch inference job from its configuration.

inputs ─▶ output shards ─▶ compare with an earlier start ─▶ load the model ─▶ decoder and batches
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, cast

import jax

from ofa_jax.checkpoints import storage
from ofa_jax.data.choices import read_choices
from ofa_jax.data.features import PATCH_SIZE
from ofa_jax.data.task_settings import TaskSettings
from ofa_jax.decoding import DecodingConfig
from ofa_jax.inference import checks, fingerprint, presets, resume, task_inputs
from ofa_jax.inference.image_generation import ImageGeneration
from ofa_jax.inference.job import Job, Pipeline, RequestPipeline, TaskPipeline, lock
from ofa_jax.inference.kinds import KindOptions, Kinds
from ofa_jax.inference.loading import LoadedModel, load_model
from ofa_jax.inference.request_batches import RequestBatches
from ofa_jax.inference.resume import Resumed
from ofa_jax.inference.shards import Shards, job_digest
from ofa_jax.inference.sources import ImageFolder, JsonLines, RequestSource, Tsv
from ofa_jax.inference.task_inputs import LoadedTask, TaskInputs
from ofa_jax.inference.task_pipeline import make_task_pipeline
from ofa_jax.interop import files
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers import ImageTokenizer
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils import options
from ofa_jax.utils.decode_options import DecodeOptions
from ofa_jax.utils.modules import import_task_modules
from ofa_jax.utils.option_checks import checked

INPUTS = {"JsonLines": JsonLines, "Tsv": Tsv, "ImageFolder": ImageFolder, "TaskInputs": TaskInputs}
"""Name in gin -> class of inputs."""

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
    decode_options: DecodeOptions | None = None,
    settings: TaskSettings | None = None,
    mixture_or_task_module: options.Modules | None = None,
    check_memory: bool = True,
    image_generation: ImageGeneration | None = None,
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
      task: the task of requests that name none, a key of `presets.PRESETS` such as
        "visual_grounding"; it decides how they are decoded. When None, the task is recognised from
        each instruction. A seqio task has its own preset.
      candidates: the only outputs allowed, e.g. ["yes", "no"]; a seqio task has its own.
      candidates_file: a file with one candidate per line, in place of `candidates`.
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
      decode_options: how images of requests are decoded, and their limits; when None, as an image
        viewer shows them.
      settings: settings of the project's tasks; None for other inputs.
      mixture_or_task_module: module(s) to import, which register tasks.
      check_memory: whether to refuse a job if a lower bound on its memory exceeds what there is.
      image_generation: how images are generated from captions (candidates, guidance, ranker); those
        of the preset or the task when None.

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
    checks.check_shapes(batch_size, shard_size, partitioner)
    checks.check_hosts(host, num_hosts, partitioner)
    memory = checks.BatchMemory(batch_size, source_length, image_size, partitioner, check_memory)
    memory.check_host()
    directory = checks.local_directory(output_dir)
    allowed = _read_candidates(candidates, candidates_file)
    checks.check_candidate_options(inputs, task, allowed, score_all, image_size)
    opened = _open_inputs(inputs, source_length, num_threads, settings)
    name = checkpoint if files.is_official(checkpoint) else str(storage.find_checkpoint(checkpoint))
    model_image_size = image_size or None
    of_all = KindOptions(
        task, decoding, allowed, score_all, model_image_size, source_length, seed, image_generation
    )
    current = fingerprint.of_job(
        fingerprint.of_model(name, vocabulary),
        inputs,
        opened.task,
        of_all,
        decode_options,
        weights,
        checkpoint=name,
        shard_size=shard_size,
        batch_size=batch_size,
        image_size=image_size,
        dtype=dtype,
    )
    is_one_kind = task is not None or isinstance(inputs, TaskInputs | ImageFolder)
    resumed = resume.find_started(directory, current, opened.count, is_one_kind)
    damaged = _find_damage(resumed, host, num_hosts)
    if resumed is not None and not _is_unfinished(resumed, damaged, host, num_hosts):
        return Job(None, resumed.shards, host, num_hosts)
    loaded = load_model(
        name,
        partitioner,
        vocabulary,
        dtype,
        weights,
        image_tokenizer=image_tokenizer,
        image_size=model_image_size,
        decode_options=decode_options,
    )
    checks.check_source_length(source_length, loaded.model.config)
    check_decoding = functools.partial(memory.check_decoding, loaded)
    pipeline: Pipeline = (
        _open_requests(inputs, loaded, of_all, batch_size, image_size, num_threads, check_decoding)
        if opened.task is None
        else _open_task(opened.task, loaded, settings, of_all, batch_size, check_decoding)
    )
    # Counting builds the index of the lines, in the output directory.
    resumed = _start_or_continue(resumed, directory, current, opened.count(), shard_size)
    return Job(
        pipeline,
        resumed.shards,
        host,
        num_hosts,
        record=resumed.record,
        replaces_record=resumed.replaces_record,
        damaged=damaged,
        message=resumed.message,
    )


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """The inputs of a job.

    Attributes:
      given: as the user gave them.
      task: the examples, if they are those of a seqio task.
    """

    given: RequestSource | TaskInputs
    task: LoadedTask | None

    def count(self) -> int:
        """Returns the number of inputs; raises ValueError if there is none."""
        if self.task is not None:
            return self.task.num_examples
        requests = cast(RequestSource, self.given)
        if not len(requests):
            raise ValueError(
                f"There is no request in {getattr(requests, 'path', 'it')}: check INPUTS."
            )
        return len(requests)


def _open_inputs(
    inputs: RequestSource | TaskInputs,
    source_length: int,
    num_threads: int,
    settings: TaskSettings | None,
) -> _Inputs:
    """Loads the task of the inputs, if they have one; raises ValueError if they cannot be used."""
    task = None
    if isinstance(inputs, TaskInputs):
        task = task_inputs.load_task(inputs, source_length, num_threads, settings)
    checks.check_inputs(inputs)
    return _Inputs(inputs, task)


def _open_requests(
    inputs: RequestSource | TaskInputs,
    loaded: LoadedModel,
    of_all: KindOptions,
    batch_size: int,
    image_size: int | None,
    num_threads: int,
    check_decoding: Callable[[DecodingConfig], None],
) -> RequestPipeline:
    """Returns the model with the requests of a source, each decoded by its own kind."""
    kinds = Kinds(loaded, of_all, check_decoding)
    batches = RequestBatches(
        cast(RequestSource, inputs),
        loaded.processor,
        kinds,
        batch_size,
        of_all.source_length,
        with_images=image_size != 0,
        num_threads=num_threads,
    )
    return RequestPipeline(loaded, kinds, batches)


def _open_task(
    task: LoadedTask,
    loaded: LoadedModel,
    settings: TaskSettings | None,
    of_all: KindOptions,
    batch_size: int,
    check_decoding: Callable[[DecodingConfig], None],
) -> TaskPipeline:
    """Returns the model with the examples of a seqio task."""
    pipeline = make_task_pipeline(
        task,
        loaded,
        settings,
        of_all.decoding,
        batch_size,
        of_all.source_length,
        of_all.seed,
        of_all.image_generation,
    )
    check_decoding(pipeline.decoding)
    return pipeline


def _start_or_continue(
    resumed: Resumed | None,
    directory: pathlib.Path,
    current: dict[str, Any],
    num_inputs: int,
    shard_size: int,
) -> Resumed:
    """Returns a new job, whose configuration the directory will keep, or the one that goes on.

    Raises:
      ValueError: the job that is continued had another number of inputs.
    """
    if resumed is None:
        record = json.loads(json.dumps(current | {"num_inputs": num_inputs}))
        return Resumed(Shards(directory, num_inputs, shard_size, job_digest(record)), record)
    started = resumed.shards
    if num_inputs != started.num_inputs:
        raise ValueError(
            f"The job in {started.directory} was started with {started.num_inputs:,} inputs, but "
            f"now there are {num_inputs:,}: choose another OUTPUT_DIR, or restore the inputs."
        )
    return resumed


def _find_damage(resumed: Resumed | None, host: int, num_hosts: int) -> dict[int, str]:
    """Returns the finished shards that must be written again, and what is wrong with them."""
    if resumed is None:
        return {}
    outputs = resumed.shards
    # Hosts that restore the checkpoint together must all find the same.
    checked_here = range(outputs.count)
    if jax.process_count() == 1:
        checked_here = outputs.share(host, num_hosts)
    return outputs.damaged(checked_here)


def _is_unfinished(resumed: Resumed, damaged: Mapping[int, str], host: int, num_hosts: int) -> bool:
    """Returns whether a job that goes on has shards to write.

    Raises:
      LockedError: it has, but another process works on them.
    """
    # Restoring is collective: all hosts read the checkpoint, or none.
    if not damaged and not resumed.shards.unfinished(range(resumed.shards.count)):
        return False
    with lock(resumed.shards, host, num_hosts):
        return True


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
        candidates = read_choices(path)
    return None if candidates is None else presets.format_candidates(candidates)
