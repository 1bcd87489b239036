"""The encoder: embeds patches and instruction, and runs the encoder layers over both."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ofa_jax.model import positions
from ofa_jax.model.attention import head_projection
from ofa_jax.model.attention_positions import EncoderPositions, PatchPositions
from ofa_jax.model.attention_terms import PositionFactors
from ofa_jax.model.config import PATCH_STRIDE, OFAConfig
from ofa_jax.model.layers import (
    Dense,
    Embed,
    attention_implementation,
    bert_init,
    dtype_of,
    layer_norm,
    linear_drop_path_rates,
    with_activation_sharding,
    with_logical_axes,
)
from ofa_jax.model.resnet import ResNet, normalise_images
from ofa_jax.model.transformer import EncoderLayer, layer_stack

ModelInputs = Mapping[str, Any]
"""Arrays by feature name; `ofa_jax.model` lists the features with their shapes."""


class EncoderOutput(flax.struct.PyTreeNode):
    """The encoder's output, which the decoder attends to: patches first, then text tokens.

    Attributes:
      hidden: hidden states after the final LayerNorm.
      mask: False on padding and on the patches of examples without an image.
      position_embeddings: position embeddings after their LayerNorm, the same for all examples.
      position_indices: the row of `position_embeddings` of each position, if patches are sampled
        per example; None if position i has row i (then `rows` is `length`).
    """

    hidden: Float[Array, "batch length width"]
    mask: Bool[Array, "batch length"]
    position_embeddings: Float[Array, "rows width"]
    position_indices: Int[Array, "batch length"] | None = None

    def select(self, examples: Int[Array | np.ndarray, " new_batch"]) -> "EncoderOutput":
        """Selects, repeats or reorders examples by their indices."""
        return self._map_examples(lambda x: jnp.take(x, examples, axis=0))

    def repeat(self, times: int) -> "EncoderOutput":
        """Repeats each example `times` times in a row."""
        # Unlike `select`, repeating needs no communication when the batch is sharded.
        return self._map_examples(lambda x: jnp.repeat(x, times, axis=0))

    def _map_examples(self, function: Callable[[Array], Array]) -> "EncoderOutput":
        """Applies a function to the arrays whose leading axis is the batch."""
        indices = self.position_indices
        return self.replace(
            hidden=function(self.hidden),
            mask=function(self.mask),
            position_indices=None if indices is None else function(indices),
        )

    def positions_per_example(self) -> Float[Array, "batch length width"]:
        """Returns the position embeddings of each example."""
        if self.position_indices is None:
            return jnp.broadcast_to(self.position_embeddings, self.hidden.shape)
        return self.position_embeddings[self.position_indices]


class Encoder(nn.Module):
    """Embeds patches and text and runs the encoder layers over both."""

    config: OFAConfig

    @nn.compact
    def __call__(
        self, batch: ModelInputs, token_embeddings: Float[Array, "batch text width"], train: bool
    ) -> EncoderOutput:
        """Encodes a batch.

        Args:
          batch: see `ofa_jax.model`.
          token_embeddings: scaled embeddings of the instruction.
          train: whether dropout, stochastic depth and batch statistics are on.

        Returns:
          EncoderOutput.
        """
        c, dtype = self.config, dtype_of(self.config)
        tokens = batch["encoder_input_tokens"]
        length = tokens.shape[1]

        text_positions = Embed(
            c.max_source_positions + 2, c.width, ("positions", "embed"), name="position_embedding"
        )(np.arange(length))
        types = self._type_vectors()
        norm = layer_norm(dtype, "text_norm") if c.text_norm else None
        x = self._add_and_normalise(token_embeddings, text_positions, types[0], norm, train)
        mask = jnp.asarray(tokens != c.pad_id)
        embeddings = layer_norm(dtype, "position_norm")(text_positions)
        indices: Array | np.ndarray = np.arange(length)[None]

        images = self._embed_images(batch, types[1:], train) if "encoder_images" in batch else []
        for image in images:
            # Each image goes to the front: [second image, image, text].
            x = jnp.concatenate([image.hidden, x], axis=1)
            mask = jnp.concatenate([image.mask, mask], axis=1)
            indices = _concatenate(image.indices, indices + len(image.position_embeddings))
            embeddings = jnp.concatenate([image.position_embeddings, embeddings])

        x = with_activation_sharding(x * mask[..., None].astype(dtype), "batch", "length", "embed")
        # As long as no patches are sampled, position i of every example has row i.
        sampled_indices = None if isinstance(indices, np.ndarray) else indices
        encoder_positions = EncoderPositions(
            self._absolute_bias(embeddings, sampled_indices),
            tuple(image.patch_positions for image in reversed(images)),
            length,
        )
        rates = linear_drop_path_rates(c.encoder_drop_path_rate, c.encoder_layers)
        x = layer_stack(EncoderLayer, c, rates, x, encoder_positions, mask, train=train)
        return EncoderOutput(layer_norm(dtype, "final_norm")(x), mask, embeddings, sampled_indices)

    def _absolute_bias(
        self,
        embeddings: Float[Array, "rows width"],
        indices: Int[Array, "batch length"] | None,
    ) -> Float[Array, "#batch heads length length"] | PositionFactors:
        """Computes the absolute position bias that all layers share, or only its factors."""
        c = self.config
        query = head_projection(c, "position_query")(embeddings) * jnp.asarray(
            c.attention_scale, dtype_of(c)
        )
        key = head_projection(c, "position_key")(embeddings)
        # Project each position once, then gather the rows that each example has sampled.
        query, key = (h[None] if indices is None else h[indices] for h in (query, key))
        factors = PositionFactors(query, key)
        return factors.bias() if attention_implementation(c) == "bias" else factors

    def _type_vectors(self) -> list[Float[Array, " width"] | None]:
        """Returns the type vectors of text, image and second image."""
        c = self.config
        if not c.type_embedding:
            return [None, None]
        types: list[Array | None] = list(
            Embed(2, c.width, ("types", "embed"), name="type_embedding")()
        )
        if c.second_image:
            init = with_logical_axes(bert_init, ("embed",))
            types.append(self.param("second_image_type", init, (c.width,)))
        return types

    def _add_and_normalise(
        self,
        x: Array,
        position_embeddings: Array,
        type_vector: Array | None,
        norm: nn.Module | None,
        train: bool,
    ) -> Float[Array, "batch length width"]:
        """Adds positions (if entangled) and type, normalises and applies dropout."""
        c, dtype = self.config, dtype_of(self.config)
        if c.entangle_encoder_positions:
            x = x + position_embeddings.astype(dtype)
        if type_vector is not None:
            x = x + type_vector.astype(dtype)
        if norm is not None:
            x = norm(x)
        return nn.Dropout(c.dropout_rate)(x, deterministic=not train)

    def _embed_images(
        self, batch: ModelInputs, types: Sequence[Array | None], train: bool
    ) -> list["_EmbeddedImage"]:
        """Embeds the image and, if there is one, the second image with the same weights."""
        c, dtype = self.config, dtype_of(self.config)
        modules = _ImageModules(
            resnet=ResNet(c, name="resnet"),
            projection=Dense(
                (c.patch_channels,),
                (c.width,),
                ("conv_out",),
                ("embed",),
                dtype,
                name="image_projection",
            ),
            norm=layer_norm(dtype, "patch_norm") if c.patch_norm else None,
            position_table=Embed(
                c.image_bucket_size**2 + 1,
                c.width,
                ("positions", "embed"),
                name="image_position_embedding",
            ),
            position_norm=layer_norm(dtype, "image_position_norm"),
        )
        images = [self._embed_image(batch, "encoder_", modules, types[0], train)]
        if "encoder_second_images" in batch:
            images.append(self._embed_image(batch, "encoder_second_", modules, types[1], train))
        return images

    def _embed_image(
        self,
        batch: ModelInputs,
        prefix: str,
        modules: "_ImageModules",
        type_vector: Array | None,
        train: bool,
    ) -> "_EmbeddedImage":
        """Embeds the images whose features begin with `prefix`."""
        c, dtype = self.config, dtype_of(self.config)
        batch_size = batch["encoder_input_tokens"].shape[0]
        has_image = batch.get("encoder_image_mask")
        has_image = jnp.ones(batch_size, bool) if has_image is None else jnp.asarray(has_image)
        pixels = normalise_images(
            jnp.asarray(batch[f"{prefix}images"]), batch.get(f"{prefix}image_blank_boxes")
        )
        # The ResNet's batch is split over more devices than the Transformer's.
        patches = with_activation_sharding(
            modules.resnet(pixels, train), "batch", "height", "width", "channels"
        )
        grid = (patches.shape[1], patches.shape[2])
        patches = patches.reshape(batch_size, -1, c.patch_channels)
        sampled = batch.get(f"{prefix}patch_indices")
        num_patches = patches.shape[1] if sampled is None else sampled.shape[1]
        grid_embeddings = self._grid_position_embeddings(modules.position_table, grid, num_patches)
        indices: Array | np.ndarray
        if sampled is None:
            indices = np.arange(num_patches)[None]
            patch_embeddings = grid_embeddings
        else:
            sampled = indices = jnp.asarray(sampled)
            patches = jnp.take_along_axis(patches, indices[..., None], axis=1)
            patch_embeddings = grid_embeddings[indices]
        x = modules.projection(patches) * jnp.asarray(c.embedding_scale, dtype)
        return _EmbeddedImage(
            hidden=self._add_and_normalise(x, patch_embeddings, type_vector, modules.norm, train),
            mask=jnp.broadcast_to(has_image[:, None], (batch_size, num_patches)),
            position_embeddings=modules.position_norm(grid_embeddings),
            indices=indices,
            patch_positions=PatchPositions(sampled, grid),
        )

    def _grid_position_embeddings(
        self, table: Embed, grid: tuple[int, int], num_patches: int
    ) -> Float[Array, "rows*columns width"]:
        """Returns the position embeddings of the whole grid in float32."""
        c = self.config
        side = c.interpolation_image_size // PATCH_STRIDE
        if c.interpolate_positions and num_patches > side**2:
            small = table(positions.grid_position_ids(side, side, c.image_bucket_size))
            return positions.interpolate_positions(small.reshape(side, side, c.width), *grid)
        return table(positions.grid_position_ids(*grid, c.image_bucket_size))


@dataclasses.dataclass(frozen=True)
class _ImageModules:
    """Modules that embed images; both images of an example share them."""

    resnet: ResNet
    projection: Dense
    norm: nn.Module | None
    position_table: Embed
    position_norm: nn.Module


@dataclasses.dataclass(frozen=True)
class _EmbeddedImage:
    """An embedded image.

    Attributes:
      hidden: embedded patches.
      mask: False for examples without an image.
      position_embeddings: position embeddings of the whole grid, after their LayerNorm.
      indices: the row of `position_embeddings` of each patch; one row of numpy if all examples have
        the same.
      patch_positions: positions for the relative bias.
    """

    hidden: Float[Array, "batch patches width"]
    mask: Bool[Array, "batch patches"]
    position_embeddings: Float[Array, "rows*columns width"]
    indices: Int[Array | np.ndarray, "#batch patches"]
    patch_positions: PatchPositions


def _concatenate(first: Array | np.ndarray, second: Array | np.ndarray) -> Array | np.ndarray:
    """Concatenates index arrays [B, N] and [B, L]; numpy, with one row, if both are."""
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return np.concatenate([first, second], axis=1)
    rows = max(first.shape[0], second.shape[0])
    return jnp.concatenate(
        [
            np.broadcast_to(x, (rows, x.shape[1])) if isinstance(x, np.ndarray) else x
            for x in (first, second)
        ],
        axis=1,
    )
