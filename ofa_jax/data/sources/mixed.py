"""A mixture of several data sets at given rates, as one data set.

    DATA_SET = @MixedData()
    MixedData.sources = {'mine': @JsonData(), 'web': @WebDatasetData(), 'coco': @CocoData()}
    MixedData.rates = {'mine': 1, 'web': 3, 'coco': 1}

Each kind of record is mixed among the sources that have it. An epoch of the mixture has as many
records as it takes to read every source once; the records of a smaller source come up repeatedly in
it, each as often as any other one, give or take one.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, overload

import numpy as np
from absl import logging

from ofa_jax.data.sources.base import (
    DataSet,
    RecordSource,
    WrongDataOptionError,
    rates_without,
    refuse_other_orientation,
)
from ofa_jax.preprocessing.negatives import NegativePool
from ofa_jax.preprocessing.records import RECORD_FIELDS, Record
from ofa_jax.utils.decode_options import AS_SEEN, DecodeOptions
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.options import Name, NotEmpty, Weights
from ofa_jax.utils.suggestions import refuse_unknown
from ofa_jax.utils.text_files import DamagedFileError

_LARGEST_EPOCH = 1 << 40


@dataclasses.dataclass(frozen=True)
class MixedRecords:
    """A RecordSource over several ones, whose shares of an epoch are given.

    Attributes:
      names: of the sources.
      sources: each with records.
      counts: how many records of an epoch are of each source.
    """

    names: tuple[str, ...]
    sources: tuple[RecordSource, ...]
    counts: tuple[int, ...]

    @classmethod
    def at_rates(
        cls, sources: Mapping[str, RecordSource], rates: Mapping[str, float]
    ) -> "MixedRecords":
        """Mixes sources.

        Args:
          sources: by name; none is empty.
          rates: positive, by the same names.
        """
        lengths = {name: len(records) for name, records in sources.items()}
        # The source that takes longest is read exactly once.
        epoch = max(lengths[name] / rates[name] for name in sources)
        counts = [min(max(1, round(epoch * rates[name])), _LARGEST_EPOCH) for name in sources]
        return cls(tuple(sources), tuple(sources.values()), tuple(counts))

    def __len__(self) -> int:
        return sum(self.counts)

    def _find(self, index: int) -> tuple[int, int]:
        """Returns the number of a record's source, and its index in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"There is no record {index}: there are {len(self)}.")
        starts = [0, *itertools.accumulate(self.counts)]
        number = int(np.searchsorted(starts, index, side="right")) - 1
        return number, (index - starts[number]) % len(self.sources[number])

    def __getitem__(self, index: int) -> Record:
        number, own = self._find(index)
        record = self.sources[number][own]
        return {**record, "id": f"{self.names[number]}/{record.get('id', own)}"}

    def location(self, index: int) -> str:
        """Returns the source and where the record is stored in it."""
        number, own = self._find(index)
        locate: Any = getattr(self.sources[number], "location", None)
        return f"{self.names[number]}: {f'record {own}' if locate is None else locate(own)}"


