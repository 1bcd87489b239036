"""Asks a trained model about many inputs: JSON lines, TSV, a folder of images, a seqio task.

    python -m ofa_jax.infer --gin_file=gin_configs/runs/infer.gin \
      --gin.CHECKPOINT="'runs/pretrain_scenes'" --gin.OUTPUT_DIR="'answers'" \
      --gin.INPUTS=@ImageFolder() --gin.ImageFolder.path="'images'" \
      --gin.ImageFolder.instruction="'what does the image describe?'"

Answers are written as JSON lines, in shards that are complete or not there: started again, the job
goes on where it was, and does nothing when it is done. Exit code 0: every input has its line, some
of them perhaps with an error; 1: every line is an error, or answers could not be written; 2: a
mistake in what was asked for, said in a sentence.
"""

import dataclasses
import os
import pathlib
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import gin
import jax
import seqio
from absl import flags, logging

from ofa_jax.checkpoints import storage
from ofa_jax.cli import common, gin_registry
from ofa_jax.data.features import Stream
from ofa_jax.data.task_settings import TaskSettings
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation import eval_spec
from ofa_jax.evaluation.batch_decoder import BatchDecoder
from ofa_jax.evaluation.eval_sources import EvalBatcher, EvalSource
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.inference import loading, requests, shards, task_inputs
from ofa_jax.inference.job import Asker, Counts, Job, RequestEvalSource
from ofa_jax.inference.requests import DecodePreset
from ofa_jax.inference.sources import ImageFolder, JsonLines, Source, Tsv
from ofa_jax.inference.task_inputs import OpenTask, TaskInputs
from ofa_jax.interop import files
from ofa_jax.model import OFAConfig
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers import ImageTokenizer
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils import distributed

INPUTS = {"JsonLines": JsonLines, "Tsv": Tsv, "ImageFolder": ImageFolder, "TaskInputs": TaskInputs}
_MOST_TRIED = 100


