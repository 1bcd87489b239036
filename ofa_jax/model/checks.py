"""Checks of the model's inputs, made before anything is compiled."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ofa_jax.model.config import RELATIVE_POSITION_RANGE, OFAConfig
from ofa_jax.model.positions import patch_grid


def check_length(length: int, name: str, max_positions: int, remedy: str) -> None:
    """Raises ValueError unless the model has positions for `length` tokens.

    Args:
      length: number of tokens.
      name: what has this length, for the error.
      max_positions: rows of the absolute position table.
      remedy: what the user can do, for the error.
    """
    limit = min(max_positions, RELATIVE_POSITION_RANGE)
    if not 1 <= length <= limit:
        raise ValueError(
            f"{name} is {length} tokens long, the model has {limit} positions; {remedy}."
        )


def check_tokens(tokens: Any, name: str, max_positions: int, config: OFAConfig) -> None:
    """Raises ValueError unless tokens are integers [B, L], short enough, within the vocabulary.

    The ids are checked only outside jit, where their values are known.
    """
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"{name} is {tokens.dtype}{list(tokens.shape)}; give integer token ids [batch, length]."
        )
    check_length(tokens.shape[1], name, max_positions, "shorten the task_feature_lengths")
    values = _concrete_values(tokens)
    if values is None:
        return
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= config.vocab_size:
        raise ValueError(
            f"{name} holds the id {high if low >= 0 else low}, but OFAConfig.vocab_size is "
            f"{config.vocab_size}; set it to the vocabulary's size."
        )


def check_encoder_inputs(batch: Mapping[str, Any], config: OFAConfig) -> None:
    """Raises ValueError for encoder inputs that do not fit each other or the model."""
    if "encoder_input_tokens" not in batch:
        raise ValueError(
            "the batch has no encoder_input_tokens; every OFA task has an "
            f"instruction. It has {sorted(batch)}."
        )
    tokens = batch["encoder_input_tokens"]
    check_tokens(tokens, "encoder_input_tokens", config.max_source_positions, config)
    batch_size = tokens.shape[0]
    if "encoder_images" not in batch:
        _check_no_image_inputs(batch)
        return
    if "encoder_second_images" in batch and not config.second_image:
        raise ValueError(
            "the batch has encoder_second_images, but the model takes one image: "
            "set OFAConfig.second_image."
        )
    if "encoder_image_mask" in batch and list(batch["encoder_image_mask"].shape) != [batch_size]:
        raise ValueError(
            f"encoder_image_mask is {list(batch['encoder_image_mask'].shape)}; give {[batch_size]}."
        )
    for prefix in ("encoder_", "encoder_second_"):
        if f"{prefix}images" in batch:
            _check_images(batch, prefix, batch_size, config)


def _check_no_image_inputs(batch: Mapping[str, Any]) -> None:
    """Raises ValueError if a batch without images has arrays that describe images."""
    image_inputs = {
        "encoder_image_mask",
        "encoder_patch_indices",
        "encoder_image_blank_boxes",
        "encoder_second_images",
    }
    unexpected = sorted(image_inputs & set(batch))
    if unexpected:
        raise ValueError(
            f"the batch has {', '.join(unexpected)} but no encoder_images; a text "
            "stream has none of them."
        )


def _check_images(
    batch: Mapping[str, Any], prefix: str, batch_size: int, config: OFAConfig
) -> None:
    """Raises ValueError for images, blank boxes or patch indices that the model cannot take."""
    images = batch[f"{prefix}images"]
    if images.ndim != 4 or images.shape[0] != batch_size or images.shape[3] != 3:
        raise ValueError(
            f"{prefix}images is {list(images.shape)}; give [{batch_size}, height, width, 3]."
        )
    if images.dtype != np.uint8 and not jax.numpy.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"{prefix}images is {images.dtype}; give uint8 pixels, or floats in [-1, 1]."
        )
    rows, columns = patch_grid(*images.shape[1:3])
    if max(rows, columns) > config.image_bucket_size:
        raise ValueError(
            f"images of {images.shape[1]}x{images.shape[2]} pixels make {rows}x{columns} patches, "
            f"but the model has positions for {config.image_bucket_size} per side; use smaller "
            "images or a larger image_bucket_size."
        )
    name = f"{prefix}image_blank_boxes"
    if name in batch and list(batch[name].shape) != [batch_size, 4]:
        raise ValueError(f"{name} is {list(batch[name].shape)}; give {[batch_size, 4]}.")
    name = f"{prefix}patch_indices"
    if name in batch:
        _check_patch_indices(batch[name], name, batch_size, rows * columns)


def _check_patch_indices(indices: Any, name: str, batch_size: int, num_patches: int) -> None:
    """Raises ValueError unless indices are [B, N], N <= num_patches, within the grid."""
    if indices.ndim != 2 or indices.shape[0] != batch_size or indices.shape[1] > num_patches:
        raise ValueError(
            f"{name} is {list(indices.shape)}; give [{batch_size}, N] with N at most the "
            f"{num_patches} patches of these images."
        )
    values = _concrete_values(indices)
    if values is not None and not (0 <= values.min() <= values.max() < num_patches):
        raise ValueError(
            f"{name} reaches from {values.min()} to {values.max()}; these images have patches "
            f"0 to {num_patches - 1}."
        )


def _concrete_values(array: Any) -> np.ndarray | None:
    """Returns the values of an array, or None if they are unknown here (jit, other hosts)."""
    if (
        isinstance(array, jax.core.Tracer)
        or not array.size
        or not getattr(array, "is_fully_addressable", True)
    ):
        return None
    return np.asarray(array)
