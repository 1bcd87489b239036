"""Writes records to ArrayRecord files in the layout of `array_records`.

`tools.convert_tsv` and the jobs on Beam (`ofa_jax.jobs`) write the same files with it.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from ofa_jax.data.sources.array_records import (
    DESCRIPTION,
    FIELDS_OF_FILE,
    TYPES,
    serialise,
    type_of,
)
from ofa_jax.data.sources.tsv_columns import PAIR_TYPES
from ofa_jax.preprocessing.records import Record
from ofa_jax.utils import files

__all__ = ["WrittenShard", "shard_name", "write_description", "write_shard", "write_tfds_metadata"]


@dataclasses.dataclass(frozen=True)
class WrittenShard:
    """What one file holds.

    Attributes:
      records: their number.
      num_bytes: of the serialised records.
      types: of vision-language records, an index into PAIR_TYPES each; else empty.
    """

    records: int
    num_bytes: int
    types: bytes = b""


def shard_name(file_kind: str, split: str, number: int, count: int) -> str:
    """Returns the name of a file of a folder of records."""
    return f"{file_kind}-{split}.array_record-{number:05d}-of-{count:05d}"


def write_shard(path: pathlib.Path, file_kind: str, records: Iterable[Record]) -> WrittenShard:
    """Writes records into one file.

    Args:
      path: on a disk.
      file_kind: a key of FIELDS_OF_FILE.
      records: in the order of the file.

    Raises:
      OSError: the file cannot be written, e.g. because the disk is full.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    fields = FIELDS_OF_FILE[file_kind]
    # One record a group, for random access; images are compressed already, texts are not.
    compression = "uncompressed" if "image" in fields else "zstd:3"
    count, num_bytes, types = 0, 0, bytearray()
    try:
        writer = ArrayRecordWriter(str(path), f"group_size:1,{compression}")
        for record in records:
            data = serialise(record, fields)
            count, num_bytes = count + 1, num_bytes + len(data)
            writer.write(data)
            if file_kind == "vision_language":
                types.append(PAIR_TYPES.index(type_of(record)))
        writer.close()
    except RuntimeError as error:  # the writer's, e.g. for a full disk
        raise OSError(f"{path.parent.parent} cannot be written to ({error}).") from error
    return WrittenShard(count, num_bytes, bytes(types))


def write_description(
    folder: pathlib.Path, file_kind: str, split: str, shards: Sequence[WrittenShard], source: dict
) -> dict:
    """Writes what makes a folder of complete files a data set, conversion.json last.

    Args:
      folder: has the files already.
      file_kind: a key of FIELDS_OF_FILE.
      split: e.g. "train".
      shards: what the files hold, in their order.
      source: what conversion.json says of the source and of the records that were left out.

    Returns:
      The content of conversion.json.
    """
    description = dict(source)
    if file_kind == "vision_language":
        types = np.frombuffer(b"".join(shard.types for shard in shards), np.uint8)
        np.save(folder / TYPES, types)
        counts = np.bincount(types, minlength=len(PAIR_TYPES)).tolist()
        description["types"] = dict(zip(PAIR_TYPES, counts, strict=True))
    write_tfds_metadata(folder, file_kind, split, shards)
    files.write_json(folder / DESCRIPTION, description)
    return description


def write_tfds_metadata(
    folder: pathlib.Path, file_kind: str, split: str, shards: Sequence[WrittenShard]
) -> None:
    """Writes features.json and dataset_info.json, so that TFDS reads the folder too."""
    import tensorflow_datasets as tfds

    kinds = {
        "string": tfds.features.Text(),
        "bytes": tfds.features.Image(shape=(None, None, 3)),
        "strings": tfds.features.Sequence(tfds.features.Text()),
        "floats": tfds.features.Sequence(np.float32),
        "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
        "ints": tfds.features.Sequence(np.int32),
    }
    info = tfds.core.SplitInfo(
        name=split,
        shard_lengths=[shard.records for shard in shards],
        num_bytes=sum(shard.num_bytes for shard in shards),
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=folder,
            dataset_name=file_kind,
            split=split,
            filetype_suffix="array_record",
        ),
    )
    fields = FIELDS_OF_FILE[file_kind]
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=tfds.features.FeaturesDict({name: kinds[kind] for name, kind in fields.items()}),
        split_infos=[info],
        check_data=False,
        description="Pretraining data of OFA, converted from TSV by tools/convert_tsv.py.",
    )
