"""Finds out whether a job goes on in its output directory, and refuses what would mix two jobs."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from ofa_jax.inference import fingerprint, shards
from ofa_jax.inference.shards import Shards
from ofa_jax.utils.text_files import DamagedFileError


@dataclasses.dataclass(frozen=True)
class Resumed:
    """A job that goes on.

    Attributes:
      shards: its output files.
      record: the content of its job.json.
      replaces_record: whether job.json is written again.
      message: what the user should know; empty if nothing.
    """

    shards: Shards
    record: Mapping[str, Any]
    replaces_record: bool = False
    message: str = ""


def find_started(
    directory: pathlib.Path,
    current: dict[str, Any],
    count_inputs: Callable[[], int],
    is_one_kind: bool,
) -> Resumed | None:
    """Returns the job that was started in a directory; None if there is none.

    Args:
      directory: the output directory.
      current: the configuration, without `num_inputs`.
      count_inputs: returns the number of inputs; called only if the directory does not have it.
      is_one_kind: whether all inputs are decoded alike in any case.

    Raises:
      ValueError: it is another job, or may be one.
    """
    current = json.loads(json.dumps(current))
    problem = "is missing"
    try:
        started = shards.read_job_file(directory)
        if started is not None:
            if not _is_count(started.get("num_inputs")):
                raise DamagedFileError("it does not have the number of inputs")
            if "version" not in started:
                return _resume_former(directory, started, current, is_one_kind)
            return _resume(directory, started, current)
    except DamagedFileError as error:
        problem = f"is damaged ({str(error).rstrip('.')})"
    if not _answers(directory):
        if problem == "is missing":
            return None
        record = current | {"num_inputs": count_inputs()}
        message = f"job.json in {directory} {problem}: it is written again."
        return Resumed(_shards(directory, record), record, True, message)
    return _rebuild(directory, current | {"num_inputs": count_inputs()}, problem)


def _resume(
    directory: pathlib.Path, started: Mapping[str, Any], current: dict[str, Any]
) -> Resumed:
    """Compares the started job with the current one."""
    fingerprint.check_files(directory, started.get("files"), current["files"])
    fingerprint.check_files(
        directory, started.get("model"), current["model"], "The model's part called"
    )
    shards.compare_jobs(directory, started, current | {"num_inputs": started["num_inputs"]})
    return Resumed(_shards(directory, started), started)


def _resume_former(
    directory: pathlib.Path,
    started: Mapping[str, Any],
    current: Mapping[str, Any],
    is_one_kind: bool,
) -> Resumed:
    """Compares a job of an earlier version with the current one, as far as it was recorded."""
    inputs = started.get("inputs")
    inputs = inputs if isinstance(inputs, Mapping) else {}
    same = {name: current[name] for name in current if name in started or name == "inputs"}
    same["inputs"] = {name: current["inputs"].get(name) for name in inputs}
    path = current["inputs"].get("path")
    if "bytes" in inputs and path is not None and os.path.isfile(path):
        same["inputs"]["bytes"] = os.path.getsize(path)
    shards.compare_jobs(directory, started, same | {"num_inputs": started["num_inputs"]})
    record = dict(current) | {"num_inputs": started["num_inputs"]}
    outputs = _shards(directory, record)
    if outputs.unfinished(range(outputs.count)) and not is_one_kind:
        raise ValueError(
            f"The job in {directory} was started by an earlier version, which decoded every line "
            "as the first one: choose another OUTPUT_DIR, so that each line is decoded by its own "
            "task."
        )
    message = (
        f"The job in {directory} was started by an earlier version, which did not record the files "
        "of its inputs: that they have not changed since cannot be checked."
    )
    return Resumed(outputs, record, True, message)


def _rebuild(directory: pathlib.Path, record: Mapping[str, Any], problem: str) -> Resumed:
    """Takes over output files without a job.json, if they are known to be of this job."""
    outputs = _shards(directory, record)
    names = {outputs.path(shard).name for shard in range(outputs.count)}
    foreign = [name for name in _answers(directory) if name not in names]
    if foreign or outputs.jobs_of_finished() != {outputs.job}:
        raise ValueError(
            f"job.json in {directory} {problem}, and the answers there are not known to be of this "
            "job: choose another OUTPUT_DIR, or delete them."
        )
    message = f"job.json in {directory} {problem}: the answers are of this job, so it goes on."
    return Resumed(outputs, record, True, message)


def _answers(directory: pathlib.Path) -> list[str]:
    """Returns the names of the output files in a directory."""
    return sorted(path.name for path in directory.glob("answers-*-of-*.jsonl"))


def _shards(directory: pathlib.Path, record: Mapping[str, Any]) -> Shards:
    """Returns the output files of a job."""
    return Shards(directory, record["num_inputs"], record["shard_size"], shards.job_digest(record))


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0
