"""The original's (fairseq's) arguments and state dict, to our configuration and variables and back.

torch keeps linear kernels as [out, in], convolutions as [out, in, height, width]; ours are the
other way round, with the attention heads as an axis of their own. Nothing is renamed by pattern:
`_entries` lists every tensor once, with the way from one shape to the other.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import flax
import numpy as np

from ofa_jax.model import positions
from ofa_jax.model.config import RELATIVE_POSITION_RANGE, OFAConfig

RESNETS = {"resnet18": (2, 2, 2), "resnet34": (3, 4, 6), "resnet50": (3, 4, 6),
           "resnet101": (3, 4, 23), "resnet152": (3, 8, 36)}
"""Blocks of the first three stages; the original uses bottlenecks for the small ones as well."""

_TIED = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
_EMBEDDING = "encoder.embed_tokens.weight"


def config_from_fairseq(args: Mapping[str, Any], vocab_size: int) -> OFAConfig:
    """The configuration of a model that the original's arguments describe.

    Args:
      args: the arguments after the architecture function filled them in (`vars(args)`, or the
        `cfg.model` of a checkpoint). What is absent has the original's default.
      vocab_size: length of the dictionary.

    Returns:
      OFAConfig.

    Raises:
      ValueError: for an option that the released models do not use and that is not built here.
    """
    def get(name: str, default: Any = None) -> Any:
        value = args.get(name, default)
        return default if value is None else value

    _refuse_unsupported(args)
    return OFAConfig(
        vocab_size=vocab_size,
        width=get("encoder_embed_dim", 512),
        ffn_width=get("encoder_ffn_embed_dim", 2048),
        num_heads=get("encoder_attention_heads", 8),
        encoder_layers=get("encoder_layers", 6),
        decoder_layers=get("decoder_layers", 6),
        resnet_layers=RESNETS[get("resnet_type", "resnet101")],
        max_source_positions=get("max_source_positions", 1024),
        max_target_positions=get("max_target_positions", 1024),
        token_bucket_size=get("token_bucket_size", 256),
        image_bucket_size=get("image_bucket_size", 42),
        code_image_size=get("code_image_size", 128),
        attn_scale_factor=float(get("attn_scale_factor", 2)),
        scale_attn=bool(get("scale_attn", False)),
        scale_fc=bool(get("scale_fc", False)),
        scale_heads=bool(get("scale_heads", False)),
        scale_resids=bool(get("scale_resids", False)),
        scale_embedding=not get("no_scale_embedding", False),
        entangle_encoder_positions=bool(get("entangle_position_embedding", False)),
        # The original's decoder looks at the second flag alone.
        entangle_decoder_positions=not get("disable_entangle", False),
        interpolate_positions=bool(get("interpolate_position", False)),
        interpolation_image_size=get("orig_patch_image_size", 256),
        type_embedding=bool(get("add_type_embedding", False)),
        text_norm=bool(get("layernorm_embedding", False)),
        patch_norm=bool(get("patch_layernorm_embedding", False)),
        code_norm=bool(get("code_layernorm_embedding", False)),
        activation=get("activation_fn", "relu"),
        dropout_rate=float(get("dropout", 0.1)),
        attention_dropout_rate=float(get("attention_dropout", 0.0)),
        activation_dropout_rate=float(get("activation_dropout", 0.0) or get("relu_dropout", 0.0)),
        encoder_drop_path_rate=float(get("encoder_drop_path_rate", 0.0)),
        decoder_drop_path_rate=float(get("decoder_drop_path_rate", 0.0)),
        resnet_drop_path_rate=float(get("resnet_drop_path_rate", 0.0)),
        freeze_batch_norm=bool(get("freeze_resnet", False)),
    )


def _refuse_unsupported(args: Mapping[str, Any]) -> None:
    """Raises ValueError naming every option that changes the model and is not built here."""
    required = {"encoder_normalize_before": True, "decoder_normalize_before": True,
                "share_all_embeddings": True}
    forbidden = ("adaptive_input", "adaptive_softmax_cutoff", "encoder_prompt", "decoder_prompt",
                 "adapter", "no_cross_attention", "cross_self_attention", "quant_noise_pq",
                 "quant_noise_scalar", "encoder_layerdrop", "decoder_layerdrop",
                 "encoder_layers_to_keep", "decoder_layers_to_keep", "use_bias_kv")
    equal = (("encoder_embed_dim", "decoder_embed_dim"), ("encoder_embed_dim", "decoder_input_dim"),
             ("encoder_embed_dim", "decoder_output_dim"),
             ("encoder_ffn_embed_dim", "decoder_ffn_embed_dim"),
             ("encoder_attention_heads", "decoder_attention_heads"))
    wrong = [f"{name}={args.get(name)!r} (must be {value})" for name, value in required.items()
             if bool(args.get(name, False)) != value]
    wrong += [f"{name}={args[name]!r} (must be off)" for name in forbidden if args.get(name)]
    wrong += [f"{a}={args[a]} and {b}={args[b]} (must be equal)" for a, b in equal
              if args.get(a) is not None and args.get(b) is not None and args[a] != args[b]]
    if (resnet := args.get("resnet_type") or "resnet101") not in RESNETS:
        wrong.append(f"resnet_type={resnet!r} (must be one of {', '.join(RESNETS)})")
    if args.get("code_layernorm_embedding") and not args.get("layernorm_embedding"):
        wrong.append("code_layernorm_embedding without layernorm_embedding (the original would "
                     "never apply it)")
    if wrong:
        raise ValueError("this OFA variant is not supported: " + "; ".join(wrong) + ".")


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
        array = np.asarray(array)
        if array.shape != self.official_shape:
            raise ValueError(
                f"{self.key} has shape {list(array.shape)}, this configuration needs "
                f"{list(self.official_shape)}; do the arguments belong to the checkpoint?")
        array = array.astype(np.float32)
        return np.ascontiguousarray(
            (array.transpose(self.order) if self.order else array).reshape(self.shape))

    def official(self, array: np.ndarray) -> np.ndarray:
        array = np.asarray(array, np.float32)
        if array.shape != self.shape:
            raise ValueError(f"{'/'.join(self.path)} has shape {list(array.shape)}, this "
                             f"configuration has {list(self.shape)}.")
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
        yield from table(f"{side}.embed_image_positions", (*path, "image_position_embedding"),
                         c.image_bucket_size**2 + 1)
        yield from norm(f"{side}.pos_ln", (*path, "position_norm"))
        yield from norm(f"{side}.image_pos_ln", (*path, "image_position_norm"))
        yield from norm(f"{side}.layer_norm", (*path, "final_norm"))
        if c.text_norm:
            yield from norm(f"{side}.layernorm_embedding", (*path, "text_norm"))
        for i in range(layers):
            tables = (*path, f"layer_{i}", "relative_positions")
            yield from table(f"{side}.token_rel_pos_table_list.{i}", (*tables, "tokens"),
                             2 * c.token_bucket_size - 1, heads)
            yield from table(f"{side}.image_rel_pos_table_list.{i}", (*tables, "images"),
                             positions.num_image_relations(c.image_bucket_size), heads)
            yield from feed_forward(f"{side}.layers.{i}", (*path, f"layer_{i}"))

    yield from table("encoder.embed_tokens", ("params", "token_embedding"), c.vocab_size)
    yield from _resnet_entries(c)
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
                yield from linear(f"{side}.{kind}pos_{theirs}_linear",
                                  ("params", side, f"{kind}position_{name}"), d, d, "out")
    for i in range(c.encoder_layers):
        yield from attention_block(
            f"encoder.layers.{i}", (*encoder, f"layer_{i}"), "self_attention", "self_attn",
            "self_attn_layer_norm", "attn_ln")
    for i in range(c.decoder_layers):
        key, path = f"decoder.layers.{i}", (*decoder, f"layer_{i}")
        yield from attention_block(key, path, "self_attention", "self_attn",
                                   "self_attn_layer_norm", "self_attn_ln")
        yield from attention_block(key, path, "cross_attention", "encoder_attn",
                                   "encoder_attn_layer_norm", "cross_attn_ln")


def _resnet_entries(config: OFAConfig) -> Iterator[_Entry]:
    """The image encoder's kernels, norms and running statistics."""
    root, ours = "encoder.embed_images", ("encoder", "resnet")

    def conv_norm(conv_key, norm_key, path, name, inputs, outputs, size):
        kernel = ("params", *path, f"conv_{name}", "kernel")
        if size == 1:
            yield _Entry(f"{conv_key}.weight", kernel, (inputs, outputs), (2, 3, 1, 0),
                         (1, 1, inputs, outputs))
        else:
            yield _Entry(f"{conv_key}.weight", kernel, (size, size, inputs, outputs), (2, 3, 1, 0))
        for suffix, collection, leaf in (
                ("weight", "params", "scale"), ("bias", "params", "bias"),
                ("running_mean", "batch_stats", "mean"), ("running_var", "batch_stats", "var")):
            yield _Entry(f"{norm_key}.{suffix}", (collection, *path, f"norm_{name}", leaf),
                         (outputs,))

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
                yield from conv_norm(f"{key}.downsample.0", f"{key}.downsample.1", path, "shortcut",
                                     inputs, 4 * channels, 1)
            inputs = 4 * channels


