"""Checks that a model takes the batches of the data."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from ofa_jax.data.features import Stream
from ofa_jax.model import OFA, OFAConfig


def check_codes(model: OFAConfig, size: int, streams: Sequence[Stream]) -> None:
    """Raises ValueError if model and data disagree on the grid of image codes.

    Args:
      model: whose decoder has a position for each code of the grid.
      size: pixels a side of the images that the data turns into codes.
      streams: of the run.
    """
    if any(stream.code_targets for stream in streams) and size != model.code_image_size:
        raise ValueError(
            f"model_config.code_image_size is {model.code_image_size}, but images of "
            f"{size} pixels a side are encoded to codes: make the two equal."
        )


def check_fits(network: OFA, stream: Stream, batch: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError, with the name of the stream, if the model does not take its batches."""
    try:
        one = {name: array[:1] for name, array in batch.items()}
        jax.eval_shape(lambda: network.init(jax.random.key(0), one))
    except ValueError as error:
        raise ValueError(f"Stream {stream.name!r} does not fit the model: {error}") from error
