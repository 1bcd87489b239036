"""Lists every tensor of the official state dict once, with its place and shape in our variables.

torch keeps linear kernels as [out, in] and convolutions as [out, in, height, width]; ours are the
other way round, with the attention heads as an axis of their own. Nothing is renamed by pattern.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from ofa_jax.model import positions
from ofa_jax.model.config import OFAConfig

RESNET = "encoder.embed_images"
"""The name of the ResNet in the state dict; below it, names are torchvision's."""

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """One tensor: its official key, its path in our variables, and its two shapes.

    `order` permutes the official axes; the result is reshaped to `shape`. The official shape
    follows from both.

    Attributes:
      key: in the official state dict.
      path: in our variables, the collection first.
      shape: of our array.
      order: permutation of the official axes; () for none.
      permuted: shape of the official array after the permutation; None for `shape`.
    """

    key: str
    path: Path
    shape: tuple[int, ...]
    order: tuple[int, ...] = ()
    permuted: tuple[int, ...] | None = None

    def to_ours(self, array: np.ndarray) -> Float[np.ndarray, "..."]:
        """Converts the official array to ours, float32."""
        array = np.asarray(array, np.float32)
        if self.order:
            array = array.transpose(self.order)
        return np.ascontiguousarray(array.reshape(self.shape))

    def to_official(self, array: np.ndarray) -> Float[np.ndarray, "..."]:
        """Converts our array to the official one, float32. Raises ValueError for another shape."""
        array = np.asarray(array, np.float32)
        self.check_shape(array.shape)
        if self.permuted:
            array = array.reshape(self.permuted)
        if self.order:
            array = array.transpose(np.argsort(self.order))
        return np.ascontiguousarray(array)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless this is the shape of our array."""
        if shape != self.shape:
            raise ValueError(
                f"{'/'.join(self.path)} has shape {list(shape)}, this "
                f"configuration has {list(self.shape)}."
            )

    @property
    def official_shape(self) -> tuple[int, ...]:
        """The shape in the official state dict."""
        permuted = self.permuted or self.shape
        return tuple(permuted[i] for i in np.argsort(self.order)) if self.order else permuted


def tensor_entries(config: OFAConfig) -> Iterator[TensorEntry]:
    """Yields every learned tensor and every running statistic of a configuration, once."""
    yield from _table(
        "encoder.embed_tokens", ("params", "token_embedding"), config.vocab_size, config.width
    )
    yield from resnet_entries(config)
    yield from _Transformer(config).entries()


def _linear(
    key: str,
    path: Path,
    inputs: int,
    outputs: int,
    heads: tuple[int, int] | None = None,
    split: str = "",
) -> Iterator[TensorEntry]:
    """Yields kernel and bias of a linear layer.

    Args:
      key: of the layer.
      path: of the layer.
      inputs: width of the inputs.
      outputs: width of the outputs.
      heads: (number of heads, width of a head) of the side that is divided.
      split: "in" or "out", the side that is divided into heads; "" for none.
    """
    shape: tuple[int, ...] = (inputs, outputs)
    bias: tuple[int, ...] = (outputs,)
    if heads and split == "out":
        shape, bias = (inputs, *heads), heads
    elif heads and split == "in":
        shape = (*heads, outputs)
    yield TensorEntry(f"{key}.weight", (*path, "kernel"), shape, (1, 0), (inputs, outputs))
    yield TensorEntry(f"{key}.bias", (*path, "bias"), bias, (), (outputs,))


def _norm(key: str, path: Path, width: int) -> Iterator[TensorEntry]:
    yield TensorEntry(f"{key}.weight", (*path, "scale"), (width,))
    yield TensorEntry(f"{key}.bias", (*path, "bias"), (width,))


def _table(key: str, path: Path, rows: int, width: int) -> Iterator[TensorEntry]:
    yield TensorEntry(f"{key}.weight", (*path, "embedding"), (rows, width))


class _Transformer:
    """Lists the tensors of encoder and decoder."""

    def __init__(self, config: OFAConfig):
        self._config = config
        self._heads = (config.num_heads, config.head_dim)

    def entries(self) -> Iterator[TensorEntry]:
        """Yields them all."""
        c = self._config
        encoder, decoder = ("params", "encoder"), ("params", "decoder")
        yield from _linear(
            "encoder.image_proj", (*encoder, "image_projection"), c.patch_channels, c.width
        )
        if c.type_embedding:
            yield from _table("encoder.type_embedding", (*encoder, "type_embedding"), 2, c.width)
        if c.patch_norm:
            yield from _norm("encoder.patch_layernorm_embedding", (*encoder, "patch_norm"), c.width)
        if c.code_norm:
            yield from _norm("decoder.code_layernorm_embedding", (*decoder, "code_norm"), c.width)
        yield from self._stack("encoder", c.encoder_layers, c.max_source_positions)
        yield from self._stack("decoder", c.decoder_layers, c.max_target_positions)
        yield from self._position_projections("encoder", "")
        yield from self._position_projections("decoder", "self_")
        yield from self._position_projections("decoder", "cross_")
        for i in range(c.encoder_layers):
            yield from self._attention_block(
                f"encoder.layers.{i}",
                (*encoder, f"layer_{i}"),
                "self_attention",
                ("self_attn", "self_attn_layer_norm", "attn_ln"),
            )
        for i in range(c.decoder_layers):
            key, path = f"decoder.layers.{i}", (*decoder, f"layer_{i}")
            yield from self._attention_block(
                key, path, "self_attention", ("self_attn", "self_attn_layer_norm", "self_attn_ln")
            )
            yield from self._attention_block(
                key,
                path,
                "cross_attention",
                ("encoder_attn", "encoder_attn_layer_norm", "cross_attn_ln"),
            )

    def _stack(self, side: str, layers: int, positions_: int) -> Iterator[TensorEntry]:
        """Yields what encoder and decoder have alike: positions, relative tables, final norm."""
        c, path = self._config, ("params", side)
        yield from _table(
            f"{side}.embed_positions", (*path, "position_embedding"), positions_ + 2, c.width
        )
        yield from _table(
            f"{side}.embed_image_positions",
            (*path, "image_position_embedding"),
            c.image_bucket_size**2 + 1,
            c.width,
        )
        yield from _norm(f"{side}.pos_ln", (*path, "position_norm"), c.width)
        yield from _norm(f"{side}.image_pos_ln", (*path, "image_position_norm"), c.width)
        yield from _norm(f"{side}.layer_norm", (*path, "final_norm"), c.width)
        if c.text_norm:
            yield from _norm(f"{side}.layernorm_embedding", (*path, "text_norm"), c.width)
        for i in range(layers):
            tables = (*path, f"layer_{i}", "relative_positions")
            yield from _table(
                f"{side}.token_rel_pos_table_list.{i}",
                (*tables, "tokens"),
                2 * c.token_bucket_size - 1,
                c.num_heads,
            )
            yield from _table(
                f"{side}.image_rel_pos_table_list.{i}",
                (*tables, "images"),
                positions.num_image_relations(c.image_bucket_size),
                c.num_heads,
            )
            yield from self._feed_forward(f"{side}.layers.{i}", (*path, f"layer_{i}"))

    def _position_projections(self, side: str, kind: str) -> Iterator[TensorEntry]:
        for official, name in (("q", "query"), ("k", "key")):
            yield from _linear(
                f"{side}.{kind}pos_{official}_linear",
                ("params", side, f"{kind}position_{name}"),
                self._config.width,
                self._config.width,
                self._heads,
                "out",
            )

    def _feed_forward(self, key: str, path: Path) -> Iterator[TensorEntry]:
        c = self._config
        yield from _norm(f"{key}.final_layer_norm", (*path, "feed_forward_input_norm"), c.width)
        yield from _linear(f"{key}.fc1", (*path, "feed_forward", "expand"), c.width, c.ffn_width)
        yield from _linear(f"{key}.fc2", (*path, "feed_forward", "contract"), c.ffn_width, c.width)
        if c.scale_fc:
            yield from _norm(f"{key}.ffn_layernorm", (*path, "feed_forward", "norm"), c.ffn_width)
        if c.scale_resids:
            yield TensorEntry(f"{key}.w_resid", (*path, "residual_scale"), (c.width,))

    def _attention_block(
        self, key: str, path: Path, name: str, official: tuple[str, str, str]
    ) -> Iterator[TensorEntry]:
        """Yields an attention with its norms.

        Args:
          key: of the layer.
          path: of the layer.
          name: of the attention in our variables.
          official: names of the attention, of the norm before it and of the norm after it.
        """
        c, (module, before, after) = self._config, official
        attention = (*path, name)
        for letter, part in (("q", "query"), ("k", "key"), ("v", "value")):
            yield from _linear(
                f"{key}.{module}.{letter}_proj",
                (*attention, part),
                c.width,
                c.width,
                self._heads,
                "out",
            )
        yield from _linear(
            f"{key}.{module}.out_proj", (*attention, "output"), c.width, c.width, self._heads, "in"
        )
        if c.scale_heads:
            yield TensorEntry(f"{key}.{module}.c_attn", (*attention, "head_scale"), (c.num_heads,))
        yield from _norm(f"{key}.{before}", (*path, f"{name}_input_norm"), c.width)
        if c.scale_attn:
            yield from _norm(f"{key}.{after}", (*path, f"{name}_output_norm"), c.width)


def resnet_entries(config: OFAConfig) -> Iterator[TensorEntry]:
    """Yields the ResNet's kernels, norms and running statistics."""
    root, ours = RESNET, ("encoder", "resnet")
    width = config.resnet_width
    yield from _conv_norm(f"{root}.conv1", f"{root}.bn1", ours, "stem", (3, width, 7))
    inputs = width
    for stage, blocks in enumerate(config.resnet_layers):
        channels = width * 2**stage
        for block in range(blocks):
            key = f"{root}.layer{stage + 1}.{block}"
            path = (*ours, f"stage_{stage + 1}_block_{block}")
            shapes = (inputs, channels, 1), (channels, channels, 3), (channels, 4 * channels, 1)
            for n, shape in enumerate(shapes, 1):
                yield from _conv_norm(f"{key}.conv{n}", f"{key}.bn{n}", path, str(n), shape)
            if block == 0:
                shortcut = (inputs, 4 * channels, 1)
                yield from _conv_norm(
                    f"{key}.downsample.0", f"{key}.downsample.1", path, "shortcut", shortcut
                )
            inputs = 4 * channels


def _conv_norm(
    conv_key: str, norm_key: str, path: Path, name: str, shape: tuple[int, int, int]
) -> Iterator[TensorEntry]:
    """Yields a convolution (inputs, outputs, kernel size) and its batch norm."""
    inputs, outputs, size = shape
    kernel = ("params", *path, f"conv_{name}", "kernel")
    order = (2, 3, 1, 0)
    if size == 1:  # 1x1 convolutions are matrix products
        permuted = (1, 1, inputs, outputs)
        yield TensorEntry(f"{conv_key}.weight", kernel, (inputs, outputs), order, permuted)
    else:
        yield TensorEntry(f"{conv_key}.weight", kernel, (size, size, inputs, outputs), order)
    for suffix, collection, leaf in (
        ("weight", "params", "scale"),
        ("bias", "params", "bias"),
        ("running_mean", "batch_stats", "mean"),
        ("running_var", "batch_stats", "var"),
    ):
        yield TensorEntry(
            f"{norm_key}.{suffix}", (collection, *path, f"norm_{name}", leaf), (outputs,)
        )
