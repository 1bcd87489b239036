"""How images that were generated from captions of Scenes are measured.

In the features of a trained ResNet, the same one for all runs that are compared:

    asked_noun       share of images that are nearest to those of the noun that was asked for
    real_noun        the same of the true images, from their codes: the most that can be reached
    fid              Frechet distance of all generated images to all true ones
    token_accuracy   share of the codes that are the true image's; low, as a caption does not say
                     where an object is

The nearest noun is that whose images in the training split have the mean features with the largest
cosine (nearest class mean, Mensink et al. 2013).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from ofa_jax.data.scenes_downstream import ScenesDownstreamSettings
from ofa_jax.evaluation.metrics import exact, generated_images, inputs
from ofa_jax.evaluation.metrics.nouns import NounFinder

_AT_ONCE = 100


class GeneratedScenes:
    """A metric of image codes; see the module."""

    __name__ = "generated_scenes"
    needs_corpus = True

    def __init__(self, settings: ScenesDownstreamSettings, means_of: int = 2000):
        """Prepares the metric; the ResNet is loaded when it is first called.

        Args:
          settings: have the image tokenizer and the ResNet's checkpoint.
          means_of: number of training images whose features are averaged.
        """
        self._settings = settings
        self._means_of = means_of

    def clean_reference(self, reference: Any) -> Any:
        """Returns a reference if it has codes; None otherwise."""
        return reference if inputs.tokens(reference["codes"]) is not None else None

    def __call__(
        self, references: Sequence[Mapping[str, Any]], predictions: Sequence[Any]
    ) -> dict[str, float]:
        """Computes all values; only "token_accuracy" without a ResNet.

        Args:
          references: {"caption", "codes"} of each image.
          predictions: the codes of each, or None.
        """
        true = [np.asarray(own["codes"]) for own in references]
        values = exact.token_accuracy(true, predictions)
        if self._settings.feature_checkpoint is None:
            return values
        names, means = self._class_means
        seen = [self._features(self._images(codes)) for codes in (true, predictions)]
        if len(references) > 1:
            values |= generated_images.fid(*seen)
        asked = [NounFinder(names).find(own["caption"]) for own in references]
        for name, features in zip(("real_noun", "asked_noun"), seen, strict=True):
            nearest = (_unit(features) @ means.T).argmax(1)
            hits = [names[index] in own for index, own in zip(nearest, asked, strict=True)]
            values[name] = float(np.mean(hits))
        return values

    def _images(self, codes: Sequence[Any]) -> UInt8[np.ndarray, "n side side 3"]:
        """Decodes codes; tokens that are not codes, and missing ones, count as code 0."""
        side = self._settings.code_image_size // self._settings.tokenizer.pixels_per_code
        grids = np.zeros((len(codes), side * side), np.int32)
        for grid, own in zip(grids, codes, strict=True):
            found = np.asarray([] if own is None else own, np.int32)[: len(grid)]
            grid[: len(found)] = np.maximum(found, 0)
        return self._settings.tokenizer.decode(grids.reshape(-1, side, side))

    @functools.cached_property
    def _class_means(self) -> tuple[tuple[str, ...], Float32[np.ndarray, "nouns d"]]:
        """The nouns, and the unit mean of the features of each one's training images."""
        records = self._settings.records("coded_captions", "train")
        known = [records[index] for index in range(min(len(records), self._means_of))]
        names = self._settings.scenes().names
        finder, numbers = NounFinder(names), {name: number for number, name in enumerate(names)}
        labels = [numbers[next(iter(finder.find(own["captions"][0])))] for own in known]
        features = self._features(self._images([own["codes"] for own in known]))
        sums = np.zeros((len(names), features.shape[1]), np.float32)
        np.add.at(sums, labels, _unit(features))
        return names, _unit(sums)

    @functools.cached_property
    def _resnet(self) -> Any:
        """A function from images uint8 [B, H, W, 3] to features [B, D]."""
        import jax
        import jax.numpy as jnp

        from ofa_jax.training.image_tokenizer.config import PerceptualFeatures
        from ofa_jax.training.image_tokenizer.features import load_features

        path = self._settings.feature_checkpoint
        assert path is not None
        network, variables = load_features(PerceptualFeatures(path, size="scenes"))
        size = self._settings.image_size

        @jax.jit
        def embed(pixels: jax.Array) -> jax.Array:
            # As large as the ResNet has seen objects.
            shape = (len(pixels), size, size, 3)
            resized = jax.image.resize(pixels / 127.5 - 1.0, shape, "bilinear")
            return network.features(variables, resized)[-1].max((1, 2))

        return lambda images: np.asarray(embed(jnp.asarray(images)))

    def _features(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "n d"]:
        """Computes the largest feature of each channel over all places, in equal batches."""
        padded = np.concatenate([images, np.repeat(images[:1], -len(images) % _AT_ONCE, axis=0)])
        parts = np.split(padded, len(padded) // _AT_ONCE)
        return np.concatenate([self._resnet(part) for part in parts])[: len(images)]


def _unit(x: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Returns rows scaled to length 1; rows of zeros stay."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
