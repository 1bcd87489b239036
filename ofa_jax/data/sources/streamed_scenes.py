"""Scenes that are composed on demand: training never sees a scene twice.

    --gin.scenes_settings.data_set=@StreamedScenes()        in place of the scenes on disk

Scene i is a pure function of the options and i, so that any process of any host composes the same
one, in any order. The first scenes of the stream are those that `tools.build_scenes` has written;
a task of a run reads scenes of its own far behind them, so that no two tasks share one either.
Vocabulary, codebook, negatives, sentences, and all splits but train are those of the build.
"""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import Any

from ofa_jax.data.sources.base import RecordSource
from ofa_jax.data.sources.scenes import Scenes, check_names, fields_of
from ofa_jax.preprocessing.records import Record
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked

SCENES_OF_A_TASK = 2**32
"""How many scenes a task reads before one comes again: more than any run composes."""


@checked
@dataclasses.dataclass(frozen=True)
class StreamedScenes(Scenes):
    """Scenes whose training images are composed on demand instead of read from disk.

    Image infilling needs codes, which composed scenes do not have: the image tokenizer of the
    settings computes them on demand (`scenes_settings` has the codebook of the build).

    Attributes:
      data_dir: as of `Scenes`: where the build is that everything but the training images is from.
      num_scenes: trains on this many scenes, again and again; None for an endless stream.
      nouns: composes training scenes of this many nouns, from the start of the table; None for
        those of the build, which is also the most that there can be.
      seed: of the training scenes; None for that of the build.
    """

    num_scenes: options.Count | None = None
    nouns: options.Count | None = None
    seed: options.Seed | None = None

    @property
    def has_codes(self) -> bool:
        """Whether records have image codes: no."""
        return False

    def records(self, kind: str, split: str) -> RecordSource:
        """Returns random access to the records of a split, see `Scenes.records`.

        Raises:
          ImportError, FileNotFoundError: a package that scenes are composed from is missing.
          ValueError: there is no such kind or split, or the build has fewer nouns.
        """
        check_names(kind, split)
        if split != "train" or kind == "text":
            return super().records(kind, split)
        scene_options = self._scene_options()
        _check_packages(scene_options)
        return SceneStream(scene_options, tuple(fields_of(kind)), self.num_scenes)

    def _scene_options(self) -> Any:
        """Returns the `SceneOptions` of the stream."""
        from ofa_jax.scenes.composer import SceneOptions

        built = self.description["options"]
        if self.nouns is not None and self.nouns > built["nouns"]:
            raise ValueError(
                f"StreamedScenes.nouns is {self.nouns}, but {self.directory} was built with "
                f"{built['nouns']}, which are all that its vocabulary and its held-out images "
                "have: give at most as many, or build scenes with more `--nouns`."
            )
        return SceneOptions(
            nouns=built["nouns"] if self.nouns is None else self.nouns,
            image_size=built["image_size"],
            max_objects=built["max_objects"],
            seed=built["seed"] if self.seed is None else self.seed,
        )


@dataclasses.dataclass(frozen=True)
class SceneStream:
    """A RecordSource that composes the scenes of the train split.

    Attributes:
      options: a `SceneOptions`.
      fields: of the records.
      num_scenes: how many there are; None for an endless stream.
      start: the number of the first scene.
    """

    options: Any
    fields: Sequence[str]
    num_scenes: int | None = None
    start: int = 0

    @property
    def endless(self) -> bool:
        """Whether the stream has no end, see `base.is_endless`."""
        return self.num_scenes is None

    def for_task(self, name: str) -> "SceneStream":
        """Returns the scenes that the task of a name trains on: in a stream no other task's."""
        if not self.endless:
            return self
        start = (1 + zlib.crc32(name.encode())) * SCENES_OF_A_TASK
        return dataclasses.replace(self, start=start)

    def __len__(self) -> int:
        return SCENES_OF_A_TASK if self.num_scenes is None else self.num_scenes

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"There is no scene {index}: there are {len(self):,}.")
        # Imported late: only whoever composes scenes needs the code for it.
        from ofa_jax.scenes.records import make_record

        record = make_record(self.options, "train", self.start + int(index))
        return {name: record[name] for name in self.fields}

    def location(self, index: int) -> str:
        """Returns the number of a scene, for messages."""
        return f"composed scene {self.start + index}"


@functools.lru_cache(maxsize=8)
def _check_packages(scene_options: Any) -> None:
    """Composes a scene; raises ImportError or FileNotFoundError if a package is missing."""
    try:
        from ofa_jax.scenes.records import make_record

        make_record(scene_options, "train", 0)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Scenes are composed with the Python package {error.name!r}, which is not installed: "
            "install the extra `scenes`, as in `pip install '.[scenes]'`."
        ) from error
