"""Counts the operations of the products in an HLO program from their text and operand shapes."""

import functools
import math
import re
from collections.abc import Callable

import numpy as np

from ofa_jax.planning.hlo_text import KERNEL, LIBRARY, Array, Instruction

# What a Pallas kernel says of itself (`pallas_call(..., cost_estimate=...)`).
_ESTIMATED = re.compile(r'"cost_estimate":\s*\{[^{}]*"flops":\s*"?(\d+)')
# The scores of an attention in one call of cuDNN: batch, heads, queries, keys.
_SCORES = re.compile(r'"intermediate_tensor_shape":\s*\{[^{}]*"dimensions":\s*\[([\d,"\s]*)\]')


def count_of(instruction: Instruction) -> Callable[..., float] | None:
    """Returns the function that counts the operations of a product; None for other instructions.

    The function takes the instruction and its first two operands. A Pallas kernel is counted as its
    author does in its cost estimate, and not at all without one.
    """
    name = instruction.opcode
    if name == "custom-call" and KERNEL.search(instruction.attributes):
        return _kernel_flops if _ESTIMATED.search(instruction.attributes) else None
    if name == "custom-call" and (found := LIBRARY.search(instruction.attributes)):
        name = next(
            (kind for kind in _COUNTS if kind.startswith("__") and found[1].startswith(kind)), ""
        )
    return _COUNTS.get(name)


def _dot_flops(dot: Instruction, left: Array, right: Array) -> float:
    """Counts a matrix product."""
    del right
    # In the notation of HLO, and in that of a call of cuBLAS.
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes) or re.search(
        r'"lhs_contracting_dimensions":\[([\d,"]*)\]', dot.attributes
    )
    axes = [int(n) for n in re.findall(r"\d+", contracted[1])] if contracted else []
    return 2.0 * math.prod(dot.outputs[0].shape) * math.prod(left.shape[a] for a in axes)


def _kernel_flops(kernel: Instruction, *_: Array) -> float:
    """Returns the operations that a Pallas kernel states."""
    found = _ESTIMATED.search(kernel.attributes)
    assert found is not None, kernel.name
    return float(found[1])


def _attention_flops(call: Instruction, query: Array, *_: Array) -> float:
    """Counts the products of an attention of cuDNN, all as wide as its queries.

    They are two forward, for scores and values; and five backward, for the scores again and the
    gradients of weights, values, queries and keys.
    """
    found, name = _SCORES.search(call.attributes), LIBRARY.search(call.attributes)
    assert found is not None and name is not None, call.name
    products = 5 if "Backward" in name[1] else 2
    scores = math.prod(int(n) for n in re.findall(r"\d+", found[1]))
    return 2.0 * products * scores * query.shape[-1]


def _convolution_flops(conv: Instruction, left: Array, right: Array) -> float:
    """Counts a convolution."""
    return _valid_flops(conv, left, right, conv.outputs[0])


def _input_gradient_flops(conv: Instruction, left: Array, right: Array) -> float:
    """Counts the gradient of a convolution towards its input, as cuDNN prints it."""
    return _valid_flops(conv, conv.outputs[0], right, left)


def _kernel_gradient_flops(conv: Instruction, left: Array, right: Array) -> float:
    """Counts the gradient of a convolution towards its kernel, as cuDNN prints it."""
    return _valid_flops(conv, left, conv.outputs[0], right)


def _valid_flops(conv: Instruction, left: Array, right: Array, result: Array) -> float:
    """Counts as XLA does: only taps on values, neither on padding nor on dilation."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", conv.attributes)
    assert labels is not None, conv
    lhs, rhs, out = labels.groups()
    window = dict(
        re.findall(
            r"(\w+)=([\w\-x]+)", (re.search(r"window=\{([^}]*)\}", conv.attributes) or ["", ""])[1]
        )
    )
    spatial = [label for label in out if label.isdigit()]

    def setting(name: str, place: int, default: int) -> int:
        """Returns a setting of the window along one axis."""
        return int(window[name].split("x")[place]) if name in window else default

    pairs = 1
    for label in spatial:
        place = int(label)
        low = int(window["pad"].split("x")[place].split("_")[0]) if "pad" in window else 0
        pairs *= _valid_pairs(
            size=left.shape[lhs.index(label)],
            taps=right.shape[rhs.index(label)],
            outputs=result.shape[out.index(label)],
            stride=setting("stride", place, 1),
            low=low,
            base=setting("lhs_dilate", place, 1),
            dilation=setting("rhs_dilate", place, 1),
        )
    batch_groups = re.search(r"batch_group_count=(\d+)", conv.attributes)
    batch = left.shape[lhs.index("b")] // (int(batch_groups[1]) if batch_groups else 1)
    # The kernel's input features are those of one group already.
    return 2.0 * pairs * batch * right.shape[rhs.index("i")] * right.shape[rhs.index("o")]


_COUNTS: dict[str, Callable[..., float]] = {
    "dot": _dot_flops,
    "convolution": _convolution_flops,
    "__cublas$gemm": _dot_flops,
    "__cublas$lt$matmul": _dot_flops,
    "__cudnn$convForward": _convolution_flops,
    "__cudnn$convBiasActivationForward": _convolution_flops,
    "__cudnn$convBackwardInput": _input_gradient_flops,
    "__cudnn$convBackwardFilter": _kernel_gradient_flops,
    "__cudnn$fmha": _attention_flops,
}


@functools.lru_cache(maxsize=4096)
def _valid_pairs(
    size: int, taps: int, outputs: int, stride: int, low: int, base: int, dilation: int
) -> int:
    """Counts the (output, tap) pairs of one axis that fall on a value."""
    place = np.arange(outputs)[:, None] * stride - low + np.arange(taps)[None, :] * dilation
    return int(((place >= 0) & (place <= (size - 1) * base) & (place % base == 0)).sum())
