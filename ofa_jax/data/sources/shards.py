"""Files in shards, `<name>-00002-of-00004`: all of them must be there, with all their records.

A missing shard would leave its records out without a word, and shift the numbers of all others.
"""

import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

from ofa_jax.utils import text_files
from ofa_jax.utils.bad_input import InvalidRecordError, Treatment, declare

DATASET_INFO = "dataset_info.json"
_SHARD = re.compile(r"(?P<name>.*)-(?P<number>\d+)-of-(?P<count>\d+)")
_NAMED = 5

DAMAGED_RECORD = declare(
    "damaged record",
    Treatment.SKIPPED,
    "The stored bytes of the record (ArrayRecord, Parquet, TFRecord) cannot be read, or are not a "
    "tf.train.Example with the fields that the task needs.",
    __name__,
)
MISSING_SHARDS = declare(
    "missing shards",
    Treatment.REFUSED,
    "A file of a data set in shards (`-00002-of-00004`) is missing, or has another number of "
    "records than was stored when it was written.",
    __name__,
)


def damaged_record(problem: str) -> InvalidRecordError:
    """Returns the error to raise for a record whose stored bytes are damaged."""
    return InvalidRecordError(problem, DAMAGED_RECORD)


def complete_shards(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """Returns shards in their order, without files of other names.

    Raises:
      FileNotFoundError: a shard is missing.
      ValueError: the shards belong to different sets.
    """
    sets: dict[tuple[pathlib.Path, str, int], dict[int, pathlib.Path]] = {}
    for path in paths:
        if found := _SHARD.fullmatch(path.name):
            key = (path.parent, found["name"], int(found["count"]))
            sets.setdefault(key, {})[int(found["number"])] = path
    if len(sets) > 1:
        names = sorted(next(iter(shards.values())).name for shards in sets.values())
        raise ValueError(
            f"{next(iter(sets))[0]} has shards of different sets ({', '.join(names[:_NAMED])}): "
            "remove those that do not belong to the data set."
        )
    for (folder, name, count), shards in sets.items():
        if missing := [number for number in range(count) if number not in shards]:
            width = len(_SHARD.fullmatch(next(iter(shards.values())).name)["count"])  # type: ignore[index]
            named = [f"{name}-{n:0{width}d}-of-{count:0{width}d}" for n in missing[:_NAMED]]
            raise FileNotFoundError(
                f"{len(missing)} of {count} shards are missing in {folder}: {', '.join(named)}"
                f"{' ...' if len(missing) > _NAMED else ''}. Copy them there, or build the data "
                "set again."
            )
        return [shards[number] for number in sorted(shards)]
    return []


def stored_counts(folder: pathlib.Path, split: str) -> list[int] | None:
    """Returns the number of records of each shard that TFDS stored; None where it did not.

    Raises:
      DamagedFileError: dataset_info.json is damaged.
    """
    path = folder / DATASET_INFO
    if not path.is_file():
        return None
    info = text_files.read_json(path)
    splits = info.get("splits") if isinstance(info, Mapping) else None
    for stored in splits if isinstance(splits, list) else ():
        if isinstance(stored, Mapping) and stored.get("name") == split:
            try:
                return [int(length) for length in stored["shardLengths"]]
            except (KeyError, TypeError, ValueError):
                break
    if isinstance(info, Mapping) and splits is None:
        return None
    raise text_files.DamagedFileError(
        f"{path} does not say how many records the split {split} has: it is damaged, or of another "
        "data set."
    )


def check_counts(
    paths: Sequence[pathlib.Path], counts: Sequence[int], stored: Sequence[int] | None
) -> None:
    """Raises ValueError if the shards do not have as many records as was stored."""
    if stored is None or list(stored) == list(counts):
        return
    if len(stored) != len(counts):
        raise ValueError(
            f"{paths[0].parent} has {len(counts)} shards, but {DATASET_INFO} lists {len(stored)}: "
            "copy the data set again, or build it again."
        )
    path, count, expected = next(
        (path, count, expected)
        for path, count, expected in zip(paths, counts, stored, strict=True)
        if count != expected
    )
    raise ValueError(
        f"{path} has {count:,} records, but {expected:,} were stored: copy it again, or build the "
        "data set again."
    )
