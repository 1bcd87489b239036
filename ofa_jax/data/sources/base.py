"""The two protocols that data sources implement: `RecordSource` and `DataSet`."""

from collections.abc import Sequence
from typing import Protocol

from ofa_jax.preprocessing.negatives import NegativePool
from ofa_jax.preprocessing.records import Record


class RecordSource(Protocol):
    """Random access to records. Picklable and free of TensorFlow: data workers receive a copy.

    A source may also have a method `location(index) -> str` that returns where a record is stored,
    e.g. "pairs.tsv, line 7". The loader logs it when the record is invalid.
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
