"""Tables of the user's own data: JSON lines, Parquet, Arrow, WebDataset tars, COCO's JSON.

Damage never ends the process, paths of images stay in their folder, and a line of JSON that has not
changed is read exactly as often as it is there.
"""

import collections
import gzip
import io
import json
import pathlib
import random
import shutil
import tarfile
from typing import Any

import numpy as np

from fuzz import cases, good
from fuzz.mutations import mutate_bytes, mutate_json, mutate_json_file, mutate_text
from fuzz.records import make_examples, read_all
from ofa_jax.data.sources import arrow_files, coco_json, json_lines, webdataset
from ofa_jax.data.sources.tables import OBJECTIVES_OF_KIND, TableDataSet
from ofa_jax.data.sources.tsv_index import SUFFIX

_REFUSALS = (ValueError, OSError)
_MADE = (SUFFIX, json_lines.UNPACKED_SUFFIX, arrow_files.CACHE_SUFFIX, webdataset.INDEX_SUFFIX)
_KINDS = [kind for kind in OBJECTIVES_OF_KIND if kind != "images"]
_ROWS = 12
_SECRET = b"this image lies outside"


def rows() -> list[dict[str, Any]]:
    """Returns twelve good rows with the fields of all kinds of records."""
    return [
        {
            "id": f"r{n}",
            "image": f"images/{n}.png",
            "captions": [f"a red apple {n}", "an apple"],
            "questions": [f"is it {n}?"],
            "answers": ["yes"],
            "phrases": ["the apple"],
            "phrase_boxes": [[1.5, 2, n + 9, 12]],
            "object_labels": ["apple", "dog"],
            "object_boxes": [[0, 0, 9, 9], [1, 2, n + 9.25, 12]],
            "text": f"there are {n} red apples and a green car.",
        }
        for n in range(_ROWS)
    ]


class _Tables(cases.Target):
    """Damages a file of a table, or its index, and reads everything of every kind."""

    megabytes = 1536
    seconds = 40.0  # of a slow machine

    def write(self, folder: pathlib.Path) -> None:
        """Writes good files."""
        raise NotImplementedError

    def data_set(self, folder: pathlib.Path) -> TableDataSet:
        """Returns the data set of some files."""
        raise NotImplementedError

    def mutate(self, rng: random.Random, path: pathlib.Path) -> bytes:
        """Returns the changed content of a file."""
        return mutate_bytes(rng, path.read_bytes())

    def prepare(self, folder: pathlib.Path) -> None:
        """Writes good files and their images."""
        self._good = folder / "data"
        (self._good / "images").mkdir(parents=True)
        for n in range(_ROWS):
            (self._good / "images" / f"{n}.png").write_bytes(good.image(n))
        self.write(self._good)
        self._objectives = good.objectives()

    def run(self, rng: random.Random, folder: pathlib.Path) -> str:
        """Reads a damaged table."""
        root = folder / "data"
        shutil.copytree(self._good, root)
        (folder / "outside.png").write_bytes(_SECRET)
        self._damage(rng, root)
        before = cases.snapshot(root, *_MADE)
        kind = rng.choice(_KINDS)
        data = self.data_set(root)
        records, error = cases.attempt(lambda: data.records(kind, "train"), *_REFUSALS)
        if error is None:
            self._read(rng, kind, records, root)
            cases.attempt(lambda: self._sample(data), *_REFUSALS)
        cases.check_unchanged(before, root, *_MADE)
        return cases.REFUSED if error is not None else cases.ACCEPTED

    def _damage(self, rng: random.Random, root: pathlib.Path) -> None:
        """Changes a file, empties it, removes it, or replaces it by a link that leads outside."""
        files = sorted(path for path in root.iterdir() if path.is_file())
        images = sorted((root / "images").iterdir())
        path = rng.choice(files if rng.random() < 0.85 else images)
        operation = rng.randrange(12)
        if operation == 0:
            path.unlink()
        elif operation == 1:
            path.write_bytes(b"")
        elif operation == 2 and path in images:
            path.unlink()
            path.symlink_to("../../outside.png")
        elif path in files:
            path.write_bytes(self.mutate(rng, path))
        else:
            path.write_bytes(mutate_bytes(rng, path.read_bytes()))

    def _read(self, rng: random.Random, kind: str, records: Any, root: pathlib.Path) -> None:
        """Reads all records, and makes examples of them."""
        cases.check(len(records) <= 60 * _ROWS, f"{len(records)} records of {_ROWS} rows")
        generator = np.random.default_rng(rng.randrange(2**32))
        for index in range(len(records)):
            cases.check(isinstance(records.location(index), str), "a record has no place")
        found = [record for record in read_all(records) if record is not None]
        for record in found:
            cases.check(record.get("image") != _SECRET, "an image outside the folder is read")
        make_examples(self._objectives.get(kind, ()), found, generator)
        self.check_rows(kind, root, found)

    def check_rows(self, kind: str, root: pathlib.Path, found: list[Any]) -> None:
        """Checks what was read against the files."""

    def _sample(self, data: TableDataSet) -> None:
        """Reads all negative samples."""
        pool = data.negatives()
        for number in range(len(pool.captions)):
            cases.check(isinstance(pool.captions[number], str), "a false caption is no text")


