"""Tests missing and damaged shards of ArrayRecord and Parquet, and the files beside them."""

import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from official_files import write_official_files

from ofa_jax.data.sources import scenes as scenes_source
from ofa_jax.data.sources import tfds_parquet
from ofa_jax.data.sources.array_records import OfaArrayRecords
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.data.sources.tfds import TfdsRecords
from ofa_jax.data.sources.tfds_parquet import TfdsParquetRecords
from ofa_jax.preprocessing.records import InvalidRecordError
from tools import convert_tsv

SPLIT = "vision_language/train"


def read_all(records):
    """Returns the records that can be read, and the reasons of the others."""
    found, reasons = [], []
    for index in range(len(records)):
        try:
            found.append(records[index])
        except InvalidRecordError as error:
            reasons.append(error.reason.name)
    return found, reasons


# ------------------------------------------------------------------------------------ ArrayRecord


@pytest.fixture(scope="module")
def built(golden, tmp_path_factory):
    """Returns converted files in three shards."""
    folder = write_official_files(golden, tmp_path_factory.mktemp("original"))
    conversion = convert_tsv.Conversion(
        "vision_language",
        "train",
        (str(folder / "vision_language_examples.tsv"),),
        shard_bytes=(folder / "vision_language_examples.tsv").stat().st_size // 3 + 1,
    )
    output = tmp_path_factory.mktemp("data")
    convert_tsv.convert(conversion, output)
    assert len(list((output / SPLIT).glob("*.array_record-*"))) == 3
    return output


@pytest.fixture
def converted(built, tmp_path):
    shutil.copytree(built, tmp_path / "ofa")
    return tmp_path / "ofa"


def shard(converted, number):
    return converted / SPLIT / f"vision_language-train.array_record-{number:05d}-of-00003"


def captions(converted):
    return OfaArrayRecords(str(converted)).records("captions", "train")


def refuse(converted, *parts):
    """Asserts that the records cannot be opened, in one sentence with these parts."""
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        captions(converted)
    message = str(raised.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message


def test_missing_shards_are_named(converted):
    assert len(captions(converted)) > 3
    shard(converted, 1).unlink()
    refuse(
        converted,
        "1 of 3 shards are missing in",
        "vision_language-train.array_record-00001-of-00003",
    )
    shard(converted, 0).unlink()
    refuse(converted, "2 of 3 shards are missing in", "array_record-00000-of-00003")
    shard(converted, 2).unlink()
    refuse(converted, "There are no ArrayRecord files in")


def test_shards_of_another_number_are_not_mixed_in(converted):
    shutil.copy(
        shard(converted, 0), converted / SPLIT / "vision_language-train.array_record-00000-of-00002"
    )
    refuse(converted, "has shards of different sets")


def test_files_that_only_look_like_shards_do_not_matter(converted):
    path = shard(converted, 0)
    path.with_name(path.name + ".part").write_bytes(b"")
    assert len(captions(converted)) > 3


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda data: b"", "is empty: its download or copy did not finish"),
        (lambda data: data[: len(data) // 2], "is damaged, or no ArrayRecord file"),
        (lambda data: bytes(len(data)), "is damaged, or no ArrayRecord file"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    ],
)
def test_a_torn_shard_is_named(converted, damage, sentence):
    path = shard(converted, 1)
    path.write_bytes(damage(path.read_bytes()))
    refuse(converted, path, sentence)


def test_a_shard_with_other_records_is_named(converted):
    shutil.copy(shard(converted, 2), shard(converted, 1))
    counts = json.loads((converted / SPLIT / "dataset_info.json").read_text())["splits"][0]
    if len(set(counts["shardLengths"][1:])) > 1:
        refuse(converted, shard(converted, 1), "records, but", "were stored")


def test_a_damaged_record_is_skipped_with_its_reason(converted):
    whole, _ = read_all(captions(converted))
    image = whole[0]["image"]
    part = image[len(image) // 2 :][:40]
    for path in (converted / SPLIT).glob("*.array_record-*"):
        data = path.read_bytes()
        path.write_bytes(data.replace(part, bytes([part[0] ^ 1]) + part[1:]))
    found, reasons = read_all(captions(converted))
    others = [record["id"] for record in whole if record["image"] != image]
    assert [record["id"] for record in found] == others and len(others) > 0
    assert reasons == ["damaged record"] * (len(whole) - len(others))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("conversion.json", b"", "is not valid JSON: it is empty"),
        ("conversion.json", b'{"records": 25', "is not valid JSON"),
        ("conversion.json", b"[]", "is not what a conversion writes"),
        ("conversion.json", b'{"records": "25"}', "is not what a conversion writes"),
        ("conversion.json", b'{"records": 24}', "has 25 records, but conversion.json says 24"),
        ("types.npy", b"", "types.npy is damaged"),
        ("types.npy", b"\x93NUMPY\x01\x00", "types.npy is damaged"),
        ("types.npy", None, "There is no types.npy"),
        ("dataset_info.json", b"{", "dataset_info.json is not valid JSON"),
        ("dataset_info.json", b'{"splits": []}', "does not say how many records"),
        (
            "dataset_info.json",
            b'{"splits": [{"name": "train", "shardLengths": ["25"]}]}',
            "has 3 shards, but dataset_info.json lists 1",
        ),
    ],
)
def test_damaged_files_beside_the_shards_are_refused(converted, name, content, sentence):
    path = converted / SPLIT / name
    path.unlink() if content is None else path.write_bytes(content)
    refuse(converted, sentence)


