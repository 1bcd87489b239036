"""Writes records as the TSV files of the reference implementation, and the negative samples."""

import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ofa_jax.data.sources.base import DataSet, RecordSource
from ofa_jax.data.sources.ofa_tsv import ANSWERS_FILE, CAPTIONS_FILE, NAMES_FILE
from ofa_jax.data.sources.tsv_writing import tsv_lines
from ofa_jax.preprocessing.text import is_blank
from ofa_jax.utils import files
from ofa_jax.utils.bad_input import as_invalid_record, collect
from ofa_jax.utils.text_files import replace_surrogates

from . import output_folders
from .usable_records import Counts, usable_records

_BLANKS = re.compile(r"[\t\r\n\0]+")


def write_tsv(path: pathlib.Path, sources: Mapping[str, RecordSource], options: Any) -> Counts:
    """Writes a TSV file of records of some kinds."""
    counts = Counts()
    with path.open("w", encoding="utf-8", newline="\n") as output:
        for kind, records in sources.items():
            for record, where in usable_records(kind, records, options, counts):
                try:
                    with collect() as findings:
                        lines = list(tsv_lines(kind, record))
                except Exception as raised:  # noqa: BLE001  one odd record must not end it
                    counts.skip(as_invalid_record(raised, "it cannot be written"), where)
                    continue
                counts.change(findings, where)
                output.writelines("\t".join(line) + "\n" for line in lines)
                counts.written += len(lines)
    return counts


def write_negatives(data_set: DataSet, target: pathlib.Path, names: Sequence[str]) -> None:
    """Writes the negative samples, where there are captions to sample from."""
    pool = data_set.negatives()
    captions = (_as_line(pool.captions[index]) for index in range(len(pool.captions)))
    filled = (caption for caption in captions if not is_blank(caption))
    first = None if target.exists() else next(filled, None)
    if first is None:
        return
    count = 0
    if not names:
        # The format needs one; it occurs in no caption, so that nothing is replaced by it.
        names = ["object"]
    with output_folders.complete_or_absent(target) as folder:
        with (folder / CAPTIONS_FILE).open("w", encoding="utf-8", newline="\n") as output:
            for caption in itertools.chain([first], filled):
                output.write(f"{caption}\n")
                count += 1
        files.write_text(folder / NAMES_FILE, "".join(f"{_as_line(name)}\n" for name in names))
        answers = {
            kind: sorted({found[index] for index in range(len(found))})
            for kind, found in pool.answers_by_type.items()
        }
        files.write_json(folder / ANSWERS_FILE, answers)
    print(f"{target}: {count:,} captions, {len(names):,} names of objects.")


def _as_line(text: str) -> str:
    """Returns a text on one line; what it has of blanks is of no importance here."""
    return replace_surrogates(_BLANKS.sub(" ", text))