def prepare(
    checkpoint: str,
    output_dir: str,
    inputs: Source | TaskInputs,
    vocabulary: OFAVocabulary | str | None = None,
    image_tokenizer: ImageTokenizer | None = None,
    answers: Sequence[str] | None = None,
    answers_file: str | None = None,
    score_all: bool = False,
    decoding: DecodingConfig | None = None,
    image_size: int | None = None,
    source_length: int = 128,
    batch_size: int = 32,
    shard_size: int = 1024,
    seed: int = 0,
    dtype: str | None = None,
    host: int | None = None,
    num_hosts: int | None = None,
    num_threads: int = 2,
    partitioner: Partitioner | None = None,
    settings: TaskSettings | None = None,
    mixture_or_task_module: str | Sequence[str] | None = None,
) -> Job:
    """Builds every part of a job and checks that they fit; compiles nothing.

    gin knows it as `infer`.

    Args:
      checkpoint: a run directory (its newest checkpoint), a folder `checkpoints/<step>`, or a
        checkpoint of the original.
      output_dir: where answers go, on a disk.
      inputs: what is asked.
      vocabulary: where the checkpoint does not say it, see `loading.load`.
      image_tokenizer: that makes images of codes, where the run does not keep one.
      answers: the only ones allowed, e.g. ["yes", "no"]; a task has its own.
      answers_file: a file with one of them a line, instead.
      score_all: score each of them, instead of searching among them.
      decoding: how answers are searched; what is usual for the instruction, or the task, when None.
      image_size: of the images that the model sees, in pixels a side; the run's when None; 0 for
        text alone. A task has its own.
      source_length: tokens that an instruction is padded to; a longer one is cut and counted.
      batch_size: requests that are asked at once, on this host's devices.
      shard_size: requests of an answer file; a multiple of batch_size.
      seed: of answers that are drawn.
      dtype: "float32" or "bfloat16"; as in training when None.
      host, num_hosts: this host's share of the shards; as the cluster says when None. Hosts do not
        wait for each other, so they may just as well be the tasks of a SLURM array.
      num_threads: that prepare requests.
      partitioner: the mesh; the devices of this host, along `data`, when None.
      settings: what the tasks of this project run over; None for other inputs.
      mixture_or_task_module: module(s) to import, which register tasks.

    Returns:
      The job; one that is done has no asker.

    Raises:
      ValueError, FileNotFoundError, ImportError: with a sentence that says what to do.
    """
    common.import_task_modules(mixture_or_task_module, settings)
    host = jax.process_index() if host is None else host
    num_hosts = jax.process_count() if num_hosts is None else num_hosts
    partitioner = partitioner or Partitioner(devices=tuple(jax.local_devices()))
    _check_numbers(batch_size, shard_size, source_length, host, num_hosts, partitioner)
    if "://" in output_dir:
        raise ValueError(
            f"OUTPUT_DIR is {output_dir}: answers are written to a disk or a mount, where a file "
            "can be renamed at once."
        )
    task = None
    if isinstance(inputs, TaskInputs):
        task = task_inputs.open_task(inputs, source_length, num_threads, settings)
    num_inputs = _num_inputs(inputs) if task is None else task.num_examples
    parts = shards.Shards(pathlib.Path(output_dir), num_inputs, shard_size)
    allowed = _allowed(answers, answers_file)
    resolved = checkpoint if files.is_official(checkpoint) else str(storage.find(checkpoint))
    identity = {
        "checkpoint": resolved,
        "inputs": _described(inputs),
        "num_inputs": num_inputs,
        "shard_size": shard_size,
        "batch_size": batch_size,
        "source_length": source_length,
        "image_size": image_size,
        "seed": seed,
        "dtype": dtype,
        "score_all": score_all,
        "decoding": None if decoding is None else dataclasses.asdict(decoding),
        "answers": None if allowed is None else zlib.crc32("\n".join(allowed).encode()),
    }
    shards.compare(parts.directory, identity)
    # All hosts or none read the checkpoint: that, they do together.
    if not parts.unfinished(range(parts.count)):
        return Job(None, parts, host, num_hosts)
    loaded = loading.load(
        resolved,
        partitioner,
        vocabulary,
        dtype,
        image_tokenizer=image_tokenizer,
        image_size=image_size or None,
    )
    shapes = dict(batch_size=batch_size, source_length=source_length)
    if task is not None:
        described = _description(inputs.task, task, loaded, settings)
        if decoding is not None:
            described = described.replace(decoding=decoding)
        questions = _of_task(inputs.task, task, described.kind, loaded.interface, **shapes)
        interface = loaded.interface.replace(max_image_size=described.max_image_size)
        loaded = dataclasses.replace(loaded, interface=interface)
    else:
        how = _manner(inputs, loaded, decoding, allowed)
        how = dataclasses.replace(how, image_size=image_size or how.image_size)
        questions = _of_source(
            inputs, how, image_size != 0, loaded.interface, num_threads, **shapes
        )
        described = _judging(how.decoding, allowed, score_all)
    answerer = BatchDecoder(loaded.model, described, loaded.interface.vocabulary, partitioner, seed)
    _check_answers(described.decoding, source_length, loaded.model.config)
    shards.begin(parts.directory, identity)
    asker = Asker(loaded, answerer, questions, batch_size)
    return Job(asker, parts, host, num_hosts, _say)


def _check_numbers(
    batch_size: int,
    shard_size: int,
    source_length: int,
    host: int,
    num_hosts: int,
    partitioner: Partitioner,
) -> None:
    if batch_size < 1 or shard_size < 1 or shard_size % batch_size:
        raise ValueError(
            f"infer.shard_size is {shard_size}, which is no multiple of infer.batch_size = "
            f"{batch_size}: a file holds whole batches."
        )
    if batch_size % partitioner.num_data_shards:
        raise ValueError(
            f"infer.batch_size {batch_size} does not divide over the "
            f"{partitioner.num_data_shards} data shards of the mesh; choose a multiple."
        )
    if source_length < 2:
        raise ValueError(f"infer.source_length is {source_length}; give at least 2 tokens.")
    if not 0 <= host < num_hosts:
        raise ValueError(f"infer.host is {host} of {num_hosts}: hosts are counted from 0.")
    if any(device.process_index != jax.process_index() for device in partitioner.mesh.devices.flat):
        raise ValueError(
            "infer.partitioner has devices of other hosts, but each host works alone: leave it "
            "out, or give devices of this host."
        )