def _buffers(config: OFAConfig) -> dict[str, np.ndarray]:
    """What the official state dict holds besides: index tables, format versions, step counts."""
    c = config
    buffers = {}
    for side in ("encoder", "decoder"):
        buffers[f"{side}.version"] = np.array([3.0], np.float32)
        buffers[f"{side}.token_rp_bucket"] = positions.token_bucket_table(
            c.token_bucket_size, RELATIVE_POSITION_RANGE).astype(np.int64)
        buffers[f"{side}.image_rp_bucket"] = positions.image_bucket_table(
            c.image_bucket_size).astype(np.int64)
    buffers["decoder.image_position_idx"] = positions.code_position_ids(
        c.code_grid, c.image_bucket_size).astype(np.int64)
    for entry in _resnet_entries(c):
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
    missing = sorted(keys - state_dict.keys())
    unknown = sorted(state_dict.keys() - keys - optional)
    if missing or unknown:
        raise ValueError(
            f"the state dict does not fit this configuration: {_names(missing)} missing, "
            f"{_names(unknown)} unknown; do the arguments belong to the checkpoint?")
    for key in _TIED:
        if key in state_dict and not np.array_equal(
                np.asarray(state_dict[key]), np.asarray(state_dict[_EMBEDDING])):
            raise ValueError(f"{key} differs from {_EMBEDDING}; OFA shares one embedding.")
    return flax.traverse_util.unflatten_dict(
        {entry.path: entry.ours(state_dict[entry.key]) for entry in entries})


