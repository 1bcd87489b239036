"""Records that are held in memory."""

import dataclasses
from collections.abc import Sequence

from ofa_jax.preprocessing.records import Record


@dataclasses.dataclass(frozen=True)
class InMemoryRecords:
    """A RecordSource over a sequence of records."""

    records: Sequence[Record]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]