def test_types_of_other_records_are_refused(converted):
    path = converted / SPLIT / "types.npy"
    types = np.load(path)
    for damaged in (types[:-1], types + np.uint8(1), types.astype(np.int64), types[None]):
        np.save(path, damaged)
        refuse(converted, "types.npy does not fit the records or conversion.json")
    np.save(path, np.array([print], object), allow_pickle=True)
    refuse(converted, "types.npy is damaged")


def test_the_counts_of_tfds_are_not_needed(converted):
    (converted / SPLIT / "dataset_info.json").unlink()
    assert len(captions(converted)) > 3


def test_random_damage_never_ends_the_process(converted):
    """In a process of its own: the reader is written in C++."""
    generator = random.Random(0)
    path = shard(converted, 0)
    whole = path.read_bytes()
    used = [index for index, value in enumerate(whole) if value]
    for copy in range(40):
        data = bytearray(whole)
        start = generator.choice(used)
        data[start : start + generator.randrange(1, 9)] = generator.randbytes(4)
        folder = converted.parent / f"copy{copy}" / SPLIT
        folder.mkdir(parents=True)
        for other in (converted / SPLIT).iterdir():
            os.link(other, folder / other.name)
        (folder / path.name).unlink()
        (folder / path.name).write_bytes(data)
    program = """
import sys, collections, warnings
from ofa_jax.data.sources.array_records import OfaArrayRecords
from ofa_jax.preprocessing.records import InvalidRecordError
found = collections.Counter()
for copy in range(40):
    try:
        records = OfaArrayRecords(f"{sys.argv[1]}/copy{copy}").records("captions", "train")
    except ValueError as error:
        assert "damaged" in str(error) or "records, but" in str(error), error
        found["refused"] += 1
        continue
    for index in range(len(records)):
        try:
            records[index]
            found["read"] += 1
        except InvalidRecordError as error:
            found[error.reason.name] += 1
assert set(found) <= {"refused", "read", "damaged record"}, found
print(sum(found.values()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(converted.parent)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 40


# ----------------------------------------------------------------------------------------- Parquet


@pytest.fixture(scope="module")
def example():
    from tensorflow_datasets.proto import tf_example_pb2

    def make(**fields):
        example = tf_example_pb2.Example()
        for name, value in fields.items():
            feature = example.features.feature[name]
            if isinstance(value, bytes):
                feature.bytes_list.value.append(value)
            else:
                feature.float_list.value.extend(value)
        return example.SerializeToString()

    return make


@pytest.fixture
def parquet(tmp_path, example):
    """Returns a folder with a split in three shards of 4, 3 and 3 records."""
    numbers = iter(range(10))
    for shard, count in enumerate((4, 3, 3)):
        rows = [example(id=str(next(numbers)).encode()) for _ in range(count)]
        pyarrow.parquet.write_table(
            pyarrow.table({"data": rows}), tmp_path / f"a-train.parquet-{shard:05d}-of-00003"
        )
    info = {"splits": [{"name": "train", "shardLengths": ["4", "3", "3"]}]}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    tfds_parquet._read_column.cache_clear()
    yield tmp_path
    tfds_parquet._read_column.cache_clear()


def open_parquet(folder):
    records = TfdsParquetRecords.from_directory(folder, "train", {"id": "string"})
    len(records)
    return records


def test_parquet_shards_are_read_in_order(parquet):
    records = open_parquet(parquet)
    assert [records[index]["id"] for index in range(10)] == list(map(str, range(10)))


def test_missing_parquet_shards_are_named(parquet):
    (parquet / "a-train.parquet-00001-of-00003").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 3 shards .*: a-train.parquet-00001-of-00003"):
        open_parquet(parquet)


def test_a_parquet_shard_with_fewer_records_is_named(parquet):
    path = parquet / "a-train.parquet-00001-of-00003"
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.slice(0, 2), path)
    with pytest.raises(ValueError, match="00001-of-00003 has 2 records, but 3 were stored"):
        open_parquet(parquet)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda data: b"", "is empty"),
        (lambda data: data[:-9], "is damaged, or not a Parquet"),
        (lambda data: data[: len(data) // 2], "is damaged, or not a Parquet"),
        (
            lambda data: data[:4] + bytes(len(data) - 8) + data[-4:],
            "is damaged, or not a Parquet",
        ),
        (lambda data: b"<!DOCTYPE html><html></html>", "is a web page"),
    ],
)
def test_a_damaged_parquet_file_is_named(parquet, damage, problem):
    path = parquet / "a-train.parquet-00002-of-00003"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"00002-of-00003 {problem}") as raised:
        open_parquet(parquet)
    assert "\n" not in str(raised.value)


def test_a_parquet_file_of_something_else_is_named(parquet):
    path = parquet / "a-train.parquet-00000-of-00003"
    pyarrow.parquet.write_table(pyarrow.table({"caption": ["a", "b"]}), path)
    with pytest.raises(ValueError, match="00000-of-00003 is damaged, or not a Parquet file of"):
        open_parquet(parquet)


def test_damaged_examples_are_skipped_with_their_reason(parquet, example):
    rows = [
        example(image=b"x", boxes=[1, 2, 3, 4]),
        example(image=b"x", boxes=[1, 2, 3]),
        example(boxes=[1, 2, 3, 4]),
        example(image=b"x", name=b"\xff"),
        b"\xff\xff\xff",
        None,
        example(image=b"x"),
    ]
    (parquet / "dataset_info.json").unlink()
    for path in parquet.glob("*.parquet-*"):
        path.unlink()
    pyarrow.parquet.write_table(
        pyarrow.table({"data": rows}), parquet / "a-train.parquet-00000-of-00001"
    )
    fields = {"image": "bytes", "boxes": "boxes", "name": "string"}
    found, reasons = read_all(TfdsParquetRecords.from_directory(parquet, "train", fields))
    assert reasons == ["damaged record"] * 5
    assert [len(record["boxes"]) for record in found] == [1, 0]
    assert [record["name"] for record in found] == ["", ""]


# ------------------------------------------------------------------------------------------ Scenes


@pytest.fixture
def scenes(small_scenes, tmp_path):
    shutil.copytree(small_scenes, tmp_path / "data")
    scenes_source.check_files.cache_clear()
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("vocabulary.json", lambda scenes: scenes.vocabulary()),
        ("codebook.npz", lambda scenes: scenes.image_tokenizer()),
        (
            "images/1.1.0/scenes-train.parquet-00000-of-00001",
            lambda scenes: scenes.records("captions", "train")[0],
        ),
    ],
)
def test_a_flipped_bit_in_scenes_is_noticed(scenes, name, read):
    path = scenes / "scenes" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path.name} is damaged: .*build_scenes --overwrite"):
        read(Scenes(str(scenes)))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"options": 3}'])
def test_a_torn_marker_of_scenes_is_a_sentence(scenes, content):
    (scenes / "scenes" / "scenes.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"scenes.json is not"):
        Scenes(str(scenes)).records("captions", "train")


# -------------------------------------------------------------------------------------------- TFDS


def identity(example):
    return example


@pytest.fixture
def stored(scenes):
    """Returns the scenes' texts under a name of which no builder is known."""
    shutil.copytree(scenes / "scenes" / "text", scenes / "stored" / "text")
    return scenes


