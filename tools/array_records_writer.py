"""Writes records as ArrayRecord files, which `OfaArrayRecords` reads."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ofa_jax.data.sources.array_record_writer import (
    WrittenShard,
    shard_name,
    write_description,
    write_shard,
)
from ofa_jax.data.sources.array_records import FIELDS_OF_FILE, serialise
from ofa_jax.data.sources.base import RecordSource
from ofa_jax.preprocessing.records import Record
from ofa_jax.utils.bad_input import as_invalid_record

from .usable_records import Counts, usable_records


def usable_for(
    file_kind: str, sources: Mapping[str, RecordSource], options: Any, counts: Counts
) -> Iterator[Record]:
    """Yields the records of a file that can be serialised."""
    for kind, records in sources.items():
        for record, where in usable_records(kind, records, options, counts):
            try:
                serialise(record, FIELDS_OF_FILE[file_kind])
            except Exception as raised:  # noqa: BLE001  fields of odd types
                counts.skip(as_invalid_record(raised, "it cannot be written"), where)
                continue
            counts.written += 1
            yield record


def write_array_records(
    folder: pathlib.Path,
    file_kind: str,
    split: str,
    sources: Mapping[str, RecordSource],
    options: Any,
    shard_bytes: int,
) -> Counts:
    """Writes a folder of ArrayRecord files, which `OfaArrayRecords` reads."""
    counts = Counts()
    records = usable_for(file_kind, sources, options, counts)
    shards: list[WrittenShard] = []
    for first in records:
        path = folder / f"shard-{len(shards)}"
        shards.append(write_shard(path, file_kind, _shard_of(first, records, shard_bytes)))
    for number in range(len(shards)):
        name = shard_name(file_kind, split, number, len(shards))
        (folder / f"shard-{number}").rename(folder / name)
    if not counts.written:  # the caller says so
        return counts
    source = {
        "records": counts.written,
        "skipped": dict(sorted(counts.skipped.items())),
        "changed": dict(sorted(counts.changed.items())),
        "skipped_lines": counts.named,
    }
    write_description(folder, file_kind, split, shards, source)
    return counts


def _shard_of(first: Record, others: Iterator[Record], limit: int) -> Iterator[Record]:
    """Yields the first record and as many others as a file holds."""
    size = len(first.get("image", first.get("text", "")))
    yield first
    while size < limit:
        record = next(others, None)
        if record is None:
            return
        size += len(record.get("image", record.get("text", "")))
        yield record
