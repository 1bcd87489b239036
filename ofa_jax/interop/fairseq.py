"""The original's (fairseq's) state dict, to our variables and back.

torch keeps linear kernels as [out, in], convolutions as [out, in, height, width]; ours are the
other way round, with the attention heads as an axis of their own. Nothing is renamed by pattern:
`_entries` lists every tensor once, with the way from one shape to the other.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import flax
import numpy as np

from ofa_jax.model import layout, positions
from ofa_jax.model.config import RELATIVE_POSITION_RANGE, OFAConfig

_TIED = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
_EMBEDDING = "encoder.embed_tokens.weight"

RESNET = "encoder.embed_images"
"""What the original calls the ResNet; within it, names are torchvision's."""


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One tensor: its official key, its path in our variables, and its two shapes.

    `order` permutes the official axes; the result is reshaped to `shape`. The official shape
    follows from both.
    """

    key: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    order: tuple[int, ...] = ()
    permuted: tuple[int, ...] | None = None

    def ours(self, array: np.ndarray) -> np.ndarray:
        array = np.asarray(array, np.float32)
        return np.ascontiguousarray(
            (array.transpose(self.order) if self.order else array).reshape(self.shape)
        )

    def official(self, array: np.ndarray) -> np.ndarray:
        array = np.asarray(array, np.float32)
        if array.shape != self.shape:
            raise ValueError(
                f"{'/'.join(self.path)} has shape {list(array.shape)}, this "
                f"configuration has {list(self.shape)}."
            )
        if self.permuted:
            array = array.reshape(self.permuted)
        if self.order:
            array = array.transpose(np.argsort(self.order))
        return np.ascontiguousarray(array)

    @property
    def official_shape(self) -> tuple[int, ...]:
        permuted = self.permuted or self.shape
        return tuple(permuted[i] for i in np.argsort(self.order)) if self.order else permuted


def _entries(config: OFAConfig) -> Iterator[_Entry]:
    """Every learned tensor and every running statistic of a configuration, once."""
    c = config
    d, heads, k = c.width, c.num_heads, c.head_dim

    def linear(key, path, inputs, outputs, split=None):
        """A Linear; `split` names the side that is divided into heads."""
        shape = (inputs, outputs)
        if split:
            shape = (inputs, heads, k) if split == "out" else (heads, k, outputs)
        yield _Entry(f"{key}.weight", (*path, "kernel"), shape, (1, 0), (inputs, outputs))
        bias = (heads, k) if split == "out" else (outputs,)
        yield _Entry(f"{key}.bias", (*path, "bias"), bias, (), (outputs,))

    def norm(key, path, width=d):
        yield _Entry(f"{key}.weight", (*path, "scale"), (width,))
        yield _Entry(f"{key}.bias", (*path, "bias"), (width,))

    def table(key, path, rows, width=d):
        yield _Entry(f"{key}.weight", (*path, "embedding"), (rows, width))

    def attention(key, path):
        for theirs, name in (("q", "query"), ("k", "key"), ("v", "value")):
            yield from linear(f"{key}.{theirs}_proj", (*path, name), d, d, "out")
        yield from linear(f"{key}.out_proj", (*path, "output"), d, d, "in")
        if c.scale_heads:
            yield _Entry(f"{key}.c_attn", (*path, "head_scale"), (heads,))

    def feed_forward(key, path):
        yield from norm(f"{key}.final_layer_norm", (*path, "feed_forward_input_norm"))
        yield from linear(f"{key}.fc1", (*path, "feed_forward", "expand"), d, c.ffn_width)
        yield from linear(f"{key}.fc2", (*path, "feed_forward", "contract"), c.ffn_width, d)
        if c.scale_fc:
            yield from norm(f"{key}.ffn_layernorm", (*path, "feed_forward", "norm"), c.ffn_width)
        if c.scale_resids:
            yield _Entry(f"{key}.w_resid", (*path, "residual_scale"), (d,))

    def attention_block(key, path, ours, module, before, after):
        yield from attention(f"{key}.{module}", (*path, ours))
        yield from norm(f"{key}.{before}", (*path, f"{ours}_input_norm"))
        if c.scale_attn:
            yield from norm(f"{key}.{after}", (*path, f"{ours}_output_norm"))

    def stack(side, layers):
        """What encoder and decoder have alike: positions, relative tables, final norm."""
        path = ("params", side)
        rows = c.max_source_positions if side == "encoder" else c.max_target_positions
        yield from table(f"{side}.embed_positions", (*path, "position_embedding"), rows + 2)
        yield from table(
            f"{side}.embed_image_positions",
            (*path, "image_position_embedding"),
            c.image_bucket_size**2 + 1,
        )
        yield from norm(f"{side}.pos_ln", (*path, "position_norm"))
        yield from norm(f"{side}.image_pos_ln", (*path, "image_position_norm"))
        yield from norm(f"{side}.layer_norm", (*path, "final_norm"))
        if c.text_norm:
            yield from norm(f"{side}.layernorm_embedding", (*path, "text_norm"))
        for i in range(layers):
            tables = (*path, f"layer_{i}", "relative_positions")
            yield from table(
                f"{side}.token_rel_pos_table_list.{i}",
                (*tables, "tokens"),
                2 * c.token_bucket_size - 1,
                heads,
            )
            yield from table(
                f"{side}.image_rel_pos_table_list.{i}",
                (*tables, "images"),
                positions.num_image_relations(c.image_bucket_size),
                heads,
            )
            yield from feed_forward(f"{side}.layers.{i}", (*path, f"layer_{i}"))

    yield from table("encoder.embed_tokens", ("params", "token_embedding"), c.vocab_size)
    yield from resnet_entries(c)
    encoder, decoder = ("params", "encoder"), ("params", "decoder")
    yield from linear("encoder.image_proj", (*encoder, "image_projection"), c.patch_channels, d)
    if c.type_embedding:
        yield from table("encoder.type_embedding", (*encoder, "type_embedding"), 2)
    if c.patch_norm:
        yield from norm("encoder.patch_layernorm_embedding", (*encoder, "patch_norm"))
    if c.code_norm:
        yield from norm("decoder.code_layernorm_embedding", (*decoder, "code_norm"))
    yield from stack("encoder", c.encoder_layers)
    yield from stack("decoder", c.decoder_layers)
    for side, kinds in (("encoder", ("",)), ("decoder", ("self_", "cross_"))):
        for kind in kinds:
            for theirs, name in (("q", "query"), ("k", "key")):
                yield from linear(
                    f"{side}.{kind}pos_{theirs}_linear",
                    ("params", side, f"{kind}position_{name}"),
                    d,
                    d,
                    "out",
                )
    for i in range(c.encoder_layers):
        yield from attention_block(
            f"encoder.layers.{i}",
            (*encoder, f"layer_{i}"),
            "self_attention",
            "self_attn",
            "self_attn_layer_norm",
            "attn_ln",
        )
    for i in range(c.decoder_layers):
        key, path = f"decoder.layers.{i}", (*decoder, f"layer_{i}")
        yield from attention_block(
            key, path, "self_attention", "self_attn", "self_attn_layer_norm", "self_attn_ln"
        )
        yield from attention_block(
            key, path, "cross_attention", "encoder_attn", "encoder_attn_layer_norm", "cross_attn_ln"
        )


def resnet_entries(config: OFAConfig) -> Iterator[_Entry]:
    """The image encoder's kernels, norms and running statistics."""
    root, ours = RESNET, ("encoder", "resnet")

    def conv_norm(conv_key, norm_key, path, name, inputs, outputs, size):
        kernel = ("params", *path, f"conv_{name}", "kernel")
        if size == 1:
            yield _Entry(
                f"{conv_key}.weight",
                kernel,
                (inputs, outputs),
                (2, 3, 1, 0),
                (1, 1, inputs, outputs),
            )
        else:
            yield _Entry(f"{conv_key}.weight", kernel, (size, size, inputs, outputs), (2, 3, 1, 0))
        for suffix, collection, leaf in (
            ("weight", "params", "scale"),
            ("bias", "params", "bias"),
            ("running_mean", "batch_stats", "mean"),
            ("running_var", "batch_stats", "var"),
        ):
            yield _Entry(
                f"{norm_key}.{suffix}", (collection, *path, f"norm_{name}", leaf), (outputs,)
            )

    width = config.resnet_width
    yield from conv_norm(f"{root}.conv1", f"{root}.bn1", ours, "stem", 3, width, 7)
    inputs = width
    for stage, blocks in enumerate(config.resnet_layers):
        channels = width * 2**stage
        for block in range(blocks):
            key = f"{root}.layer{stage + 1}.{block}"
            path = (*ours, f"stage_{stage + 1}_block_{block}")
            shapes = (inputs, channels, 1), (channels, channels, 3), (channels, 4 * channels, 1)
            for n, (i, o, size) in enumerate(shapes, 1):
                yield from conv_norm(f"{key}.conv{n}", f"{key}.bn{n}", path, str(n), i, o, size)
            if block == 0:
                yield from conv_norm(
                    f"{key}.downsample.0",
                    f"{key}.downsample.1",
                    path,
                    "shortcut",
                    inputs,
                    4 * channels,
                    1,
                )
            inputs = 4 * channels


