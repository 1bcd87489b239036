"""The job `cache_tasks`: the records of a seqio task to an offline cache.

The folder is that of seqio's own `seqio_cache_tasks`, <output_dir>/<task>/, so seqio reads it with
`use_cached=True`, and our loader as `CachedTasks`. What stands before the task's
CacheDatasetPlaceholder is stored: the records, so that all random preprocessing comes after it.
"""

import argparse
import bisect
import copy
import dataclasses
import importlib
import os
import pathlib
from typing import Any

from etils import epath

from ofa_jax.data.sources.base import refuse_endless
from ofa_jax.data.sources.memory import InMemoryRecords
from ofa_jax.jobs.outputs import DeadLetters, JobOutput, Manifest
from ofa_jax.utils import files
from ofa_jax.utils.bad_input import as_invalid_record

__all__ = ["CacheTask", "add_arguments", "prepare"]

COMPLETED = "COMPLETED"


@dataclasses.dataclass(frozen=True)
class CacheTask:
    """The job; see `pipeline.Job`. Its input are the records of all splits, one after the other.

    Attributes:
      task: name in the seqio registry.
      modules: that register it.
      splits: of the task.
      ends: record number at which each split ends.
    """

    task: str
    modules: tuple[str, ...]
    splits: tuple[str, ...]
    ends: tuple[int, ...]

    def open(self) -> Any:
        """Returns the task, and its records by split."""
        task = find_task(self.task, self.modules)
        return task, {split: task.source.records(split) for split in self.splits}

    def write(
        self,
        opened: Any,
        numbers: range,
        path: pathlib.Path,
        letters: DeadLetters,
        details: dict[str, Any],
    ) -> None:
        """Writes the records of some numbers, all of one split, as a TFRecord file."""
        import seqio
        import tensorflow as tf

        task, records_of = opened
        which = bisect.bisect_right(self.ends, numbers.start)
        split, begin = self.splits[which], self.ends[which - 1] if which else 0
        records, good = records_of[split], []
        for number in numbers:
            try:
                good.append(records[number - begin])
            except Exception as error:  # noqa: BLE001  one odd record must not end the job
                find = getattr(records, "location", None)
                index = number - begin
                origin = find(index) if find else f"{self.task}, {split}, record {index}"
                letters.add(origin, number, as_invalid_record(error, "cannot be read"))
        source = copy.copy(task.source)
        source._open, source._takes_context = lambda *_: InMemoryRecords(good), True
        dataset = source.get_dataset(split, shuffle=False)
        dataset = task.preprocess_precache(dataset, seed=0)
        with tf.io.TFRecordWriter(str(path)) as writer:
            for example in dataset:
                # seqio stores bools as integers, but newer versions of protobuf refuse them.
                stored = {
                    name: tf.cast(value, tf.int64) if value.dtype.is_bool else value
                    for name, value in example.items()
                }
                writer.write(seqio.dict_to_tfexample(stored).SerializeToString(deterministic=True))
                details["records"] += 1
        details["split"] = split
        details["features"] = {
            name: {"shape": _stored_shape(spec.shape), "dtype": spec.dtype.name}
            for name, spec in dataset.element_spec.items()
        }

    def identity(self) -> dict[str, Any]:
        """Returns what the output depends on, JSON."""
        return {
            "job": "cache_tasks",
            "task": self.task,
            "splits": dict(zip(self.splits, self.ends, strict=True)),
        }

    def finish(self, output: JobOutput, manifests: list[Manifest], summary: dict[str, Any]) -> dict:
        """Gives the files seqio's names, and describes them; returns file -> SHA-256."""
        import seqio

        folder = output.directory
        digests: dict[str, str] = {}
        for split in self.splits:
            own = [manifest for manifest in manifests if manifest.details["split"] == split]
            prefix = os.path.basename(seqio.get_cached_tfrecord_prefix(folder, split))
            name = f"{prefix}-{{:05d}}-of-{{:05d}}"
            kept = output.rename(own, name.format)
            digests |= {name.format(n, len(kept)): m.sha256 for n, m in enumerate(kept)}
            info = {
                "num_shards": len(kept),
                "features": own[0].details["features"],
                "seqio_version": seqio.__version__,
            }
            files.write_json(seqio.get_cached_info_path(folder, split), info)
            stats = {"examples": sum(manifest.records for manifest in kept)}
            files.write_json(seqio.get_cached_stats_path(folder, split), stats)
        files.write_text(epath.Path(folder) / COMPLETED, "")
        return digests


def _stored_shape(shape: Any) -> list[int | None]:
    """Returns a shape as seqio stores it: the first axis may have any size."""
    sizes = shape.as_list()
    return [None, *sizes[1:]] if sizes else []


def find_task(name: str, modules: tuple[str, ...]) -> Any:
    """Imports the modules, and returns the task.

    Raises:
      ValueError: there is no such task, or the job cannot cache it.
    """
    import seqio

    from ofa_jax.data import seqio_bridge

    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ValueError(f"--module_import={module} cannot be imported ({error}).") from error
    task = seqio_bridge.find(name)
    if not isinstance(task, seqio.Task):
        raise ValueError(
            f"{name} is a mixture: cache its tasks, "
            f"{', '.join(sorted(part.name for part in task.tasks))}, one by one."
        )
    if not isinstance(task.source, seqio_bridge.RecordDataSource):
        raise ValueError(
            f"{name} does not read records of this library: cache it with `seqio_cache_tasks`."
        )
    if not task.supports_caching:
        raise ValueError(
            f"{name} has no CacheDatasetPlaceholder: put seqio.CacheDatasetPlaceholder() first in "
            "its preprocessors."
        )
    return task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the job's arguments."""
    parser.add_argument("--task", required=True, help="name in the seqio registry")
    parser.add_argument(
        "--module_import",
        nargs="+",
        default=["tasks.pretraining"],
        help="modules that register it (default: tasks.pretraining)",
    )
    parser.add_argument("--splits", nargs="+", help="(default: those of the task)")
    parser.add_argument(
        "--shard_size", type=int, default=4096, help="records of one file (default: 4096)"
    )


def prepare(options: argparse.Namespace) -> tuple[CacheTask, list[int], str]:
    """Checks the arguments, and counts the records; returns as `encode_images.prepare`.

    Raises:
      FileNotFoundError, ValueError: a sentence for the user.
    """
    if options.shard_size < 1:
        raise ValueError(f"--shard_size is {options.shard_size}; give at least 1.")
    modules = tuple(options.module_import)
    task = find_task(options.task, modules)
    splits = tuple(options.splits or task.splits)
    bounds, ends = [0], []
    for split in splits:
        records = task.source.records(split)
        refuse_endless(records, "cached")
        end = bounds[-1] + len(records)
        bounds += [*range(bounds[-1] + options.shard_size, end, options.shard_size), end]
        ends.append(end)
    job = CacheTask(task.name, modules, splits, tuple(ends))
    import seqio

    directory = os.path.join(options.output_dir, seqio.get_task_dir_from_name(task.name))
    return job, bounds, directory
