"""The encoder: patches and instruction embedded, positions kept apart, the layers over both."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.model import positions
from ofa_jax.model.attention import as_keys, head_projection, score
from ofa_jax.model.config import PATCH_STRIDE, OFAConfig
from ofa_jax.model.layers import (
    Dense,
    Embed,
    bert_init,
    dtype_of,
    layer_norm,
    linear_rates,
    with_activation_sharding,
)
from ofa_jax.model.resnet import ResNet, normalise_images
from ofa_jax.model.transformer import EncoderLayer, EncoderPositions, PatchPositions, layer_stack

Batch = Mapping[str, Any]


@flax.struct.dataclass
class EncoderOutput:
    """What the decoder reads. L is patches plus text tokens, patches first.

    Attributes:
      hidden: [B, L, d], after the final LayerNorm.
      mask: bool [B, L], False on padding and on the patches of examples without an image.
      position_embeddings: [P, d], after their LayerNorm; they are the same for all examples.
      position_indices: int32 [B, L], the row of position_embeddings of each place, where patches
        are chosen per example; None where place i has row i (P = L).
    """

    hidden: jax.Array
    mask: jax.Array
    position_embeddings: jax.Array
    position_indices: jax.Array | None = None

    def select(self, rows: jax.Array) -> "EncoderOutput":
        """Picks, repeats or reorders examples (beams): int [B'] to an output of B' examples."""
        indices = self.position_indices
        return self.replace(
            hidden=jnp.take(self.hidden, rows, axis=0),
            mask=jnp.take(self.mask, rows, axis=0),
            position_indices=None if indices is None else jnp.take(indices, rows, axis=0),
        )

    def repeat(self, times: int) -> "EncoderOutput":
        """Each example `times` times, side by side: what G answers to it read."""
        indices = self.position_indices
        # Not `select`: repeating stays on its device where the batch is split.
        return self.replace(
            hidden=jnp.repeat(self.hidden, times, axis=0),
            mask=jnp.repeat(self.mask, times, axis=0),
            position_indices=None if indices is None else jnp.repeat(indices, times, axis=0),
        )

    def positions_per_example(self) -> jax.Array:
        """[B, L, d], the position embeddings spelled out."""
        if self.position_indices is None:
            return jnp.broadcast_to(self.position_embeddings, self.hidden.shape)
        return self.position_embeddings[self.position_indices]


class Encoder(nn.Module):
    """Embeds patches and text and runs the encoder layers over both."""

    config: OFAConfig

    @nn.compact
    def __call__(self, batch: Batch, token_embeddings: jax.Array, train: bool) -> EncoderOutput:
        """Encodes.

        Args:
          batch: see `OFA`.
          token_embeddings: [B, S, d], already scaled.
          train: whether dropout, stochastic depth and batch statistics are on.

        Returns:
          EncoderOutput.
        """
        c, dtype = self.config, dtype_of(self.config)
        tokens = batch["encoder_input_tokens"]
        batch_size, length = tokens.shape

        text_positions = Embed(
            c.max_source_positions + 2, c.width, ("positions", "embed"), name="position_embedding"
        )(np.arange(length))
        types = self._types()
        norm = layer_norm(dtype, "text_norm") if c.text_norm else None
        x = self._embed(token_embeddings, text_positions, types[0], norm, train)
        mask = jnp.asarray(tokens != c.pad_id)
        embeddings = layer_norm(dtype, "position_norm")(text_positions)
        indices = np.broadcast_to(np.arange(length), (batch_size, length))

        embedded_images = (
            self._embed_images(batch, types[1:], train) if "encoder_images" in batch else []
        )
        for image in embedded_images:
            # What is there moves back: [second image, image, text].
            x = jnp.concatenate([image.hidden, x], axis=1)
            mask = jnp.concatenate([image.mask, mask], axis=1)
            indices = _join(image.indices, indices + len(image.position_embeddings))
            embeddings = jnp.concatenate([image.position_embeddings, embeddings])

        x = with_activation_sharding(x * mask[..., None].astype(dtype), "batch", "length", "embed")
        # Without sampling place i of every example has position i.
        indices = None if isinstance(indices, np.ndarray) else indices
        query = head_projection(c, "position_query")(embeddings) * jnp.asarray(
            c.attention_scale, dtype
        )
        key = head_projection(c, "position_key")(embeddings)
        # Project each position once, then spread over the examples that sampled it.
        query, key = (h[None] if indices is None else h[indices] for h in (query, key))
        where = EncoderPositions(
            score(query, as_keys(key)),
            tuple(image.where for image in reversed(embedded_images)),
            length,
        )
        rates = linear_rates(c.encoder_drop_path_rate, c.encoder_layers)
        x = layer_stack(EncoderLayer, c, rates, x, where, mask, train=train)
        return EncoderOutput(layer_norm(dtype, "final_norm")(x), mask, embeddings, indices)

    def _types(self) -> list[jax.Array | None]:
        """The type vectors of text, image and second image, each [d] or None."""
        c = self.config
        if not c.type_embedding:
            return [None, None]
        types = list(Embed(2, c.width, ("types", "embed"), name="type_embedding")())
        if c.second_image:
            types.append(
                self.param(
                    "second_image_type",
                    nn.with_logical_partitioning(bert_init, ("embed",)),
                    (c.width,),
                )
            )
        return types

    def _embed(self, x, position, kind, norm, train) -> jax.Array:
        """Adds positions (if entangled) and type, normalises, drops out: [B, L, d]."""
        c, dtype = self.config, dtype_of(self.config)
        if c.entangle_encoder_positions:
            x = x + position.astype(dtype)
        if kind is not None:
            x = x + kind.astype(dtype)
        if norm is not None:
            x = norm(x)
        return nn.Dropout(c.dropout_rate)(x, deterministic=not train)

    def _embed_images(self, batch: Batch, types: list, train: bool) -> list["_EmbeddedImage"]:
        """Embeds the image and, where there is one, the second; the same weights see both."""
        c, dtype = self.config, dtype_of(self.config)
        resnet = ResNet(c, name="resnet")
        project = Dense(
            (c.patch_channels,),
            (c.width,),
            ("conv_out",),
            ("embed",),
            dtype,
            name="image_projection",
        )
        norm = layer_norm(dtype, "patch_norm") if c.patch_norm else None
        table = Embed(
            c.image_bucket_size**2 + 1,
            c.width,
            ("positions", "embed"),
            name="image_position_embedding",
        )
        position_norm = layer_norm(dtype, "image_position_norm")
        batch_size = len(batch["encoder_input_tokens"])
        has_image = jnp.asarray(batch.get("encoder_image_mask", np.ones(batch_size, bool)))

        def embed(prefix: str, kind: jax.Array | None) -> _EmbeddedImage:
            images = normalise_images(
                jnp.asarray(batch[f"{prefix}images"]), batch.get(f"{prefix}image_blank_boxes")
            )
            # The ResNet's examples are split over more devices than the Transformer's.
            patches = with_activation_sharding(
                resnet(images, train), "batch", "height", "width", "channels"
            )
            grid = patches.shape[1:3]
            patches = patches.reshape(batch_size, -1, c.patch_channels)
            sampled = batch.get(f"{prefix}patch_indices")
            num_patches = patches.shape[1] if sampled is None else sampled.shape[1]
            position = entangled = self._image_positions(table, grid, num_patches)
            indices = np.broadcast_to(np.arange(num_patches), (batch_size, num_patches))
            if sampled is not None:
                sampled = indices = jnp.asarray(sampled)
                patches = jnp.take_along_axis(patches, sampled[..., None], axis=1)
                entangled = position[sampled]
            x = project(patches) * jnp.asarray(c.embedding_scale, dtype)
            return _EmbeddedImage(
                hidden=self._embed(x, entangled, kind, norm, train),
                mask=jnp.broadcast_to(has_image[:, None], (batch_size, num_patches)),
                position_embeddings=position_norm(position),
                indices=indices,
                where=PatchPositions(sampled, grid),
            )

        embedded_images = [embed("encoder_", types[0])]
        if "encoder_second_images" in batch:
            embedded_images.append(embed("encoder_second_", types[1]))
        return embedded_images

    def _image_positions(self, table, grid: tuple[int, int], num_patches: int) -> jax.Array:
        """Position embeddings of the whole grid, float32 [rows * columns, d]."""
        c = self.config
        side = c.interpolation_image_size // PATCH_STRIDE
        if c.interpolate_positions and num_patches > side**2:
            small = table(positions.grid_position_ids(side, side, c.image_bucket_size))
            return positions.interpolate_positions(small.reshape(side, side, c.width), *grid)
        return table(positions.grid_position_ids(*grid, c.image_bucket_size))


@dataclasses.dataclass(frozen=True)
class _EmbeddedImage:
    """An embedded image.

    Attributes:
      hidden: [B, N, d].
      mask: bool [B, N].
      position_embeddings: [rows * columns, d], of its whole grid, after their LayerNorm.
      indices: int [B, N], the row of position_embeddings of each patch; numpy where it is the same
        for all examples.
      where: for the relative bias.
    """

    hidden: jax.Array
    mask: jax.Array
    position_embeddings: jax.Array
    indices: np.ndarray | jax.Array
    where: PatchPositions


def _join(before, after):
    """Index arrays [B, N] and [B, L] one after the other; numpy as long as both are."""
    both_known = isinstance(before, np.ndarray) and isinstance(after, np.ndarray)
    return (np if both_known else jnp).concatenate([before, after], axis=1)
