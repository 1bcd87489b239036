"""Which parameters are trained: freezing parts, and training only small parts.

Groups by name, over a parameter's path in the tree:

    resnet       the image encoder (its batch norm should be frozen with it)
    batch_norm   scale and bias of its norms
    encoder      the whole encoder, image encoder included
    decoder      the whole decoder
    embeddings   tokens, positions and types
    token_embedding  tokens alone, which several published fine-tunings freeze
    biases       every bias (BitFit, Ben Zaken et al. 2021)
    adapters     adapters (`OFAConfig.adapter_width`)
    prefixes     learned keys and values (`OFAConfig.prefix_length`)
    second_image the type vector of a second image (`OFAConfig.second_image`)
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
ADDED = {"adapters": "adapter_width", "prefixes": "prefix_length", "second_image": "second_image"}
"""Groups that the published models do not have, and the field of OFAConfig that adds each."""


def check_groups(names: Sequence[str], where: str) -> None:
    """Raises ValueError for a group that there is not, with the nearest one."""
    for name in names:
        if name not in GROUPS:
            raise ValueError(
                f"{where} names {name!r}; known are {', '.join(GROUPS)}.{nearest(name, GROUPS)}"
            )


def in_groups(path: Path, names: Sequence[str]) -> bool:
    """Whether a parameter belongs to one of the groups."""
    return any(GROUPS[name](path) for name in names)


def trainable(params: Any, frozen: Sequence[str], trainable_groups: Sequence[str] | None) -> Any:
    """A tree of bool of the structure of `params`: what is in `trained` and not in `frozen`.

    Args:
      params: parameters, boxed or plain.
      frozen: names of groups.
      trained: names of groups; None for all.
    """

    def choose(key_path: Any, _: Any) -> bool:
        path = tuple(entry.key for entry in key_path if isinstance(entry, jax.tree_util.DictKey))
        return (trainable_groups is None or in_groups(path, trainable_groups)) and not in_groups(
            path, frozen
        )

    return jax.tree_util.tree_map_with_path(choose, params)


def stop_frozen(params: Any, frozen: Sequence[str], trainable_groups: Sequence[str] | None) -> Any:
    """The same values, without a gradient where nothing is learned: so it is not computed."""
    if not frozen and trainable_groups is None:
        return params
    return jax.tree.map(
        lambda x, learns: x if learns else jax.lax.stop_gradient(x),
        params,
        trainable(params, frozen, trainable_groups),
    )
