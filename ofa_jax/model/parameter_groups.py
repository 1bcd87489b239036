"""Groups of parameters for freezing parts of the model or training only small parts.

A group is a predicate over a parameter's path in the tree:

    resnet           the image encoder (freeze its batch norm with it)
    batch_norm       scales and biases of its norms
    encoder          the whole encoder, including the image encoder
    decoder          the whole decoder
    embeddings       tokens, positions and types
    token_embedding  tokens only, which several published fine-tuning runs freeze
    biases           every bias (BitFit, Ben Zaken et al. 2021)
    adapters         adapters (`OFAConfig.adapter_width`)
    prefixes         learned keys and values (`OFAConfig.prefix_length`)
    second_image     the type vector of a second image (`OFAConfig.second_image`)
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ofa_jax.utils.suggestions import nearest

Path = tuple[str, ...]

_EMBEDDINGS = {
    "token_embedding",
    "position_embedding",
    "image_position_embedding",
    "type_embedding",
    "second_image_type",
}
GROUPS: dict[str, Callable[[Path], bool]] = {
    "resnet": lambda path: path[:2] == ("encoder", "resnet"),
    "batch_norm": lambda path: path[:2] == ("encoder", "resnet") and "norm" in path[-2],
    "encoder": lambda path: path[0] == "encoder",
    "decoder": lambda path: path[0] == "decoder",
    "embeddings": lambda path: not _EMBEDDINGS.isdisjoint(path),
    "token_embedding": lambda path: "token_embedding" in path,
    "biases": lambda path: path[-1] == "bias",
    "adapters": lambda path: "adapter" in path,
    "prefixes": lambda path: path[-1] in ("prefix_key", "prefix_value"),
    "second_image": lambda path: path[-1] == "second_image_type",
}
OPTIONAL_GROUPS = {
    "adapters": "adapter_width",
    "prefixes": "prefix_length",
    "second_image": "second_image",
}
"""Groups that the published models lack -> the field of OFAConfig that adds them."""


def check_groups(names: Sequence[str], where: str) -> None:
    """Raises ValueError for an unknown group, and suggests a similar name.

    Args:
      names: names of groups.
      where: the option that holds them, for the error.
    """
    for name in names:
        if name not in GROUPS:
            raise ValueError(
                f"{where} names {name!r}; known are {', '.join(GROUPS)}.{nearest(name, GROUPS)}"
            )


def in_groups(path: Path, names: Sequence[str]) -> bool:
    """Returns whether a parameter belongs to one of the groups."""
    return any(GROUPS[name](path) for name in names)


def trainable_mask(
    params: Any, frozen: Sequence[str], trainable_groups: Sequence[str] | None
) -> Any:
    """Returns a tree of bool: which parameters are trained.

    Args:
      params: parameters, boxed or plain.
      frozen: names of groups that are not trained.
      trainable_groups: names of the groups that are trained; None for all.

    Returns:
      A tree with the structure of `params`; True in a trainable group and in no frozen one.
    """

    def is_trained(key_path: Any, _: Any) -> bool:
        path = tuple(entry.key for entry in key_path if isinstance(entry, jax.tree_util.DictKey))
        return (trainable_groups is None or in_groups(path, trainable_groups)) and not in_groups(
            path, frozen
        )

    return jax.tree_util.tree_map_with_path(is_trained, params)


def stop_frozen_gradients(
    params: Any, frozen: Sequence[str], trainable_groups: Sequence[str] | None
) -> Any:
    """Returns the same values; gradients of parameters that are not trained are not computed."""
    if not frozen and trainable_groups is None:
        return params
    return jax.tree.map(
        lambda x, trained: x if trained else jax.lax.stop_gradient(x),
        params,
        trainable_mask(params, frozen, trainable_groups),
    )