def open_tfds(folder, split="validation", name="stored/text"):
    records = TfdsRecords(name, split, identity, str(folder))
    len(records)
    return records


def test_tfds_reads_a_whole_split(stored):
    assert b"validation-" in open_tfds(stored)[0]["id"]


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (lambda path: path.unlink(), {}, "TFDS cannot open stored/text, split validation"),
        (lambda path: path.write_bytes(b""), {}, "TFDS cannot open stored/text"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), {}, "TFDS cannot open"),
        (
            lambda path: pyarrow.parquet.write_table(
                pyarrow.parquet.read_table(path).slice(0, 3), path
            ),
            {},
            "has 3 records, but .* were stored",
        ),
        (lambda path: None, {"split": "no_split"}, "TFDS cannot open .* split no_split"),
        (lambda path: None, {"name": "no_such_data"}, "TFDS cannot open no_such_data"),
        (lambda path: None, {"split": "validation[:2]"}, "has .* records, but 2 were stored"),
    ],
)
def test_what_tfds_cannot_read_is_a_sentence(stored, change, options, sentence):
    (path,) = (stored / "stored" / "text" / "1.1.0").glob("*-validation.parquet-*")
    change(path)
    with pytest.raises(ValueError, match=sentence) as raised:
        open_tfds(stored, **options)
    assert "\n" not in str(raised.value)
