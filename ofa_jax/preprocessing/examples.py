"""The example that every objective and downstream task returns.

An example is a dict of numpy arrays:

    inputs       int32[S]         the instruction, with bos and eos
    targets      int32[T]         the target, followed by eos
    image        uint8[H, W, 3]   absent where there is none
    loss_weight  float32          the example's confidence
    code_mask    bool             whether the targets are image codes
    blank_box    int32[4]         optional: y0 x0 y1 x1 of the pixels that the model sees as 0
    unscored_targets  int32       optional: number of leading target tokens without a loss
    noisy_targets     int32[T]    optional: what the decoder reads in place of the targets
    view              float32[4]  optional, for evaluation: x0 y0 x1 y1, the part of the decoded
                                  image that `image` shows, in pixels of the decoded image
    target_prefix     int32[P]    optional, for evaluation: the tokens that decoding starts from
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from ofa_jax.tokenizers.vocabulary import OFAVocabulary

Example = dict[str, Any]
"""What a task makes of a record, by the names in the module's docstring."""


def make_example(
    vocabulary: OFAVocabulary,
    inputs: str | Sequence[str | np.ndarray],
    targets: str | Sequence[str | np.ndarray],
    image: UInt8[np.ndarray, "height width 3"] | None = None,
    loss_weight: float = 1.0,
    **others: Any,
) -> Example:
    """Returns an example: the instruction between bos and eos, and the target followed by eos.

        make_example(vocabulary, [prompts.GROUNDED_CAPTIONING, bins], " a dog", image)

    Args:
      vocabulary: encodes the strings.
      inputs: the instruction: a string, or a sequence of strings and ids (such as those of a box).
      targets: the target, likewise.
      image: the image, if there is one.
      loss_weight: the example's confidence.
      **others: further fields of the example.
    """
    source, target = _encode_parts(vocabulary, inputs), _encode_parts(vocabulary, targets)
    example = {
        "inputs": np.concatenate([[vocabulary.bos_id], source, [vocabulary.eos_id]]).astype(
            np.int32
        ),
        "targets": np.append(target, vocabulary.eos_id).astype(np.int32),
        "loss_weight": np.float32(loss_weight),
        "code_mask": np.bool_(False),
    }
    if image is not None:
        example["image"] = image
    return example | others


def _encode_parts(
    vocabulary: OFAVocabulary, parts: str | Sequence[str | np.ndarray]
) -> Int32[np.ndarray, " n"]:
    """Encodes the strings among the parts and concatenates all ids."""
    if isinstance(parts, str):
        parts = [parts]
    encoded = [vocabulary.encode(part) if isinstance(part, str) else part for part in parts]
    return np.concatenate(encoded) if encoded else np.zeros(0, np.int32)
