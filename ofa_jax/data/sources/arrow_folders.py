"""What the folders and the names of Parquet and Arrow files say: splits, shards, partitions."""

import os
import pathlib
import urllib.parse
from collections.abc import Sequence

from ofa_jax.data.sources.file_patterns import split_of_name
from ofa_jax.data.sources.shards import complete_shards
from ofa_jax.utils import text_files

__all__ = [
    "DATASET_DICT",
    "STATE",
    "complete_shards_of",
    "partition_of",
    "saved_files",
    "saved_splits",
    "splits_of_folder",
]

STATE, DATASET_DICT = "state.json", "dataset_dict.json"


def complete_shards_of(paths: Sequence[str]) -> None:
    """Raises FileNotFoundError if files are shards, and one of the shards is missing."""
    by_stem: dict[str, list[pathlib.Path]] = {}
    for path in map(pathlib.Path, paths):
        stem = path.with_name(path.name.removesuffix(path.suffix))
        name = str(stem).rpartition("-of-")[0].rpartition("-")[0]
        if name:
            by_stem.setdefault(name, []).append(stem)
    for shards in by_stem.values():
        complete_shards(shards)


def splits_of_folder(folder: pathlib.Path, given: str) -> dict[str, tuple[str, ...]]:
    """Returns split -> Parquet files, by their names; empty if these name no splits."""
    found: dict[str, list[str]] = {}
    for parent in (folder, folder / "data"):
        for path in sorted(parent.glob("*.parquet")):
            split = path.name.removesuffix(".parquet").split("-")[0].split(".")[0]
            name = os.path.join(given, os.path.relpath(path, folder))
            found.setdefault(split, []).append(name)
        if found:
            break
    if "train" not in found and "validation" not in found:
        found = _splits_by_words(folder, given)
    for names in found.values():
        complete_shards_of([str(folder / os.path.relpath(name, given)) for name in names])
    return {split: tuple(paths) for split, paths in found.items()}


def _splits_by_words(folder: pathlib.Path, given: str) -> dict[str, list[str]]:
    """Returns split -> files, of names that have its word, such as "pets-train-0.arrow"."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith((".parquet", ".arrow")) and not path.name.startswith("."):
            split = split_of_name(path.name)
            if split is None:
                return {}
            found.setdefault(split, []).append(os.path.join(given, path.name))
    return found if "train" in found else {}


def partition_of(path: str) -> tuple[tuple[str, str], ...]:
    """Returns the columns that the folders of a file name, as Hive and Spark write them."""
    parts = (part.partition("=") for part in pathlib.Path(path).parent.parts)
    return tuple(
        (name, urllib.parse.unquote(value)) for name, equals, value in parts if equals and name
    )


def saved_files(folder: pathlib.Path) -> list[str]:
    """Returns the Arrow files that `save_to_disk` lists. Raises DamagedFileError."""
    state = text_files.read_json(folder / STATE)
    listed = state.get("_data_files") if isinstance(state, dict) else None
    names = [one.get("filename") if isinstance(one, dict) else None for one in listed or ()]
    if not names or any(
        not isinstance(name, str) or os.path.basename(name) != name for name in names
    ):
        raise text_files.DamagedFileError(
            f"{folder / STATE} lists no Arrow files: save the data set again."
        )
    if state.get("_indices_data_files"):
        raise text_files.DamagedFileError(
            f"{folder} has its rows in another order than its files: save it again with "
            "`flatten_indices`."
        )
    if missing := [name for name in names if not (folder / str(name)).is_file()]:
        raise FileNotFoundError(
            f"{folder / str(missing[0])} is missing, which {STATE} lists: copy it there."
        )
    return [str(folder / str(name)) for name in names]


def saved_splits(folder: pathlib.Path) -> list[str]:
    """Returns the splits that `save_to_disk` lists in a folder. Raises DamagedFileError."""
    path = folder / DATASET_DICT
    found = text_files.read_json(path)
    values = found.get("splits") if isinstance(found, dict) else None
    if (
        not isinstance(values, list)
        or not values
        or not all(isinstance(value, str) and os.path.basename(value) == value for value in values)
    ):
        raise text_files.DamagedFileError(f"{path} lists no splits: save the data set again.")
    return values