class JsonLines(_Tables):
    """JSON lines, plain and compressed."""

    name = "jsonlines"

    def write(self, folder: pathlib.Path) -> None:
        """Writes two files."""
        lines = [json.dumps(row).encode() + b"\n" for row in rows()]
        self._lines = {line.rstrip(): row for line, row in zip(lines, rows(), strict=True)}
        (folder / "a.jsonl").write_bytes(b"".join(lines[:6]))
        (folder / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[6:])))

    def data_set(self, folder: pathlib.Path) -> TableDataSet:
        """Returns both files as one data set."""
        limit = 1 << 20
        return json_lines.JsonData("*.jsonl*", data_dir=str(folder), max_unpacked_bytes=limit)

    def mutate(self, rng: random.Random, path: pathlib.Path) -> bytes:
        """Changes values, the text or the bytes, of a compressed file within it or outside."""
        content = path.read_bytes()
        is_packed = path.suffix == ".gz"
        if is_packed and rng.random() < 0.5:
            return mutate_bytes(rng, content)
        lines = gzip.decompress(content) if is_packed else content
        if rng.random() < 0.5:
            changed = lines.splitlines()
            place = rng.randrange(len(changed))
            value = mutate_json(rng, json.loads(changed[place]))
            changed[place] = json.dumps(value).encode("utf-8", "surrogatepass")
            lines = b"\n".join(changed) + b"\n"
        else:
            lines = mutate_text(rng, lines, ("captions", "image", "../outside.png"))
        return gzip.compress(lines) if is_packed else lines

    def check_rows(self, kind: str, root: pathlib.Path, found: list[Any]) -> None:
        """Checks that each good line is read as often as it is there, if its image is."""
        path = root / "a.jsonl"
        if kind == "text" or not path.is_file():
            return
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        present = collections.Counter(line.removesuffix(b"\r") for line in lines)
        times = collections.Counter(record["id"] for record in found)
        for line, row in self._lines.items():
            image = root / row["image"]
            if (
                present[line]
                and image.is_file()
                and image.read_bytes() == good.image(int(row["id"][1:]))
            ):
                cases.check(times[row["id"]] >= present[line], f"the line of {row['id']} is lost")


class Arrow(_Tables):
    """Parquet shards and an Arrow file, with images as bytes in the structs of `datasets`."""

    name = "arrow"

    def write(self, folder: pathlib.Path) -> None:
        """Writes two shards of Parquet and a file of Arrow."""
        import pyarrow
        import pyarrow.parquet

        made = [
            row | {"image": {"bytes": good.image(n), "path": None}} for n, row in enumerate(rows())
        ]
        table = pyarrow.Table.from_pylist(made)
        for number in range(2):
            path = folder / f"train-{number:05d}-of-00002.parquet"
            pyarrow.parquet.write_table(table.slice(4 * number, 4), path)
        with pyarrow.ipc.new_stream(str(folder / "rows.arrow"), table.schema) as writer:
            writer.write_table(table.slice(8, 4))

    def data_set(self, folder: pathlib.Path) -> TableDataSet:
        """Returns all files as one data set."""
        files = ["*.parquet", "*.arrow"]
        return arrow_files.ArrowData(files, data_dir=str(folder))


class Tars(_Tables):
    """WebDataset tars, or a good tar beside a changed index."""

    name = "webdataset"

    def write(self, folder: pathlib.Path) -> None:
        """Writes two tars."""
        for number in range(2):
            with tarfile.open(folder / f"a-{number}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
                for n, row in list(enumerate(rows()))[6 * number : 6 * number + 6]:
                    _add(tar, f"{n:04d}.png", good.image(n))
                    _add(tar, f"{n:04d}.json", json.dumps(row).encode())
        for path in folder.glob("*.tar"):
            len(webdataset.TarRows(str(path)))

    def data_set(self, folder: pathlib.Path) -> TableDataSet:
        """Returns both tars as one data set."""
        return webdataset.WebDatasetData("a-*.tar", data_dir=str(folder))

    def mutate(self, rng: random.Random, path: pathlib.Path) -> bytes:
        """Changes the bytes, mostly in headers, or the values of a member."""
        content = bytearray(path.read_bytes())
        if path.suffix == ".tar" and rng.random() < 0.4:
            place = 512 * rng.randrange(len(content) // 512)
            content[place : place + 512] = mutate_bytes(
                rng, bytes(content[place : place + 512]), ends=False
            )[:512].ljust(512, b"\0")
            return bytes(content)
        return mutate_bytes(rng, bytes(content))


class Coco(_Tables):
    """A file in the format of COCO, with captions and objects."""

    name = "coco"

    def write(self, folder: pathlib.Path) -> None:
        """Writes one file."""
        annotations: list[dict[str, Any]] = []
        for n, row in enumerate(rows()):
            box = [1, 2, n + 4, 8]
            annotations += [
                {"image_id": n, "caption": row["captions"][0]},
                {"image_id": n, "category_id": 1, "bbox": box},
                {"image_id": n, "bbox": box, "sentences": [{"raw": "the apple"}]},
                {"image_id": n, "question": "is it?", "answer": "yes"},
            ]
        content = {
            "images": [{"id": n, "file_name": f"{n}.png"} for n in range(_ROWS)],
            "categories": [{"id": 1, "name": "apple"}],
            "annotations": annotations,
        }
        (folder / "all.json").write_text(json.dumps(content))

    def data_set(self, folder: pathlib.Path) -> TableDataSet:
        """Returns the file."""
        return coco_json.CocoData("all.json", "images", data_dir=str(folder))

    def mutate(self, rng: random.Random, path: pathlib.Path) -> bytes:
        """Changes values, the text or the bytes."""
        return mutate_json_file(rng, path.read_bytes())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


TARGETS = {one.name: one for one in (JsonLines, Arrow, Tars, Coco)}
