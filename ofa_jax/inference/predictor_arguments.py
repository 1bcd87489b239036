"""The arguments of a `Predictor`'s calls: checked, and as lists."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import numpy as np
from PIL import Image

from ofa_jax.decoding import DecodingConfig
from ofa_jax.inference import presets
from ofa_jax.inference.loading import LoadedModel
from ofa_jax.inference.prepared import CallOptions
from ofa_jax.utils.excerpts import excerpt


def check_arguments(
    loaded: LoadedModel,
    task: str | None,
    candidates: Iterable[str] | None,
    score_all: bool,
    decoding: DecodingConfig | None,
) -> CallOptions:
    """Checks how requests are to be decoded.

    Args:
      loaded: the model.
      task: see `Predictor.predict`, as the other arguments.
      candidates: an iterator is read to its end.
      score_all: with candidates only.
      decoding: settings of the decoder.

    Raises:
      ValueError: one of them cannot be used.
    """
    if not isinstance(score_all, bool | np.bool_):
        raise ValueError(f"score_all is {excerpt(score_all)}; it must be True or False.")
    if decoding is not None and not isinstance(decoding, DecodingConfig):
        raise ValueError(
            f"decoding is {excerpt(decoding)}; give a DecodingConfig, as in "
            "DecodingConfig(beam_size=5, max_length=20)."
        )
    if score_all and candidates is None:
        raise ValueError("score_all is True, but there are no candidates to score: give them.")
    allowed = None if candidates is None else tuple(presets.format_candidates(candidates))
    if task is not None:
        presets.find_preset(task, loaded.processor, loaded.model.config)
    return CallOptions(task, allowed, bool(score_all), decoding)


def refuse_unused(**arguments: Any) -> None:
    """Raises ValueError for arguments that a loaded model has already."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(
                f"{name} is given, but the LoadedModel has its own: give it to load_model, or "
                "leave it out."
            )


def list_images(images: Any) -> list[Any]:
    """Returns the images of a batch. Raises ValueError if it is a single image."""
    is_array = hasattr(images, "ndim")
    if isinstance(images, Image.Image | os.PathLike) or is_array and images.ndim != 4:
        shape = f" {list(images.shape)}" if is_array else ""
        raise ValueError(
            f"images is a {type(images).__name__}{shape}; give a list of images, or call `predict` "
            "for a single one."
        )
    return list_of("images", images)


def list_of(name: str, values: Any) -> list[Any]:
    """Returns the items of a list or an iterator. Raises ValueError for something else."""
    # The letters of a text and the keys of a dict are no items.
    if isinstance(values, str | bytes | bytearray | Mapping | Set) or not isinstance(
        values, Iterable
    ):
        raise ValueError(
            f"{name} is {excerpt(values)} of the type {type(values).__name__}; give a list."
        )
    return list(values)


@contextlib.contextmanager
def naming_request(number: int | None) -> Iterator[None]:
    """Puts the number of a request in front of its error; None for a single one."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        if number is None:
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"Request {number} (counted from 0): {error}") from error
