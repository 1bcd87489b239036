"""What the model refuses, said before anything is compiled."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ofa_jax.model.config import RELATIVE_POSITION_RANGE, OFAConfig
from ofa_jax.model.positions import patch_grid


def check_length(length: int, name: str, max_positions: int, remedy: str) -> None:
    """Raises ValueError unless the model has positions for so many tokens."""
    limit = min(max_positions, RELATIVE_POSITION_RANGE)
    if not 1 <= length <= limit:
        raise ValueError(
            f"{name} is {length} tokens long, the model has {limit} positions; {remedy}."
        )


def check_tokens(tokens: Any, name: str, max_positions: int, config: OFAConfig) -> None:
    """Raises ValueError unless tokens are integers [B, L], short enough, within the vocabulary.

    Ids are looked at only outside jit, where they have values.
    """
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"{name} is {tokens.dtype}{list(tokens.shape)}; give integer token ids [batch, length]."
        )
    check_length(tokens.shape[1], name, max_positions, "shorten the task_feature_lengths")
    values = _values(tokens)
    if values is None:
        return
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= config.vocab_size:
        raise ValueError(
            f"{name} holds the id {high if low >= 0 else low}, but OFAConfig.vocab_size is "
            f"{config.vocab_size}; set it to the vocabulary's size."
        )


def check_batch(batch: Mapping[str, Any], config: OFAConfig) -> None:
    """Raises ValueError for encoder inputs that do not fit together or do not fit the model."""
    if "encoder_input_tokens" not in batch:
        raise ValueError(
            "the batch has no encoder_input_tokens; every OFA task has an "
            f"instruction. It has {sorted(batch)}."
        )
    tokens = batch["encoder_input_tokens"]
    check_tokens(tokens, "encoder_input_tokens", config.max_source_positions, config)
    size = tokens.shape[0]
    if "encoder_images" not in batch:
        stray = sorted(
            {
                "encoder_image_mask",
                "encoder_patch_indices",
                "encoder_image_blank_boxes",
                "encoder_second_images",
            }
            & set(batch)
        )
        if stray:
            raise ValueError(
                f"the batch has {', '.join(stray)} but no encoder_images; a text "
                "stream carries none of them."
            )
        return
    if "encoder_second_images" in batch and not config.second_image:
        raise ValueError(
            "the batch has encoder_second_images, but the model takes one image: "
            "set OFAConfig.second_image."
        )
    if "encoder_image_mask" in batch and list(batch["encoder_image_mask"].shape) != [size]:
        raise ValueError(
            f"encoder_image_mask is {list(batch['encoder_image_mask'].shape)}; give {[size]}."
        )
    for prefix in ("encoder_", "encoder_second_"):
        if f"{prefix}images" in batch:
            _check_images(batch, prefix, size, config)


def _check_images(batch: Mapping[str, Any], prefix: str, size: int, config: OFAConfig) -> None:
    """Raises ValueError for images, blank boxes or patch indices that the model cannot take."""
    images = batch[f"{prefix}images"]
    if images.ndim != 4 or images.shape[0] != size or images.shape[3] != 3:
        raise ValueError(
            f"{prefix}images is {list(images.shape)}; give [{size}, height, width, 3]."
        )
    if images.dtype != np.uint8 and not jax.numpy.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"{prefix}images is {images.dtype}; give uint8 pixels, or floats in [-1, 1]."
        )
    rows, columns = patch_grid(*images.shape[1:3])
    if max(rows, columns) > config.image_bucket_size:
        raise ValueError(
            f"images of {images.shape[1]}x{images.shape[2]} pixels make {rows}x{columns} patches, "
            f"the model has positions for {config.image_bucket_size} a side; use smaller images "
            "or a larger image_bucket_size."
        )
    name = f"{prefix}image_blank_boxes"
    if name in batch and list(batch[name].shape) != [size, 4]:
        raise ValueError(f"{name} is {list(batch[name].shape)}; give {[size, 4]}.")
    name = f"{prefix}patch_indices"
    if name in batch:
        indices = batch[name]
        if indices.ndim != 2 or indices.shape[0] != size or indices.shape[1] > rows * columns:
            raise ValueError(
                f"{name} is {list(indices.shape)}; give [{size}, N] with N at most the "
                f"{rows * columns} patches of these images."
            )
        values = _values(indices)
        if values is not None and not (0 <= values.min() <= values.max() < rows * columns):
            raise ValueError(
                f"{name} reaches from {values.min()} to {values.max()}; these images have patches "
                f"0 to {rows * columns - 1}."
            )


def _values(array: Any) -> np.ndarray | None:
    """The numbers of an array, where it has any to look at: not under jit, not on other hosts."""
    if (
        isinstance(array, jax.core.Tracer)
        or not array.size
        or not getattr(array, "is_fully_addressable", True)
    ):
        return None
    return np.asarray(array)