def _num_inputs(inputs: Any) -> int:
    if isinstance(inputs, str) or not hasattr(inputs, "__getitem__"):
        raise ValueError(
            f"INPUTS is {inputs!r}; give one of {', '.join(f'@{name}()' for name in INPUTS)}, and "
            f"say what it reads, as in --gin.JsonLines.path=\"'questions.jsonl'\"."
        )
    if not len(inputs):
        what = "no image" if isinstance(inputs, ImageFolder) else "nothing to ask"
        where = getattr(inputs, "path", "it")
        raise ValueError(f"There is {what} in {where}: check INPUTS.")
    return len(inputs)


def _described(inputs: Any) -> dict[str, Any]:
    """What must be the same when the job goes on."""
    fields = dataclasses.asdict(inputs) if dataclasses.is_dataclass(inputs) else {}
    described = {name: value for name, value in fields.items() if name != "index_dir"}
    path = fields.get("path")
    if path is not None and os.path.isfile(path):
        described["bytes"] = os.path.getsize(path)
    return {"kind": type(inputs).__name__} | described


def _allowed(answers: Sequence[str] | None, answers_file: str | None) -> list[str] | None:
    """The only answers, as they are encoded."""
    if answers is not None and answers_file is not None:
        raise ValueError("Give infer.answers or infer.answers_file, not both.")
    if answers_file is not None:
        path = pathlib.Path(answers_file)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path} (infer.answers_file).")
        answers = path.read_text(encoding="utf-8").splitlines()
    if answers is None:
        return None
    allowed = [f" {answer.strip()}" for answer in answers if answer.strip()]
    if not allowed:
        raise ValueError("The list of allowed answers is empty.")
    return allowed


def _judging(decoding: DecodingConfig, allowed: Sequence[str] | None, score_all: bool) -> EvalSpec:
    return EvalSpec(
        "infer",
        "text",
        references=task_inputs.no_references,
        metrics=(),
        decoding=decoding,
        candidates=None if allowed is None else lambda: allowed,
        score_all=score_all,
    )


def _manner(
    source: Source,
    loaded: loading.LoadedModel,
    decoding: DecodingConfig | None,
    allowed: Sequence[str] | None,
) -> DecodePreset:
    """How all requests are asked: as is usual for the first good one."""
    reason = "it has no lines"
    for index in range(min(len(source), _MOST_TRIED)):
        try:
            instruction = source[index].instruction
        except InvalidRecordError as error:
            reason = str(error)
            continue
        how = requests.manner(instruction, loaded.interface, loaded.model.config)
        if decoding is None and allowed is not None:
            encode = loaded.interface.vocabulary.encode
            decoding = DecodingConfig(max_length=max(len(encode(text)) for text in allowed))
        return how if decoding is None else dataclasses.replace(how, decoding=decoding)
    raise ValueError(f"Every input is bad, e.g. {source.location(0)}: {reason}.")


def _of_source(
    source: Source,
    how: DecodePreset,
    images: bool,
    interface: Processor,
    num_threads: int,
    batch_size: int,
    source_length: int,
) -> EvalSource:
    stream = Stream(
        "inputs",
        "infer",
        batch_size,
        {"inputs": source_length, "targets": 1},
        image_size=how.image_size if images else None,
        code_targets=how.code_grid > 0,
    )
    return RequestEvalSource(source, interface, how, stream, num_threads)


