"""What captions that a model tries out are worth: the reward of self-critical training."""

import string
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from ofa_jax.data.sources.base import RecordSource
from ofa_jax.evaluation.metrics.cider import CiderD

END = "<eos>"
"""The last word of every caption: so that to end in time is rewarded, as the original does."""
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class CaptionReward:
    """CIDEr-D of captions against those of their records.

    The document frequencies are those of all training records. Words are lower case, without
    punctuation, and END is the last one: the n-grams with it tell a caption that stops from one
    that was cut off.
    """

    def __init__(
        self,
        references: Mapping[str, Sequence[Sequence[str]]],
        decode: Callable[[np.ndarray], str],
    ):
        """Counts the n-grams.

        Args:
          references: task -> the captions of every record, by its index.
          decode: token ids, specials among them, to text.

        Raises:
          ValueError: no record has a caption.
        """
        self._references = references
        self._decode = decode
        captioned = [own for records in references.values() for own in records if len(own)]
        if not captioned:
            raise ValueError(
                f"The records of {', '.join(references)} have no captions: self-critical training "
                "rewards captions for being like those of the data."
            )
        self._scorer = CiderD.of_references(map(_all_words, captioned))

    @classmethod
    def of_records(
        cls, records: Mapping[str, RecordSource], decode: Callable[[np.ndarray], str]
    ) -> "CaptionReward":
        """Reads the captions of all records, once.

        Args:
          records: task -> its records; the field `captions` is what counts.
          decode: token ids to text.
        """
        references = {
            task: [_captions(source, index) for index in range(len(source))]
            for task, source in records.items()
        }
        return cls(references, decode)

    def __call__(self, origins: Sequence[tuple[str, int]], samples: np.ndarray) -> np.ndarray:
        """The reward of every attempt.

        Args:
          origins: (task, index of the record) of every example, see `Loader.origins`.
          samples: int32 [B, G, T], token ids.

        Returns:
          float64 [B, G], between 0 and 10; NaN for examples whose record has no caption.
        """
        rewards = np.full(samples.shape[:2], np.nan)
        for row, (task, index) in enumerate(origins):
            references = self._references[task][index]
            if len(references):
                captions = [words(self._decode(ids)) for ids in samples[row]]
                rewards[row] = self._scorer.score(captions, _all_words(references))
        return rewards


def words(caption: str) -> list[str]:
    """The words that are rewarded.

    >>> words("A man's red-and-blue hat.")
    ['a', 'mans', 'redandblue', 'hat', '<eos>']
    """
    return [*caption.lower().translate(_NO_PUNCTUATION).split(), END]


def _all_words(captions: Iterable[str]) -> list[list[str]]:
    return [words(caption) for caption in captions]


def _captions(records: RecordSource, index: int) -> tuple[str, ...]:
    try:
        return tuple(records[index].get("captions") or ())
    except Exception:  # noqa: BLE001  the loader names it when its turn comes
        return ()
