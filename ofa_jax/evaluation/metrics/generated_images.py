"""Quality of generated images: FID, Inception score and CLIP score, from features.

The features come from a network that the user supplies, or from files that another program wrote:
no weights are part of this project. The published numbers use the pool features (2,048) and the
class probabilities of an Inception v3, and CLIP's embeddings. All three are of float64.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

_SPLITS = 10
_ROUNDING = 1e-3
"""How far probabilities may be from 1 in sum: features are often stored as float16."""


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean and covariance of the features of a set of images.

    Attributes:
      mean: of each feature.
      covariance: unbiased (divided by the number of images less one).
      count: number of images; None if it is unknown, as in files of other programs.
    """

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]
    count: int | None = None

    def __post_init__(self) -> None:
        mean, covariance = (np.asarray(x, np.float64) for x in (self.mean, self.covariance))
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not len(mean):
            raise ValueError(
                f"the statistics of features are {list(mean.shape)} and {list(covariance.shape)}: "
                "give a mean [D] and a covariance [D, D]."
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError("the statistics of features hold numbers that are not finite.")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)

    @classmethod
    def of(cls, features: ArrayLike) -> "FeatureStatistics":
        """Computes the statistics of features [images, D].

        Raises:
          ValueError: there are fewer than two images, or a feature is not finite.
        """
        array = _features("fid", features)
        if len(array) < 2:
            raise ValueError(f"fid needs the features of at least 2 images; got {len(array)}.")
        return cls(array.mean(axis=0), np.atleast_2d(np.cov(array, rowvar=False)), len(array))

    def describe_shortage(self) -> str | None:
        """Returns a sentence if there are too few images for a distance to be compared with others.

        With no more images than features the covariance is singular. The distance is defined, and
        equals that of `pytorch_fid`, but it falls with every further image.
        """
        if self.count is None or self.count > len(self.mean):
            return None
        return (
            f"The Frechet distance is of {self.count} images with {len(self.mean)} features each: "
            "compare it only with distances of as many images, or take more images than features."
        )


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """Computes the Frechet distance of two normal distributions (FID: Heusel et al. 2017, eq. 6).

        |m - n|^2 + tr(S) + tr(T) - 2 tr((S T)^(1/2))

    The trace of the root is the sum of the singular values of S^(1/2) T^(1/2): no root of a matrix
    that is not symmetric, as in `pytorch_fid`, whose values it equals.

    Raises:
      ValueError: the features differ in number.
    """
    if one.mean.shape != other.mean.shape:
        raise ValueError(
            f"fid compares {len(one.mean)} features with {len(other.mean)}: take both from the "
            "same layer of the same network."
        )
    product = _root(one.covariance) @ _root(other.covariance)
    roots = np.linalg.svd(product, compute_uv=False)
    difference = one.mean - other.mean
    traces = np.trace(one.covariance) + np.trace(other.covariance)
    return float(difference @ difference + traces - 2 * roots.sum())


def _root(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """Returns the symmetric root of a matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def fid(references: ArrayLike, predictions: ArrayLike) -> dict[str, float]:
    """Computes "fid" of the features [images, D] of true and of generated images.

    Lower is better. As a rule it takes more images than features: the estimate is biased below
    (Chong and Forsyth 2020).
    """
    statistics = FeatureStatistics.of(references), FeatureStatistics.of(predictions)
    return {"fid": frechet_distance(*statistics)}


def inception_score(probabilities: ArrayLike, splits: int = _SPLITS) -> dict[str, float]:
    """Computes "inception_score" and "inception_score_std" (Salimans et al. 2016, section 4).

    exp of the mean divergence KL(p(y|x) || p(y)), of each of `splits` parts of the images in their
    order; the mean and the standard deviation over the parts.

    Args:
      probabilities: of the classes, [images, classes]; a softmax of the network's logits.
      splits: number of parts, 10 in publications.

    Raises:
      ValueError: they are no probabilities, or there are fewer images than parts.
    """
    array = _features("inception_score", probabilities)
    sums = array.sum(axis=1)
    if (array < 0).any() or (np.abs(sums - 1) > _ROUNDING).any():
        raise ValueError(
            "inception_score needs the probabilities of the classes, which are at least 0 and "
            "have the sum 1: apply a softmax to the logits."
        )
    if not 1 <= splits <= len(array):
        raise ValueError(
            f"inception_score splits {len(array)} images into {splits} parts: give 1 to "
            f"{len(array)}."
        )
    edges = [index * len(array) // splits for index in range(splits + 1)]
    scores = []
    for start, end in zip(edges, edges[1:], strict=False):
        part = array[start:end]
        marginal = part.mean(axis=0)
        # Where p(y) is 0, all p(y|x) are.
        ratio = np.divide(part, marginal, out=np.ones_like(part), where=part > 0)
        scores.append(np.exp((part * np.log(ratio)).sum(axis=1).mean()))
    return {"inception_score": float(np.mean(scores)), "inception_score_std": float(np.std(scores))}


def clip_score(
    image_features: ArrayLike, text_features: ArrayLike, scale: float = 1.0
) -> dict[str, float]:
    """Computes "clip_score": the mean cosine of each image with its own caption.

    Args:
      image_features: CLIP's embeddings of the images, [images, D]; of any length.
      text_features: those of their captions, in the same order.
      scale: factor. The paper of OFA and the reference implementation have 1. `torchmetrics` has
        100, and CLIPScore (Hessel et al. 2021) 2.5, of cosines above 0 alone.

    Raises:
      ValueError: there is not one caption for each image, or an embedding is zero.
    """
    images, texts = _features("clip_score", image_features), _features("clip_score", text_features)
    if images.shape != texts.shape:
        raise ValueError(
            f"clip_score compares images {list(images.shape)} with captions {list(texts.shape)}: "
            "give one caption for each image, embedded by the same model."
        )
    lengths = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
    if not lengths.all():
        raise ValueError("clip_score got an embedding of zeros, which has no direction.")
    return {"clip_score": float(scale * ((images * texts).sum(axis=1) / lengths).mean())}


def _features(metric: str, features: Any) -> Float[np.ndarray, "n d"]:
    """Returns features as float64 [images, D]. Raises ValueError if they are something else."""
    array = np.asarray(features)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{metric} got {array.dtype}{list(array.shape)}: give the features of at least one "
            "image as numbers [images, D]."
        )
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{metric} got features that are not finite numbers.")
    return array