def _of_task(
    name: str,
    task: OpenTask,
    kind: str,
    interface: Processor,
    batch_size: int,
    source_length: int,
) -> EvalSource:
    if task.vocab_size != interface.vocabulary.vocab_size:
        raise ValueError(
            f"Task {name} has a vocabulary of {task.vocab_size} ids, the model one of "
            f"{interface.vocabulary.vocab_size}: set the task up as for training (infer.settings)."
        )
    image = task.example.get("image")
    # What an answer is made to begin with may be as long as the instruction.
    prefix = source_length if "target_prefix" in task.example else 1
    stream = Stream(
        "inputs",
        name,
        batch_size,
        {"inputs": source_length, "targets": prefix},
        image_size=None if image is None or not image.size else image.shape[0],
        code_targets=kind == "codes",
    )
    return task.questions(EvalBatcher(stream, interface.vocabulary, task_inputs.no_references))


def _description(
    name: str, task: OpenTask, loaded: loading.LoadedModel, settings: TaskSettings | None
) -> EvalSpec:
    """How a task is answered; where it does not say, as is usual for its instruction."""
    if eval_spec.is_known(name):
        return eval_spec.find(name, settings)
    instruction = loaded.interface.vocabulary.decode(task.example["inputs"])
    how = requests.manner(instruction, loaded.interface, loaded.model.config)
    kind = "codes" if task.example.get("code_mask", False) else "text"
    return _judging(how.decoding, None, False).replace(
        kind=kind, max_image_size=loaded.interface.max_image_size
    )


def _check_answers(decoding: DecodingConfig, source_length: int, model: OFAConfig) -> None:
    """Whether the model has positions for instructions and answers."""
    decoding.max_output_length(source_length, model)
    if source_length > model.max_source_positions:
        raise ValueError(
            f"infer.source_length is {source_length}, but the model has "
            f"{model.max_source_positions} positions: shorten it."
        )


# ---------------------------------------------------------------------------- the command line


def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (without the program); returns the exit code."""
    flags.FLAGS(["infer"])  # grain reads its options from absl
    logging.set_verbosity(logging.WARNING)
    with common.user_errors():
        gin_registry.register({"infer": prepare, **INPUTS})
        common.parse_arguments("python -m ofa_jax.infer", __doc__ or "", arguments)
        seqio.set_global_cache_dirs([])
        job = gin.get_configurable("infer")()
        _say(_beginning(job))
    try:
        counts = job.run()
    except (OSError, shards.ShardError) as error:
        # What is written stays, and starting again goes on from it.
        common.fail(error, common.FAILURE)
    _say(_end(job, counts))
    return common.FAILURE if counts.lines and counts.errors == counts.lines else 0


def _say(sentence: str) -> None:
    print(sentence, flush=True)


def _beginning(job: Job) -> str:
    share, todo = job.share, job.shards.unfinished(job.share)
    who = f"Host {job.host} of {job.num_hosts}: " if job.num_hosts > 1 else ""
    files_of = f"{len(share)} files of answers" if len(share) != 1 else "1 file of answers"
    if not todo:
        return f"{who}this job is done: all {files_of} are in {job.shards.directory}."
    if len(todo) < len(share):
        return f"{who}going on: {len(share) - len(todo)} of {files_of} are there already."
    return f"{who}{job.shards.num_inputs:,} inputs; {files_of} to write to {job.shards.directory}."


def _end(job: Job, counts: Counts) -> str:
    parts = [f"Done: {counts.lines:,} answers, {counts.errors:,} of them errors"]
    if counts.answered:
        parts.append(
            f"{counts.answered:,} answered now in {counts.seconds:.1f} s "
            f"({counts.answered / counts.seconds:.1f} a second)"
        )
    if counts.cut:
        parts.append(f"{counts.cut:,} instructions were too long for source_length and were cut")
    return f"{'; '.join(parts)}. They are in {job.shards.directory}."


if __name__ == "__main__":
    with distributed.crashes_end_at_once():
        sys.exit(main(sys.argv[1:]))
