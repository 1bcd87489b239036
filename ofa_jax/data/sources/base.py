"""The two protocols that data sources implement: `RecordSource` and `DataSet`; and their errors."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ofa_jax.preprocessing.negatives import NegativePool
from ofa_jax.preprocessing.records import Record

OBJECTIVES_OF_KIND: Mapping[str, tuple[str, ...]] = {
    "captions": ("image_captioning",),
    "questions": ("visual_question_answering",),
    "pairs": ("image_text_matching",),
    "regions": ("visual_grounding", "grounded_captioning"),
    "objects": ("object_detection",),
    "images": ("image_infilling",),
    "text": ("text_infilling",),
}
"""Kind of record -> the objectives that read it."""


def rates_without(kind: str) -> str:
    """Returns the setting that leaves out the objectives that read records of a kind."""
    rates = ", ".join(f"'{objective}': 0" for objective in OBJECTIVES_OF_KIND[kind])
    return f"PretrainingSettings.rates = {{{rates}}}"


class WrongDataOptionError(ValueError):
    """An option of a data set that cannot be meant, such as the name of a field that no row has.

    `DataSet.records` raises a plain ValueError where it has no records of a kind, which a mixture
    or a conversion may leave out; this error always reaches the user.
    """


class NoRecordsError(FileNotFoundError, ValueError):
    """There are no files with records of a kind, though those of other kinds are there.

    A mixture or a conversion may leave the kind out, as for any ValueError of `DataSet.records`.
    """


class RecordSource(Protocol):
    """Random access to records. Picklable and free of TensorFlow: data workers receive a copy.

    A source may also have a method `location(index) -> str` that returns where a record is stored,
    e.g. "pairs.tsv, line 7". The loader logs it when the record is invalid.

    A source without an end has an attribute `endless` that is true, and a method
    `for_task(name) -> RecordSource`. Its records are in random order already, so they are read as
    they come, by each task from its own `for_task`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class DataSet(Protocol):
    """A data set for the pretraining objectives."""

    @property
    def splits(self) -> Sequence[str]:
        """The names of the splits, "train" among them."""

    def records(self, kind: str, split: str) -> RecordSource:
        """Returns the records of one of the kinds in `RECORD_FIELDS`."""

    def negatives(self) -> NegativePool:
        """Returns the pool of false captions, names and answers of the train split."""


def refuse_other_orientation(data_set: Any, decode_options: Any, where: str) -> None:
    """Raises WrongDataOptionError if shares of an image would become pixels of another one.

    Args:
      data_set: its boxes may be shares of the image as its own `decode_options` decode it.
      decode_options: how the image is decoded instead; None for the data set's own.
      where: the option that says so.
    """
    own = getattr(data_set, "decode_options", None)
    if own is None or decode_options is None or not getattr(data_set, "relative_boxes", False):
        return
    if own.honour_orientation != decode_options.honour_orientation:
        name = type(data_set).__name__
        raise WrongDataOptionError(
            f"The boxes of {name} are shares of the image as {name}.decode_options decodes it, but "
            f"{where} decodes it otherwise (honour_orientation): set {name}.decode_options instead."
        )


def is_endless(records: RecordSource) -> bool:
    """Returns whether records have no end; their length is then only how far they are numbered."""
    return bool(getattr(records, "endless", False))


def of_task(records: RecordSource, name: str) -> RecordSource:
    """Returns the records that the task of a name reads: of an endless source its own part."""
    source: Any = records
    return source.for_task(name) if is_endless(records) else records


def refuse_endless(records: RecordSource, purpose: str) -> None:
    """Raises ValueError if records have no end.

    Args:
      records: that are read to their end.
      purpose: of reading them, after "so they cannot be".
    """
    if is_endless(records):
        raise ValueError(
            f"The records have no end, so they cannot be {purpose}: set StreamedScenes.num_scenes, "
            "or take a data set on disk such as Scenes."
        )