def _buffers(config: OFAConfig) -> dict[str, np.ndarray]:
    """What the official state dict holds besides: index tables, format versions, step counts."""
    c = config
    buffers = {}
    for side in ("encoder", "decoder"):
        buffers[f"{side}.version"] = np.array([3.0], np.float32)
        buffers[f"{side}.token_rp_bucket"] = positions.token_bucket_table(
            c.token_bucket_size, RELATIVE_POSITION_RANGE
        ).astype(np.int64)
        buffers[f"{side}.image_rp_bucket"] = positions.image_bucket_table(
            c.image_bucket_size
        ).astype(np.int64)
    buffers["decoder.image_position_idx"] = positions.code_position_ids(
        c.code_grid, c.image_bucket_size
    ).astype(np.int64)
    for entry in resnet_entries(c):
        if entry.key.endswith("running_var"):
            buffers[entry.key.replace("running_var", "num_batches_tracked")] = np.array(0, np.int64)
    return buffers


def from_fairseq(state_dict: Mapping[str, np.ndarray], config: OFAConfig) -> dict[str, Any]:
    """Our variables from the original's state dict.

    Args:
      state_dict: arrays by official key (torch tensors on the CPU also work); index tables,
        versions, batch counts and the two tied copies of the embedding may be absent.
      config: as `config_from_fairseq` gives it.

    Returns:
      {"params": ..., "batch_stats": ...} of float32 numpy arrays.

    Raises:
      ValueError: for tensors that are missing, unknown or of the wrong shape.
    """
    entries = list(_entries(config))
    optional = _buffers(config).keys() | set(_TIED)
    keys = {entry.key for entry in entries}
    rows = np.shape(state_dict.get(_EMBEDDING, ()))
    if rows and rows[0] != config.vocab_size:
        raise ValueError(
            f"the checkpoint has a vocabulary of {rows[0]} ids, and the model one of "
            f"{config.vocab_size}: give the model the checkpoint's vocabulary, or extend the "
            "checkpoint's embedding (`resize_vocabulary`, or `python -m tools.convert_checkpoint "
            f"--vocab_size={config.vocab_size}`)."
        )
    problems = [
        ("missing", sorted(keys - state_dict.keys())),
        ("not expected", sorted(state_dict.keys() - keys - optional)),
        (
            "misshapen",
            [
                f"{e.key} {list(np.shape(state_dict[e.key]))} (must be {list(e.official_shape)})"
                for e in entries
                if e.key in state_dict and np.shape(state_dict[e.key]) != e.official_shape
            ],
        ),
    ]
    if any(names for _, names in problems):
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems if names)
        raise ValueError(
            "the state dict does not fit this configuration, do the arguments belong to it? "
            f"{listed}."
        )
    for key in _TIED:
        if key in state_dict and not np.array_equal(
            np.asarray(state_dict[key]), np.asarray(state_dict[_EMBEDDING])
        ):
            raise ValueError(f"{key} differs from {_EMBEDDING}; OFA shares one embedding.")
    return layout.from_plain(
        flax.traverse_util.unflatten_dict(
            {entry.path: entry.ours(state_dict[entry.key]) for entry in entries}
        ),
        config,
    )


