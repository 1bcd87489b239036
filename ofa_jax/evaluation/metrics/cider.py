"""CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726, section 5), with its idf table made once.

For n = 1 ... 4, g_n(c) is the vector of a caption's n-grams, each weighted by how often it comes
times log(N / df): of N images, df have it in one of their references. Against a reference s,

    CIDEr-D_n(c, s) = 10 exp(-(l(c) - l(s))^2 / (2 sigma^2)) min(g_n(c), g_n(s)) g_n(s)
                      / (|g_n(c)| |g_n(s)|),            sigma = 6,

averaged over n and over the references. As in the official evaluation the length l counts bigrams,
an n-gram that no reference has counts as if one image had it, and a score goes up to 10: papers
print its mean over the images times 100, where this is "1.2 for 120".
"""

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Words = Sequence[str]
Ngram = tuple[str, ...]


class _Vector(NamedTuple):
    """weights: of the n-grams, a dict per n. norms: float per n. length: in bigrams."""

    weights: list[dict[Ngram, float]]
    norms: list[float]
    length: int


class CiderD:
    """Scores captions against the document frequencies that it holds.

    >>> scorer = CiderD.of_references([[["a", "red", "dog"]], [["a", "tree"]]])
    >>> scorer.score([["a", "red", "dog"], ["a", "tree"]], [["a", "red", "dog"]]).round(3).tolist()
    [7.5, 0.0]
    """

    def __init__(
        self,
        document_frequency: Mapping[Ngram, int],
        num_documents: int,
        max_order: int = 4,
        sigma: float = 6.0,
    ):
        """
        Args:
          document_frequency: n-gram -> number of images with a reference that has it.
          num_documents: number of images that were counted.
          max_order: n-grams of up to so many words.
          sigma: of the penalty on another length.
        """
        if num_documents < 1:
            raise ValueError("CIDEr-D needs the references of at least one image.")
        self._log_documents = math.log(num_documents)
        self._idf = {
            ngram: self._log_documents - math.log(max(1, count))
            for ngram, count in document_frequency.items()
        }
        self._max_order = max_order
        self._width = 2 * sigma**2

    @classmethod
    def of_references(
        cls, references: Iterable[Sequence[Words]], max_order: int = 4, sigma: float = 6.0
    ) -> "CiderD":
        """Counts the n-grams of the references, as words, of every image."""
        frequency: collections.Counter[Ngram] = collections.Counter()
        documents = 0
        for own in references:
            documents += 1
            frequency.update({ngram for words in own for ngram in _ngrams(words, max_order)})
        return cls(frequency, documents, max_order, sigma)

    def score(self, captions: Sequence[Words], references: Sequence[Words]) -> np.ndarray:
        """CIDEr-D of several captions of one image.

        Args:
          captions: of the image, as words.
          references: of the image, as words; at least one.

        Returns:
          float64 [len(captions)].
        """
        vectors = [self._vector(words) for words in references]
        scores = np.empty(len(captions))
        for place, words in enumerate(captions):
            caption = self._vector(words)
            scores[place] = sum(self._similarity(caption, reference) for reference in vectors)
        return scores * (10 / len(references) / self._max_order)

    def _vector(self, words: Words) -> _Vector:
        weights: list[dict[Ngram, float]] = [{} for _ in range(self._max_order)]
        for ngram, count in collections.Counter(_ngrams(words, self._max_order)).items():
            weights[len(ngram) - 1][ngram] = count * self._idf.get(ngram, self._log_documents)
        norms = [math.sqrt(sum(x * x for x in own.values())) for own in weights]
        return _Vector(weights, norms, max(len(words) - 1, 0))

    def _similarity(self, caption: _Vector, reference: _Vector) -> float:
        """The sum over n, without the factor 10."""
        total = 0.0
        for own, other, own_norm, other_norm in zip(
            caption.weights, reference.weights, caption.norms, reference.norms, strict=True
        ):
            if own_norm and other_norm:
                product = 0.0
                for ngram, weight in own.items():
                    if ngram in other:
                        product += min(weight, other[ngram]) * other[ngram]
                total += product / (own_norm * other_norm)
        return total * math.exp(-((caption.length - reference.length) ** 2) / self._width)


def _ngrams(words: Words, max_order: int) -> list[Ngram]:
    words = tuple(words)
    return [
        words[start : start + order]
        for order in range(1, max_order + 1)
        for start in range(len(words) - order + 1)
    ]
