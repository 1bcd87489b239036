"""The rewards of self-critical training: CIDEr-D of captions, and what a CLIP says of images."""

import string
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int32

from ofa_jax.data.sources.base import RecordSource
from ofa_jax.evaluation import postprocess
from ofa_jax.evaluation.image_ranking import ImageRanker, decode_images, score_images
from ofa_jax.evaluation.metrics import inputs
from ofa_jax.evaluation.metrics.cider import CiderD
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.utils.bad_input import collect

END = "<eos>"
"""The last word of every caption, so that ending in time is rewarded (reference implementation)."""
RecordIds = Sequence[tuple[str, int]]
"""(task, record index) of each example of a batch, from the data loader."""
Samples = Int32[np.ndarray, "batch samples length"]
"""Token ids of the samples of each example."""
Rewards = Float64[np.ndarray, "batch samples"]
"""What each sample is worth; NaN where that cannot be said."""
RecordReward = Callable[[RecordIds, Samples], Rewards]
"""A reward that depends on the records of the examples."""
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class CaptionReward:
    """CIDEr-D of sampled captions against the captions of their records.

    Rewards are between 0 and 10. The document frequencies are those of all training records. Words
    are in lower case, without punctuation, and END is the last one: its n-grams distinguish a
    complete caption from a truncated one.
    """

    def __init__(
        self,
        references: Mapping[str, Sequence[Sequence[str]]],
        decode: Callable[[np.ndarray], str],
    ):
        """Counts the n-grams of the references.

        Args:
          references: task -> the captions of each record, by record index.
          decode: converts token ids, which may include special ones, to text.

        Raises:
          ValueError: no record has a caption.
        """
        self._references = references
        self._decode = decode
        captioned = [texts for records in references.values() for texts in records if len(texts)]
        if not captioned:
            raise ValueError(
                f"The records of {', '.join(references)} have no captions: self-critical training "
                "needs reference captions."
            )
        self._scorer = CiderD.of_references(map(_all_words, captioned))

    @classmethod
    def of_records(
        cls, records: Mapping[str, RecordSource], decode: Callable[[np.ndarray], str]
    ) -> "CaptionReward":
        """Reads the captions of all records once.

        Args:
          records: task -> its records; their field `captions` is read.
          decode: converts token ids to text.
        """
        references = {
            task: [_captions(source, index) for index in range(len(source))]
            for task, source in records.items()
        }
        return cls(references, decode)

    def __call__(self, record_ids: RecordIds, samples: Samples) -> Rewards:
        """Computes the CIDEr-D of every sample; NaN for examples whose record has no caption."""
        rewards = np.full(samples.shape[:2], np.nan)
        for row, (task, index) in enumerate(record_ids):
            references = self._references[task][index]
            if len(references):
                captions = [words(self._decode(ids)) for ids in samples[row]]
                rewards[row] = self._scorer.score(captions, _all_words(references))
        return rewards


class ImageReward:
    """How well sampled images fit the captions of their records, by a ranker such as CLIP.

    The reference implementation multiplies CLIP's cosine by 2.5, as CLIPScore does (Hessel et al.
    2021); unlike that, it keeps cosines below 0.
    """

    def __init__(
        self,
        records: Mapping[str, RecordSource],
        processor: Processor,
        ranker: ImageRanker,
        scale: float = 2.5,
    ):
        """Reads nothing yet.

        Args:
          records: task -> its records; the first of their field `captions` is read.
          processor: has the image tokenizer.
          ranker: scores the images.
          scale: factor of the scores.

        Raises:
          ValueError: there is no image tokenizer.
        """
        if processor.image_tokenizer is None:
            raise ValueError(
                "Rewards of images need the image tokenizer that made their codes: set "
                "DownstreamSettings.image_tokenizer, e.g. to @vqgan() with vqgan.path."
            )
        self._records = records
        self._processor = processor
        self._ranker = ranker
        self._scale = scale

    def __call__(self, record_ids: RecordIds, samples: Samples) -> Rewards:
        """Computes the scaled score of every sample.

        It is NaN for samples that are no image, and for examples whose record has no caption.

        Raises:
          ValueError: the ranker gives no finite numbers.
        """
        rewards = np.full(samples.shape[:2], np.nan)
        captions = [_captions(self._records[task], index)[:1] for task, index in record_ids]
        places = [
            (row, number)
            for row, found in enumerate(captions)
            for number in range(samples.shape[1])
            if found
        ]
        vocabulary = self._processor.vocabulary
        codes = [postprocess.parse("codes", samples[place], vocabulary) for place in places]
        images = decode_images(codes, self._processor)
        made = [(place, image) for place, image in zip(places, images, strict=True) if image]
        if not made:
            return rewards
        scores = score_images(
            self._ranker,
            [captions[row][0] for (row, _), _ in made],
            [np.asarray(image) for _, image in made],
        )
        for (place, _), score in zip(made, scores.tolist(), strict=True):
            rewards[place] = self._scale * score
        return rewards


def words(caption: str) -> list[str]:
    """Splits a caption into the words that CIDEr-D counts.

    >>> words("A man's red-and-blue hat.")
    ['a', 'mans', 'redandblue', 'hat', '<eos>']
    """
    return [*caption.lower().translate(_NO_PUNCTUATION).split(), END]


def _all_words(captions: Iterable[str]) -> list[list[str]]:
    return [words(caption) for caption in captions]


def _captions(records: RecordSource, index: int) -> tuple[str, ...]:
    """Returns the captions of a record that have words; none if it cannot be read."""
    try:
        with collect():
            captions = inputs.texts(records[index].get("captions", ())) or ()
        return tuple(caption for caption in captions if len(words(caption)) > 1)
    except Exception:  # noqa: BLE001  the loader reports it when it reads it
        return ()
