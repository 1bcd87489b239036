"""Files of requests, their indices and folders of images: each line has exactly one answer."""

import json
import pathlib
import random
from typing import Any

from fuzz import cases, good
from fuzz.mutations import TOKENS, mutate_bytes, mutate_json, mutate_text
from ofa_jax.data.sources.tsv_index import SUFFIX
from ofa_jax.inference.kinds import KindOptions, Kinds
from ofa_jax.inference.loading import LoadedModel
from ofa_jax.inference.request_batches import RequestBatches
from ofa_jax.inference.sources import ImageFolder, JsonLines, Tsv
from ofa_jax.model import OFA

_OPENING = (ValueError, FileNotFoundError)
_BLANK = b" \t\r\n\x0b\x0c"


class RequestFiles(cases.Target):
    """Makes the rows of all requests of a mutated file, without a model."""

    name = "jsonl"

    def prepare(self, folder: pathlib.Path) -> None:
        """Keeps good lines of JSON and of TSV."""
        del folder
        processor, config = good.processor(), good.model_config()
        self._processor = processor
        loaded = LoadedModel("", OFA(config), None, processor, None)
        tasks = (None, "visual_grounding")
        self._kinds = [Kinds(loaded, KindOptions(task)) for task in tasks]
        requests = good.requests()
        self._json = [json.dumps(request).encode() for request in requests]
        self._tsv = [
            "\t".join(
                (
                    request["id"],
                    request["image"],
                    request["instruction"],
                    ",".join(map(str, request.get("region", ()))),
                )
            ).encode()
            for request in requests
        ]

    def run(self, rng: random.Random, folder: pathlib.Path) -> str:
        """Reads mutated requests."""
        (folder / "plain.png").write_bytes(good.image(1))
        kind = rng.choice(("json", "json", "json", "table", "layout", "folder"))
        if kind == "folder":
            return self._folder(rng, folder)
        content, whole = self._mutate(rng, kind)
        path = folder / f"requests.{kind}"
        path.write_bytes(content)
        before = cases.snapshot(folder, SUFFIX)
        source, error = cases.attempt(lambda: _open(kind, path, rng), *_OPENING)
        if error is None:
            rows, error = cases.attempt(lambda: self._rows(rng, source), *_OPENING)
        cases.check_unchanged(before, folder, SUFFIX)
        if error is not None:
            return cases.REFUSED
        expected = len(_lines(content)) - (kind == "table")
        cases.check(len(rows) == expected, f"{len(rows)} answers to {expected} lines")
        for row in rows:
            _check_row(row)
        if kind == "json":
            for line, row in zip(_lines(content), rows, strict=True):
                if line in whole:
                    cases.check(row.error is None, f"a good line has the error {row.error}")
                    cases.check(
                        row.id == json.loads(line)["id"], f"a good line has the id {row.id}"
                    )
        return cases.ACCEPTED

    def _mutate(self, rng: random.Random, kind: str) -> tuple[bytes, set[bytes]]:
        """Returns the content of a file, and its good lines."""
        lines = list(self._json if kind == "json" else self._tsv)
        if kind == "table":
            lines.insert(0, b"id\timage\tinstruction\tregion")
        if kind == "json" and rng.random() < 0.5:
            for _ in range(rng.choice((1, 2, 4))):
                place = rng.randrange(len(lines))
                value = mutate_json(rng, json.loads(self._json[place]))
                lines[place] = json.dumps(value).encode()
            return b"\n".join(lines) + b"\n", set(self._json)
        content = b"\n".join(lines) + b"\n"
        mutate = rng.choice((mutate_text, mutate_text, mutate_bytes))
        return mutate(rng, content), set(self._json)

    def _rows(self, rng: random.Random, source: Any) -> list[Any]:
        rows = RequestBatches(source, self._processor, rng.choice(self._kinds), 2, 64)
        return [rows.make_row(index).example for index in range(rows.num_examples)]

    def _folder(self, rng: random.Random, folder: pathlib.Path) -> str:
        """Reads a folder of images with odd names."""
        root = folder / "images"
        root.mkdir()
        names = {"a.png", "b.jpg"}
        for _ in range(6):
            piece = rng.choice(TOKENS)[:100].replace("/", "_").replace("\0", "_")
            names.add(f"{piece}{rng.choice(('.png', '.JPG', '.eps', '', '.tiff'))}")
        for name in sorted(names - {"", ".", ".."}):
            content = mutate_bytes(rng, good.image(1)) if rng.random() < 0.5 else good.image(0)
            (root / name).write_bytes(content)
        (root / b"caf\xe9.png".decode("utf-8", "surrogateescape")).write_bytes(good.image(1))
        source, error = cases.attempt(
            lambda: ImageFolder(str(root), "what does the image describe?"), *_OPENING
        )
        if error is not None:
            return cases.REFUSED
        rows = self._rows(rng, source)
        for row in rows:
            _check_row(row)
        cases.check(len({row.id for row in rows}) == len(rows), "two images have the same id")
        return cases.ACCEPTED


def _open(kind: str, path: pathlib.Path, rng: random.Random) -> Any:
    instruction = rng.choice((None, "what is it?", "what is {id}?", "what is in {region}?"))
    if kind == "json":
        return JsonLines(str(path), instruction)
    if kind == "table":
        return Tsv(str(path), instruction, header=True)
    columns = {"id": 0, "image": 1, "instruction": 2, "region": 3}
    return Tsv(str(path), instruction, columns=columns)


def _lines(content: bytes) -> list[bytes]:
    """Returns the lines that are not blank."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [line.removesuffix(b"\r") for line in lines if line.strip(_BLANK)]


def _check_row(row: Any) -> None:
    """Checks that a row becomes a line of the output, whatever it holds."""
    cases.check(row is not None, "a request has no row")
    cases.check_line({"id": row.id, "instruction": row.instruction, "error": row.error})
    cases.check(bool(row.id), "a request has no id")
    if row.error is not None:
        cases.check_sentence(row.error)
        cases.check(
            "unexpected error" not in row.error.lower(), f"an unexpected error: {row.error}"
        )


TARGETS = {"jsonl": RequestFiles}
