"""Mesh axes, and the rules that map logical axes of the model to them."""

from collections.abc import Sequence

MESH_AXES = ("data", "fsdp", "tensor")
"""Axes of the device mesh: copies of the model; split parameters, moments and batch; split heads,
feed-forward layers and vocabulary."""

BATCH_AXES = ("data", "fsdp")
"""Mesh axes that a batch is split over."""

AxisRules = Sequence[tuple[str, str | tuple[str, ...] | None]]
"""Pairs of a logical axis and the mesh axis or axes it is split over; the first match counts."""

DEFAULT_AXIS_RULES: AxisRules = (
    ("activation_batch", BATCH_AXES),
    ("activation_images", MESH_AXES),
    ("activation_heads", "tensor"),
    ("activation_mlp", "tensor"),
    ("activation_vocab", "tensor"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("embed", "fsdp"),
    ("conv_out", "fsdp"),
)
"""Rules that suit every mesh shape: splitting over a mesh axis of size 1 changes nothing.

Logical axes without a rule are replicated. `ofa_jax.model` documents the names.
"""


def check_axis_rules(rules: AxisRules) -> None:
    """Raises ValueError if a rule names an axis that the mesh does not have."""
    for logical, axes in rules:
        for axis in as_axis_names(axes):
            if axis not in MESH_AXES:
                raise ValueError(
                    f"Partitioner.logical_axis_rules maps {logical!r} to {axis!r}, but the mesh "
                    f"has the axes {', '.join(MESH_AXES)}."
                )


def as_axis_names(axes: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the mesh axes of one entry of a rule or of a PartitionSpec as a tuple."""
    return (axes,) if isinstance(axes, str) else tuple(axes or ())