def to_fairseq(variables: Mapping[str, Any], config: OFAConfig) -> dict[str, np.ndarray]:
    """The original's state dict from our variables: the inverse of `from_fairseq`.

    Args:
      variables: {"params": ..., "batch_stats": ...}, boxed or plain.
      config: the model's.

    Returns:
      Numpy arrays by official key, with tied copies, index tables, versions and batch counts (0:
      they are not kept).

    Raises:
      ValueError: for variables that do not fit the configuration, or that the original lacks.
    """
    added = [
        name for name in ("prefix_length", "adapter_width", "second_image") if getattr(config, name)
    ]
    if added:
        raise ValueError(
            f"the original's layout has no place for what OFAConfig.{', '.join(added)} adds to the "
            "model: keep this checkpoint in our own layout."
        )
    flat = flax.traverse_util.flatten_dict(
        layout.to_plain(flax.core.unfreeze(flax.linen.meta.unbox(dict(variables))), config)
    )
    entries = list(_entries(config))
    paths = {entry.path for entry in entries}
    missing, unknown = (
        sorted("/".join(p) for p in s) for s in (paths - flat.keys(), flat.keys() - paths)
    )
    if missing or unknown:
        raise ValueError(
            f"the variables do not fit this configuration: {_names(missing)} missing, "
            f"{_names(unknown)} unknown."
        )
    state_dict = {entry.key: entry.official(flat[entry.path]) for entry in entries}
    state_dict |= {key: state_dict[_EMBEDDING] for key in _TIED}
    return state_dict | _buffers(config)