@dataclasses.dataclass(frozen=True)
class JoinedTexts(Sequence[str]):
    """Several sequences of texts, one after the other; nothing is copied.

    Attributes:
      parts: of texts.
    """

    parts: tuple[Sequence[str], ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(f"There are {len(self)} texts.")


def join_texts(parts: Sequence[Sequence[str]]) -> Sequence[str]:
    """Returns all texts of some sequences."""
    filled = tuple(part for part in parts if len(part))
    return filled[0] if len(filled) == 1 else JoinedTexts(filled)


@checked
@dataclasses.dataclass(frozen=True)
class MixedData:
    """Several data sets at given rates.

    Attributes:
      sources: name -> data set.
      rates: name -> how often its records are read, relative to the others; a source that is not
        named is read in proportion to its records if none is, and else refused. 0 leaves one out.
      kind_rates: kind of record -> name -> rate, where a kind has others than `rates`.
      decode_options: how images are decoded; needed where the data sets differ in it.
    """

    sources: Annotated[Mapping[Name, DataSet], NotEmpty()]
    rates: Weights = dataclasses.field(default_factory=dict)
    kind_rates: Mapping[Name, Weights] = dataclasses.field(default_factory=dict)
    decode_options: DecodeOptions | None = None

    def __post_init__(self) -> None:
        own = {getattr(one, "decode_options", AS_SEEN) for one in self.sources.values()}
        if self.decode_options is None:
            if len(own) > 1:
                raise ValueError(
                    "The sources of MixedData decode their images differently (official data as it "
                    "is stored): set MixedData.decode_options = @DecodeOptions()."
                )
            object.__setattr__(self, "decode_options", own.pop())
        for source in self.sources.values():
            refuse_other_orientation(source, self.decode_options, "MixedData.decode_options")
        refuse_unknown("MixedData.kind_rates", self.kind_rates, RECORD_FIELDS)
        for where, rates in (("rates", self.rates), *self.kind_rates.items()):
            refuse_unknown(f"MixedData.{where}", rates, self.sources)
            if rates and (missing := sorted(set(self.sources) - set(rates))):
                raise ValueError(
                    f"MixedData.{where} has no rate for {', '.join(missing)}: give each source one."
                )
        if not self._read:
            raise ValueError(
                "MixedData.rates gives every source the rate 0: give one of them another rate."
            )

    @property
    def _read(self) -> Mapping[str, DataSet]:
        """The sources with a rate other than 0; the files of the others need not be there."""
        kinds = [self.kind_rates.get(kind, self.rates) for kind in RECORD_FIELDS]
        return {
            name: source
            for name, source in self.sources.items()
            if any(not rates or rates[name] for rates in kinds)
        }

    @property
    def splits(self) -> Sequence[str]:
        """The splits of any source."""
        return tuple(dict.fromkeys(split for one in self._read.values() for split in one.splits))

    def records(self, kind: str, split: str) -> RecordSource:
        """Returns the records of a kind, of all sources that have such records.

        Raises:
          FileNotFoundError: a file of a source is missing.
          WrongDataOptionError: an option of a source cannot be meant.
          ValueError: no source has such records; the sentence is that of the first.
        """
        found: dict[str, RecordSource] = {}
        problems: list[ValueError] = []
        if kind not in RECORD_FIELDS:
            raise ValueError(
                f"There is no kind of record {kind!r}: choose one of {', '.join(RECORD_FIELDS)}."
            )
        given = self.kind_rates.get(kind, self.rates)
        for name, source in self.sources.items():
            if given and not given[name]:
                continue
            try:
                records = source.records(kind, split)
            except (DamagedFileError, WrongDataOptionError):
                raise
            except ValueError as error:  # it has no such records
                logging.warning("MixedData leaves %s out of %s: %s", name, kind, error)
                problems.append(error)
                continue
            if len(records):
                found[name] = records
        if not found:
            if problems:
                raise problems[0]
            raise ValueError(
                f"No source of MixedData with a rate above 0 has records of the kind {kind} in the "
                f"split {split}: leave the objective out with {rates_without(kind)}."
            )
        shares = {name: given[name] if given else float(len(found[name])) for name in found}
        return MixedRecords.at_rates(found, shares)

    def negatives(self) -> NegativePool:
        """Returns the false captions, names and answers of all sources together."""
        pools = [source.negatives() for source in self._read.values()]
        kinds = dict.fromkeys(kind for pool in pools for kind in pool.answers_by_type)
        return NegativePool(
            join_texts([pool.captions for pool in pools]),
            tuple(dict.fromkeys(name for pool in pools for name in pool.object_names)),
            {
                kind: join_texts([pool.answers_by_type.get(kind, ()) for pool in pools])
                for kind in kinds
            },
        )
