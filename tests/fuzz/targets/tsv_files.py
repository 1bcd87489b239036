"""Official TSV files and their line indices: no line is lost, doubled or taken for another one."""

import collections
import pathlib
import random
from typing import Any

import numpy as np

from fuzz import cases, good
from fuzz.mutations import mutate_bytes, mutate_text
from fuzz.records import make_examples, read_all
from ofa_jax.data.sources.ofa_tsv import FILE_OF_KIND, TYPES_OF_KIND
from ofa_jax.data.sources.tsv_index import SUFFIX
from ofa_jax.data.sources.tsv_records import TsvRecords

_OPENING = (ValueError, FileNotFoundError)


class TsvFiles(cases.Target):
    """Reads all records of a mutated file, or of a good file with a mutated index."""

    name = "tsv"

    def prepare(self, folder: pathlib.Path) -> None:
        """Writes a good file of each kind, and keeps its records and its index."""
        self._contents, self._records = {}, {}
        for kind in good.FORMATS:
            path = folder / f"{kind}.tsv"
            path.write_text("".join(f"{row}\n" for row in good.tsv_rows(kind)))
            records = TsvRecords.open(str(path), kind)
            self._contents[kind] = path.read_bytes()
            lines = self._contents[kind].split(b"\n")
            self._records[kind] = {line: records[n] for n, line in enumerate(lines) if line}
        self._objectives = good.objectives()

    def run(self, rng: random.Random, folder: pathlib.Path) -> str:
        """Reads a mutated file or index."""
        kind = rng.choice(good.FORMATS)
        path, content = folder / "lines.tsv", self._contents[kind]
        if rng.random() < 0.3:
            return self._with_index(rng, kind, path)
        mutate = rng.choice((mutate_text, mutate_text, mutate_bytes))
        changed = mutate(rng, content)
        path.write_bytes(changed)
        before = cases.snapshot(folder, SUFFIX)
        records, error = cases.attempt(lambda: TsvRecords.open(str(path), kind), *_OPENING)
        cases.check_unchanged(before, folder, SUFFIX)
        if error is not None:
            return cases.REFUSED
        assert records is not None
        self._check_lines(kind, changed, read_all(records))
        if kind in FILE_OF_KIND.values():
            self._check_objectives(rng, kind, path)
        return cases.ACCEPTED

    def _check_lines(self, kind: str, content: bytes, found: list[Any]) -> None:
        """Checks that each line that was not changed is read exactly as often as it is there."""
        lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        lines = [line.removesuffix(b"\r") for line in lines]
        widths = collections.Counter(line.count(b"\t") for line in lines if line.strip())
        good_width = next(iter(self._records[kind])).count(b"\t")
        if not widths or widths.most_common(1)[0][0] != good_width:
            return  # another number of columns than the good lines': they are the malformed ones
        expected = collections.Counter(line for line in lines if line in self._records[kind])
        for line, count in expected.items():
            times = sum(_equal(record, self._records[kind][line]) for record in found)
            cases.check(
                times >= count, f"the line {line[:60]!r} is read {times} times, not {count}"
            )
        cases.check(len(found) <= len(lines), f"{len(found)} records of {len(lines)} lines")

    def _check_objectives(self, rng: random.Random, kind: str, path: pathlib.Path) -> None:
        """Makes examples of the records of one kind, as training does."""
        kinds = [name for name, file in FILE_OF_KIND.items() if file == kind]
        wanted = rng.choice(kinds)
        records, error = cases.attempt(
            lambda: TsvRecords.open(
                str(path), kind, types=TYPES_OF_KIND.get(wanted), with_malformed=wanted == "pairs"
            ),
            *_OPENING,
        )
        if error is not None or not len(records):
            return
        generator = np.random.default_rng(rng.randrange(2**32))
        make_examples(self._objectives[wanted], read_all(records), generator)

    def _with_index(self, rng: random.Random, kind: str, path: pathlib.Path) -> str:
        """Reads a good file beside a mutated index."""
        path.write_bytes(self._contents[kind])
        TsvRecords.open(str(path), kind)
        index = path.with_name(path.name + SUFFIX)
        content = index.read_bytes()
        changed = mutate_bytes(rng, content)
        index.write_bytes(changed)
        _forget_opened_files()
        records, error = cases.attempt(lambda: TsvRecords.open(str(path), kind), *_OPENING)
        _forget_opened_files()
        cases.check(error is None, f"a damaged index is not made anew: {error}")
        assert records is not None
        expected = list(self._records[kind].values())
        found = read_all(records)
        cases.check(
            len(found) == len(expected) and all(map(_equal, found, expected)),
            "a damaged index is used: the records are others",
        )
        return "recovered" if index.read_bytes() != changed else cases.ACCEPTED


def _forget_opened_files() -> None:
    """Empties caches, as in another process."""
    from ofa_jax.data.sources import tsv_file, tsv_records

    for module in (tsv_file, tsv_records):
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


def _equal(first: Any, second: Any) -> bool:
    """Returns whether two records hold the same."""
    if first is None or second is None or first.keys() != second.keys():
        return False
    return all(np.array_equal(first[name], second[name]) for name in first)


TARGETS = {"tsv": TsvFiles}