def resize_vocabulary(
    state_dict: Mapping[str, np.ndarray], vocab_size: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """A state dict whose embedding has other many rows, the new ones at the end.

    As the original extends it: new rows are drawn from N(0, 1/d). Codes and bins come last in the
    vocabulary, so that more bins may be added; rows may not be taken away.

    Args:
      state_dict: the original's.
      vocab_size: the new number of rows.
      seed: of the new rows.

    Raises:
      ValueError: the vocabulary would shrink.
    """
    old = np.asarray(state_dict[_EMBEDDING])
    added = vocab_size - len(old)
    if added < 0:
        raise ValueError(
            f"the checkpoint has a vocabulary of {len(old)} ids: it cannot be cut to {vocab_size}, "
            "which would take the meaning of the ids away."
        )
    rows = np.random.default_rng(seed).normal(0, old.shape[1] ** -0.5, (added, old.shape[1]))
    embedding = np.concatenate([old, rows.astype(old.dtype)])
    tied = {key: embedding for key in (_EMBEDDING, *_TIED) if key in state_dict}
    return dict(state_dict) | tied


def initialise_from_bart(
    state_dict: Mapping[str, np.ndarray], bart: Mapping[str, np.ndarray], mask_id: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The text part of a new model from BART (Lewis et al. 2020), as the paper begins.

    Every tensor of BART that has a namesake of the same shape is taken. The first rows of the
    vocabularies agree (bos, pad, eos, unk, then GPT-2's BPE in one order); BART has `<mask>` last.

    Args:
      state_dict: of a new model, fairseq's names.
      bart: BART's state dict, fairseq's names.
      mask_id: `<mask>` in this model's vocabulary.

    Returns:
      (the state dict, the names that were taken).

    Raises:
      ValueError: BART is of another width.
    """
    ours, theirs = np.asarray(state_dict[_EMBEDDING]), np.asarray(bart[_EMBEDDING])
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"BART is {theirs.shape[1]} wide and this model {ours.shape[1]}: bart.base fits "
            "OFA-base, bart.large fits OFA-large."
        )
    embedding = ours.copy()
    shared = min(len(theirs) - 1, mask_id)
    embedding[:shared] = theirs[:shared]
    embedding[mask_id] = theirs[-1]
    result = dict(state_dict) | {key: embedding for key in (_EMBEDDING, *_TIED)}
    taken = [
        key
        for key, array in bart.items()
        if key in result
        and key not in (_EMBEDDING, *_TIED)
        and "version" not in key
        and np.shape(array) == np.shape(result[key])
    ]
    return result | {key: np.asarray(bart[key], np.float32) for key in taken}, [_EMBEDDING, *taken]


def _names(keys: list[str]) -> str:
    if not keys:
        return "nothing"
    shown = ", ".join(keys[:5])
    return shown if len(keys) <= 5 else f"{shown} and {len(keys) - 5} more"