def to_fairseq(variables: Mapping[str, Any], config: OFAConfig) -> dict[str, np.ndarray]:
    """The original's state dict from our variables: the inverse of `from_fairseq`.

    Args:
      variables: {"params": ..., "batch_stats": ...}, boxed or plain.
      config: the model's.

    Returns:
      Numpy arrays by official key, with tied copies, index tables, versions and batch counts (0:
      they are not kept).

    Raises:
      ValueError: for variables that do not fit the configuration.
    """
    flat = flax.traverse_util.flatten_dict(flax.core.unfreeze(
        flax.linen.meta.unbox(dict(variables))))
    entries = list(_entries(config))
    paths = {entry.path for entry in entries}
    missing, unknown = (sorted("/".join(p) for p in s)
                        for s in (paths - flat.keys(), flat.keys() - paths))
    if missing or unknown:
        raise ValueError(f"the variables do not fit this configuration: {_names(missing)} missing, "
                         f"{_names(unknown)} unknown.")
    state_dict = {entry.key: entry.official(flat[entry.path]) for entry in entries}
    state_dict |= {key: state_dict[_EMBEDDING] for key in _TIED}
    return state_dict | _buffers(config)


def _names(keys: list[str]) -> str:
    if not keys:
        return "nothing"
    shown = ", ".join(keys[:5])
    return shown if len(keys) <= 5 else f"{shown} and {len(keys) - 5} more"
