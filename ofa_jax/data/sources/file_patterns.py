"""Finds the files of a data set: paths, folders, patterns and ranges of numbers, for each split.

    "data.jsonl"   "folder"   "part-*.jsonl.gz"   "pairs-{000..012}.tar"   {"train": ..., "x": ...}

Files of several splits are never taken for one: a folder or a pattern that finds `train.jsonl` and
`test.jsonl` is refused. Files that this library keeps beside the user's are not found.
"""

import glob
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated

from ofa_jax.data.sources.base import WrongDataOptionError
from ofa_jax.data.sources.tsv_index import SUFFIX as LINE_INDEX_SUFFIX
from ofa_jax.utils import options

__all__ = [
    "ARROW_SUFFIX",
    "LINE_INDEX_SUFFIX",
    "TAR_INDEX_SUFFIX",
    "UNPACKED_SUFFIX",
    "Files",
    "Paths",
    "expand_ranges",
    "find_files",
    "refuse_several_splits",
    "split_of_name",
    "splits_of",
]

Paths = options.Path | Annotated[Sequence[options.Path], options.NotEmpty()]
Files = Mapping[options.Name, Paths] | Paths

TRAIN = "train"
UNPACKED_SUFFIX, ARROW_SUFFIX, TAR_INDEX_SUFFIX = ".unpacked", ".rows.arrow", ".members.npz"
_MADE = (LINE_INDEX_SUFFIX, UNPACKED_SUFFIX, ARROW_SUFFIX, TAR_INDEX_SUFFIX)
_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_MAX_NAMES = 100_000
_SPLIT_WORDS: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_WORD = re.compile(r"[a-z]+")


def find_files(
    owner: str, files: Files, split: str, folder: str = "", suffixes: Sequence[str] = ()
) -> tuple[str, ...]:
    """Returns the files of a split, in order.

    Args:
      owner: what the sentences call the data set.
      files: a path or a pattern such as "part-*.jsonl" or "part-{000..012}.tar", a list of either,
        or a dict from split to them.
      split: a key of it; "train" where there is no dict.
      folder: that they are relative to.
      suffixes: of the files that a folder stands for.

    Raises:
      FileNotFoundError: a path does not exist, or nothing fits a pattern.
      WrongDataOptionError: a folder or a pattern has files of several splits.
    """
    by_split = files if isinstance(files, Mapping) else {TRAIN: files}
    given = by_split[split]
    found: list[str] = []
    for name in expand_ranges([given] if isinstance(given, str) else given):
        path = pathlib.Path(folder, name)
        if path.is_dir() and suffixes:
            fitting = _of_folder(path, suffixes, f"{owner}, split {split}")
        elif path.exists():
            fitting = [str(path)]
        else:
            fitting = _glob(folder, name)
        if not fitting:
            raise FileNotFoundError(
                f"There is no file {path} (of {owner}, split {split}): check the path."
            )
        refuse_several_splits(owner, fitting)
        found += fitting
    return tuple(dict.fromkeys(found))


def _of_folder(folder: pathlib.Path, suffixes: Sequence[str], owner: str) -> list[str]:
    """Returns the files of a folder that have one of some suffixes, and are not hidden or made.

    Raises:
      FileNotFoundError: there are none.
    """
    found = [
        str(path)
        for path in sorted(folder.iterdir())
        if path.name.endswith(tuple(suffixes)) and _is_meant(str(path))
    ]
    if not found:
        ends = " or ".join(suffixes)
        raise FileNotFoundError(
            f"There are no files in {folder} whose names end in {ends} (of {owner}): name the files"
            f", e.g. by a pattern such as {folder}/**/*{suffixes[0]}, which looks into folders."
        )
    return found


def _glob(folder: str, pattern: str) -> list[str]:
    """Returns the files that fit a pattern, in order; no folders, and nothing that was made."""
    if not glob.has_magic(pattern):
        return []
    found = glob.glob(os.path.join(glob.escape(folder), pattern), recursive=True)
    return sorted(str(pathlib.Path(path)) for path in found if _is_meant(path))


def _is_meant(path: str) -> bool:
    """Returns whether a path that was found, not named, is one of the user's files."""
    name = os.path.basename(path)
    return not name.startswith(".") and not name.endswith(_MADE) and not os.path.isdir(path)


def split_of_name(name: str) -> str | None:
    """Returns the split that the name of a file says it is of; None if it says none, or several.

    >>> split_of_name("pairs_val-00001.tar"), split_of_name("trainers.tar")
    ('validation', None)
    """
    words = _WORD.findall(name.casefold())
    found = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
    return found.pop() if len(found) == 1 else None


def refuse_several_splits(owner: str, paths: Sequence[str], option: str = "files") -> None:
    """Raises WrongDataOptionError if files that were found together are of several splits."""
    by_split: dict[str, str] = {}
    for path in paths:
        if (split := split_of_name(os.path.basename(path))) is not None:
            by_split.setdefault(split, path)
    if len(by_split) > 1:
        shown = ", ".join(f"{split!r}: {path!r}" for split, path in sorted(by_split.items()))
        raise WrongDataOptionError(
            f"The files of {owner} that were found together are of several splits, and would all "
            f"be read as one: say which are which, as {owner}.{option} = {{{shown}}} (paths, "
            "patterns, or lists of them)."
        )


def expand_ranges(names: Sequence[str]) -> list[str]:
    """Returns names with each range of numbers in braces written out: "{08..11}" is 08, 09, 10, 11.

    Raises:
      ValueError: a range stands for too many names.
    """
    expanded: list[str] = []
    for name in names:
        found = _RANGE.search(name)
        if found is None:
            expanded.append(name)
            continue
        first, last = int(found[1]), int(found[2])
        if not first <= last < first + _MAX_NAMES:
            raise WrongDataOptionError(f"{name}: the numbers in braces are no range of files.")
        width = len(found[1])
        expanded += expand_ranges(
            [
                f"{name[: found.start()]}{number:0{width}d}{name[found.end() :]}"
                for number in range(first, last + 1)
            ]
        )
    return expanded


def splits_of(files: Files) -> tuple[str, ...]:
    """Returns the splits of files, "train" where they are given without any."""
    return tuple(files) if isinstance(files, Mapping) else (TRAIN,)
