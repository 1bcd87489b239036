"""What the predictions of a job depend on, as `job.json` records it.

A restarted job goes on only if nothing of it has changed: the settings, the checkpoint, and every
file of the inputs by size and content (large files: size, time of the last change and samples of
the content). Of a folder of images it is the list of all files with size and time. Images that
lines refer to are not compared: those that have changed are decoded as they are then.
"""

import dataclasses
import hashlib
import os
import pathlib
import stat
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from ofa_jax.checkpoints import storage
from ofa_jax.evaluation import fingerprints
from ofa_jax.inference.kinds import KindOptions
from ofa_jax.inference.sources import ImageFolder
from ofa_jax.inference.task_inputs import LoadedTask
from ofa_jax.interop import files as official
from ofa_jax.tokenizers import huggingface_files
from ofa_jax.tokenizers.processor import FOLDER
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.decode_options import DecodeOptions

VERSION = 2
"""Of job.json. The first version decoded all lines as the first one, and did not record files."""

_MAX_LISTED = 2000


def of_job(
    model: Mapping[str, Any],
    inputs: Any,
    task: LoadedTask | None,
    options: KindOptions,
    decode_options: DecodeOptions | None,
    weights: str | None,
    *,
    checkpoint: str,
    shard_size: int,
    batch_size: int,
    image_size: int | None,
    dtype: str | None,
) -> dict[str, Any]:
    """Returns everything that the predictions depend on, under the keys of job.json.

    Args:
      model: see `of_model`.
      inputs: of the job.
      task: the seqio task of the inputs, if they are one.
      options: for all requests.
      decode_options: how images are decoded.
      weights: which parameters of the checkpoint.
      checkpoint: its name.
      shard_size: requests of an output file.
      batch_size: requests that are decoded at once.
      image_size: as the user gives it.
      dtype: of the computation.
    """
    decoding, generation = options.decoding, options.image_generation
    current = {
        "version": VERSION,
        "checkpoint": checkpoint,
        "model": model,
        "inputs": describe_inputs(inputs),
        "files": of_inputs(inputs, task),
        "shard_size": shard_size,
        "batch_size": batch_size,
        "source_length": options.source_length,
        "image_size": image_size,
        "seed": options.seed,
        "dtype": dtype,
        "task": options.task,
        "score_all": options.score_all,
        "decoding": None if decoding is None else decoding.to_json(),
        "decode_options": None if decode_options is None else dataclasses.asdict(decode_options),
        "answers": of_candidates(options.candidates),
    }
    # Later options stand there only if they are given, so that earlier jobs go on.
    if weights is not None:
        current["weights"] = weights
    if generation is not None:
        current["image_generation"] = generation.to_json()
    return current


def describe_inputs(inputs: Any) -> dict[str, Any]:
    """Returns the options of the inputs that a restarted job must share."""
    fields = {}
    if dataclasses.is_dataclass(inputs) and not isinstance(inputs, type):
        fields = dataclasses.asdict(inputs)
    described = {name: value for name, value in fields.items() if name != "index_dir"}
    return {"kind": type(inputs).__name__} | described


def of_inputs(inputs: Any, task: LoadedTask | None) -> Any:
    """Returns the fingerprint of the files of the inputs; None if they have none.

    Raises:
      OSError, ValueError: a file is missing, empty, or not a regular file.
    """
    if task is not None:
        return task.fingerprint
    if isinstance(inputs, ImageFolder):
        stamps = {name: _stamp(os.path.join(inputs.path, name)) for name in inputs.names}
        if len(stamps) <= _MAX_LISTED:
            return {inputs.location(index): stamps[name] for index, name in enumerate(stamps)}
        digest = hashlib.sha256()
        for name, own in stamps.items():
            digest.update(f"{name!r} {own}\n".encode())
        return {f"{len(stamps)} files": digest.hexdigest()}
    paths = getattr(inputs, "paths", None)
    return None if paths is None else {path: _of_text_file(path) for path in paths}


def _stamp(path: str) -> list[int] | None:
    """Returns size and time of a file; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _of_text_file(path: str) -> list[Any]:
    """Returns the fingerprint of a file of lines."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        remote = " (only files on a disk or a mount can be read)" if "://" in path else ""
        raise FileNotFoundError(f"There is no file {path}{remote}: check the path.") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe or a device"
        raise ValueError(f"{path} is a {kind}: its lines can be read only from a file.")
    if not status.st_size:
        raise ValueError(f"The file {path} is empty.")
    return fingerprints.of_file(path)


def of_model(checkpoint: str, vocabulary: OFAVocabulary | str | None) -> dict[str, Any]:
    """Returns the fingerprint of a checkpoint and of what is read beside it."""
    found: dict[str, Any] = {"weights": fingerprints.of_weights(checkpoint)}
    if not official.is_official(checkpoint):
        folder = storage.find_checkpoint(checkpoint)
        for directory in (folder, *folder.parents[:2]):
            beside = [directory / "model.json"]
            if (directory / FOLDER).is_dir():
                beside += sorted((directory / FOLDER).iterdir())
            for path in beside:
                if path.is_file() and "://" not in str(path):
                    found.setdefault(path.name, fingerprints.of_file(str(path)))
    if vocabulary is None and official.is_official(checkpoint):
        # A Hugging Face folder may store its vocabulary.
        folder_of = official.find_folder(checkpoint)
        if folder_of is not None and huggingface_files.has_vocabulary(folder_of):
            found["vocabulary"] = {
                name: fingerprints.of_file(str(folder_of / name))
                for name in huggingface_files.FILES
                if (folder_of / name).is_file()
            }
    elif isinstance(vocabulary, OFAVocabulary):
        found["vocabulary"] = vocabulary.fingerprint
    elif vocabulary is not None:
        path = pathlib.Path(vocabulary)
        paths = sorted(path.iterdir()) if path.is_dir() else [path]
        found["vocabulary"] = {
            own.name: fingerprints.of_file(str(own)) for own in paths if own.is_file()
        }
    return found


def of_candidates(candidates: Sequence[str] | None) -> int | None:
    """Returns the fingerprint of the candidates."""
    return None if candidates is None else zlib.crc32("\n".join(candidates).encode())


def check_files(
    directory: pathlib.Path, started: Any, current: Any, what: str = "The input"
) -> None:
    """Raises ValueError, which names the file, if files are not as when the job was started."""
    if not isinstance(started, Mapping) or not isinstance(current, Mapping):
        return
    changed = [name for name in current if name in started and started[name] != current[name]]
    added = [name for name in current if name not in started]
    removed = [name for name in started if name not in current]
    for names, problem in (
        (changed, "has changed"),
        (removed, "is no longer there"),
        (added, "is new"),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise ValueError(
                f"{what} {names[0]} {problem}{more} since the job in {directory} was started, so "
                "that its answers would be of both: restore what it was, or choose another "
                "OUTPUT_DIR."
            )
