"""Shards of ArrayRecord and Parquet: missing ones are named, and damage never ends the process."""

import json
import pathlib
import random
import shutil
from typing import Any

import numpy as np

from fuzz import cases, good
from fuzz.mutations import mutate_bytes, mutate_json_file
from fuzz.records import make_examples, read_all
from ofa_jax.data.sources.array_records import FIELDS_OF_FILE, OfaArrayRecords, serialise
from ofa_jax.data.sources.ofa_tsv import FILE_OF_KIND
from ofa_jax.data.sources.tfds_parquet import TfdsParquetRecords
from ofa_jax.data.sources.tsv_records import TsvRecords

_REFUSALS = (ValueError, OSError)


class _Shards(cases.Target):
    """Damages, drops, renames or empties a shard, or a file beside the shards."""

    pattern = ""

    def open(self, rng: random.Random, folder: pathlib.Path) -> tuple[Any, str]:
        """Opens records of one kind; returns them and the kind."""
        raise NotImplementedError

    def run(self, rng: random.Random, folder: pathlib.Path) -> str:
        """Reads damaged shards."""
        root = folder / "data"
        shutil.copytree(self._good, root)
        missing = self._damage(rng, root)
        before = cases.snapshot(root)
        opened, error = cases.attempt(lambda: self.open(rng, root), *_REFUSALS)
        cases.check_unchanged(before, root)
        if error is not None:
            return cases.REFUSED
        assert opened is not None
        records, kind = opened
        count, error = cases.attempt(lambda: len(records), *_REFUSALS)
        if error is not None:
            return cases.REFUSED
        used = FILE_OF_KIND[kind]
        cases.check(used not in missing.split("-"), f"{missing} is missing, and nothing is said")
        assert count is not None
        cases.check(count <= 200, f"{count} records of 12 lines")
        generator = np.random.default_rng(rng.randrange(2**32))
        make_examples(self._objectives.get(kind, ()), read_all(records), generator)
        return cases.ACCEPTED

    def _damage(self, rng: random.Random, root: pathlib.Path) -> str:
        """Damages a file; returns the name of a shard that is now missing, or ''."""
        shards = sorted(root.rglob(self.pattern))
        others = sorted(path for path in root.rglob("*") if path.is_file() and path not in shards)
        path = rng.choice(shards if rng.random() < 0.75 or not others else others)
        operation = rng.randrange(6)
        if operation == 0:
            path.unlink()
        elif operation == 1 and path in shards:
            renamed = path.with_name(path.name[:-2] + rng.choice(("09", "01", "x")))
            path.rename(renamed)
            if renamed == path:
                return ""
        elif operation == 2:
            path.write_bytes(b"")
            return ""
        elif operation == 3 and len(shards) > 1:
            path.write_bytes(rng.choice(shards).read_bytes())
            return ""
        else:
            mutate = mutate_json_file if path.suffix == ".json" else mutate_bytes
            path.write_bytes(mutate(rng, path.read_bytes()))
            return ""
        return f"{path.parent.parent.name}-{path.name}" if path in shards else ""


class ArrayRecordShards(_Shards):
    """The folders that `tools.convert_tsv` writes."""

    name = "arrayrecord"
    pattern = "*.array_record-*"
    megabytes = 1536

    def prepare(self, folder: pathlib.Path) -> None:
        """Converts small official files, each to several shards."""
        from tools import convert_tsv

        self._good = folder / "ofa"
        convert_tsv._MEGABYTE = 1_000
        arguments = [f"--output_dir={self._good}", "--num_workers=0", "--shard_megabytes=2"]
        for kind in ("vision_language", "text", "images", "detection"):
            path = folder / f"{kind}.tsv"
            path.write_text("".join(f"{row}\n" for row in good.tsv_rows(kind)))
            arguments.append(f"--{kind}={path}")
        assert convert_tsv.main(arguments) == 0
        self._objectives = good.objectives()

    def open(self, rng: random.Random, folder: pathlib.Path) -> tuple[Any, str]:
        """Opens one of the kinds of records."""
        kind = rng.choice([kind for kind in FILE_OF_KIND if kind != "pairs"])
        return OfaArrayRecords(str(folder)).records(kind, "train"), kind


class ParquetShards(_Shards):
    """The folders that TFDS writes."""

    name = "parquet"
    pattern = "*.parquet-*"
    megabytes = 1536

    def prepare(self, folder: pathlib.Path) -> None:
        """Writes three shards of serialised examples."""
        import pyarrow
        import pyarrow.parquet

        path = folder / "detection.tsv"
        path.write_text("".join(f"{row}\n" for row in good.tsv_rows("detection")))
        records = TsvRecords.open(str(path), "detection")
        fields = FIELDS_OF_FILE["detection"]
        data = [serialise(records[index], fields) for index in range(len(records))]
        self._good = folder / "scenes" / "1.0.0"
        self._good.mkdir(parents=True)
        for number in range(3):
            table = pyarrow.table({"data": pyarrow.array(data[4 * number : 4 * number + 4])})
            name = f"detection-train.parquet-{number:05d}-of-00003"
            pyarrow.parquet.write_table(table, self._good / name)
        (self._good / "dataset_info.json").write_text(json.dumps({"name": "scenes"}))
        self._objectives = good.objectives()

    def open(self, rng: random.Random, folder: pathlib.Path) -> tuple[Any, str]:
        """Opens the records."""
        del rng
        fields = FIELDS_OF_FILE["detection"]
        return TfdsParquetRecords.from_directory(folder, "train", fields), "objects"


TARGETS = {"arrayrecord": ArrayRecordShards, "parquet": ParquetShards}
