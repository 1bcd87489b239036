"""CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726, section 5), with a reusable idf table.

For n = 1 ... 4, g_n(c) is the vector of a caption's n-grams, each weighted by its count times
log(N / df): of N images, df have it in at least one reference. For a reference s,

    CIDEr-D_n(c, s) = 10 exp(-(l(c) - l(s))^2 / (2 sigma^2)) min(g_n(c), g_n(s)) g_n(s)
                      / (|g_n(c)| |g_n(s)|),            sigma = 6,

averaged over n and over the references. As in the official evaluation the length l counts bigrams,
an n-gram that no reference has counts as if one image had it, and a score is at most 10. Papers
print the mean over the images times 100: 1.2 here is 120 there.
"""

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

Words = Sequence[str]
Ngram = tuple[str, ...]


class _Vector(NamedTuple):
    """The weights of the n-grams (one dict per n), their norms, and the length in bigrams."""

    weights: list[dict[Ngram, float]]
    norms: list[float]
    length: int


class CiderD:
    """Scores captions with the document frequencies of a corpus.

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
        """Computes the inverse document frequencies.

        Args:
          document_frequency: n-gram -> number of images with a reference that has it.
          num_documents: number of images that were counted.
          max_order: the longest n-grams, in words.
          sigma: width of the penalty on a difference in length.
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
        """Counts the n-grams of the tokenised references of every image."""
        frequency: collections.Counter[Ngram] = collections.Counter()
        documents = 0
        for of_image in references:
            documents += 1
            frequency.update({ngram for words in of_image for ngram in _ngrams(words, max_order)})
        return cls(frequency, documents, max_order, sigma)

    def score(
        self, captions: Sequence[Words], references: Sequence[Words]
    ) -> Float64[np.ndarray, " n"]:
        """Computes CIDEr-D of several captions of one image.

        Args:
          captions: captions to score, tokenised.
          references: the image's references, tokenised; at least one.

        Returns:
          A score for each caption.
        """
        vectors = [self._vector(words) for words in references]
        scores = np.empty(len(captions))
        for index, words in enumerate(captions):
            caption = self._vector(words)
            scores[index] = sum(self._similarity(caption, reference) for reference in vectors)
        return scores * (10 / len(references) / self._max_order)

    def _vector(self, words: Words) -> _Vector:
        """Returns the weighted n-grams of a text."""
        weights: list[dict[Ngram, float]] = [{} for _ in range(self._max_order)]
        for ngram, count in collections.Counter(_ngrams(words, self._max_order)).items():
            weights[len(ngram) - 1][ngram] = count * self._idf.get(ngram, self._log_documents)
        norms = [math.sqrt(sum(x * x for x in order.values())) for order in weights]
        return _Vector(weights, norms, max(len(words) - 1, 0))

    def _similarity(self, caption: _Vector, reference: _Vector) -> float:
        """Returns the sum over n, without the factor 10."""
        total = 0.0
        for weights, other, norm, other_norm in zip(
            caption.weights, reference.weights, caption.norms, reference.norms, strict=True
        ):
            if norm and other_norm:
                product = 0.0
                for ngram, weight in weights.items():
                    if ngram in other:
                        product += min(weight, other[ngram]) * other[ngram]
                total += product / (norm * other_norm)
        return total * math.exp(-((caption.length - reference.length) ** 2) / self._width)


def _ngrams(words: Words, max_order: int) -> list[Ngram]:
    """Returns all n-grams of up to `max_order` words, in order of n."""
    sequence = tuple(words)
    return [
        sequence[start : start + order]
        for order in range(1, max_order + 1)
        for start in range(len(words) - order + 1)
    ]
