"""CLIP with a vision transformer (Radford et al. 2021): embeds images and texts in one space.

    clip = clip_file.read("clip-vit-base-patch16")     # the user's files: `ofa_jax.interop`
    clip.score(["a red apple"], images)                # float32 [1], the cosines

It ranks generated images and computes their CLIP score; no weights are part of this project.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, UInt8
from PIL import Image

from ofa_jax.preprocessing import images as image_ops
from ofa_jax.tokenizers.clip_tokenizer import CLIPTokenizer
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked

__all__ = ["CLIP", "CLIPConfig", "CLIPNetwork"]

_EPSILON = 1e-5
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # of CLIP's training images
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@checked
@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Sizes of a CLIP; the defaults are those of ViT-B/32.

    Attributes:
      embedding_width: of the space that both share.
      image_size: side of an image in pixels.
      patch_size: side of a patch in pixels.
      vision_width, vision_layers, vision_heads: sizes of the vision transformer.
      text_width, text_layers, text_heads: sizes of the text transformer.
      text_length: number of tokens of a text.
      vocab_size: number of ids.
      activation: "quick_gelu", x sigmoid(1.702 x), or "gelu".
    """

    embedding_width: options.Count = 512
    image_size: options.Count = 224
    patch_size: options.Count = 32
    vision_width: options.Count = 768
    vision_layers: options.Count = 12
    vision_heads: options.Count = 12
    text_width: options.Count = 512
    text_layers: options.Count = 12
    text_heads: options.Count = 8
    text_length: options.Count = 77
    vocab_size: options.Count = 49408
    activation: Annotated[str, options.OneOf(("quick_gelu", "gelu"))] = "quick_gelu"

    def __post_init__(self) -> None:
        for part in ("vision", "text"):
            width, heads = getattr(self, f"{part}_width"), getattr(self, f"{part}_heads")
            if width % heads:
                raise ValueError(
                    f"CLIPConfig.{part}_width {width} is not a multiple of its {heads} heads."
                )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"CLIPConfig.image_size {self.image_size} is not a multiple of patch_size "
                f"{self.patch_size}."
            )

    @property
    def num_positions(self) -> int:
        """Number of patches, and one more for the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    heads: int
    activation: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n width"], mask: Bool[Array, "n n"] | None
    ) -> Float[Array, "b n width"]:
        """Applies self-attention, then the feed-forward network.

        Args:
          x: of each position.
          mask: which positions (columns) each position (row) attends to; None for all.
        """
        width = x.shape[-1]
        attended = nn.MultiHeadDotProductAttention(self.heads, name="attention")
        x += attended(nn.LayerNorm(_EPSILON, name="attention_norm")(x), mask=mask)
        hidden = nn.Dense(4 * width, name="wide")(nn.LayerNorm(_EPSILON, name="wide_norm")(x))
        if self.activation == "quick_gelu":
            hidden *= jax.nn.sigmoid(1.702 * hidden)
        else:
            hidden = nn.gelu(hidden, approximate=False)
        return x + nn.Dense(width, name="narrow")(hidden)


class VisionTower(nn.Module):
    """A vision transformer over patches, read at its class token."""

    config: CLIPConfig

    @nn.compact
    def __call__(self, images: Float[Array, "b size size 3"]) -> Float[Array, "b embedding"]:
        """Embeds normalised images."""
        config, width = self.config, self.config.vision_width
        patch = (config.patch_size, config.patch_size)
        patches = nn.Conv(width, patch, patch, "VALID", use_bias=False, name="patches")(images)
        patches = patches.reshape(len(images), -1, width)
        normal = nn.initializers.normal(0.02)
        first = jnp.broadcast_to(
            self.param("class_token", normal, (width,)), (len(images), 1, width)
        )
        x = jnp.concatenate([first, patches], axis=1)
        x += self.param("positions", normal, (config.num_positions, width))
        x = nn.LayerNorm(_EPSILON, name="first_norm")(x)
        for index in range(config.vision_layers):
            x = Layer(config.vision_heads, config.activation, name=f"layer_{index}")(x, None)
        x = nn.LayerNorm(_EPSILON, name="last_norm")(x[:, 0])
        return nn.Dense(config.embedding_width, use_bias=False, name="projection")(x)


class TextTower(nn.Module):
    """A causal transformer over tokens, read at the end of the text."""

    config: CLIPConfig

    @nn.compact
    def __call__(self, tokens: Int[Array, "b length"]) -> Float[Array, "b embedding"]:
        """Embeds texts. The end of a text is its token with the highest id."""
        config, length = self.config, tokens.shape[1]
        x = nn.Embed(config.vocab_size, config.text_width, name="tokens")(tokens)
        positions = (config.text_length, config.text_width)
        x += self.param("positions", nn.initializers.normal(0.01), positions)[:length]
        causal = jnp.tril(jnp.ones((length, length), bool))
        for index in range(config.text_layers):
            x = Layer(config.text_heads, config.activation, name=f"layer_{index}")(x, causal)
        x = nn.LayerNorm(_EPSILON, name="last_norm")(x)
        x = jnp.take_along_axis(x, tokens.argmax(axis=1)[:, None, None], axis=1)[:, 0]
        return nn.Dense(config.embedding_width, use_bias=False, name="projection")(x)


class CLIPNetwork(nn.Module):
    """Both towers."""

    config: CLIPConfig

    def setup(self) -> None:
        """Creates the towers."""
        self.vision = VisionTower(self.config)
        self.text = TextTower(self.config)

    def __call__(
        self, images: Float[Array, "b size size 3"], tokens: Int[Array, "b length"]
    ) -> tuple[Float[Array, "b embedding"], Float[Array, "b embedding"]]:
        """Returns the embeddings of images and of texts."""
        return self.vision(images), self.text(tokens)

    def embed_images(self, images: UInt8[Array, "b size size 3"]) -> Float[Array, "b embedding"]:
        """Returns the embeddings of images of the network's size."""
        return self.vision((images.astype(jnp.float32) / 255 - _MEAN) / _STD)

    def embed_texts(self, tokens: Int[Array, "b length"]) -> Float[Array, "b embedding"]:
        """Returns the embeddings of texts."""
        return self.text(tokens)


@dataclasses.dataclass(frozen=True, eq=False)
class CLIP:
    """A CLIP with its weights: an `ImageRanker`, by the cosine of image and caption.

    Attributes:
      config: the sizes.
      params: of `CLIPNetwork`, a tree of float32 numpy arrays.
      tokenizer: of texts.
      name: what identifies it in the record of a job.
      batch_size: images or texts that are embedded at once.
    """

    config: CLIPConfig
    params: Mapping[str, Any]
    tokenizer: CLIPTokenizer
    name: str = "clip"
    batch_size: int = 32

    def embed_images(
        self, images: Sequence[UInt8[np.ndarray, "h w 3"]]
    ) -> Float32[np.ndarray, "n embedding"]:
        """Returns the embeddings of images of any sizes: the central square of each is seen."""
        pixels = [self._preprocess(image) for image in images]
        return self._embed("embed_images", pixels)

    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "n embedding"]:
        """Returns the embeddings of texts; what is longer than the model's length is cut off."""
        rows = [self.tokenizer.encode(text, self.config.text_length) for text in texts]
        return self._embed("embed_texts", rows)

    def score(
        self, captions: Sequence[str], images: Sequence[UInt8[np.ndarray, "h w 3"]]
    ) -> Float32[np.ndarray, " n"]:
        """Returns the cosine of each image with the caption at its place."""
        different = list(dict.fromkeys(captions))
        texts = dict(zip(different, _normalise(self.embed_texts(different)), strict=True))
        seen = _normalise(self.embed_images(images))
        return (seen * np.stack([texts[caption] for caption in captions])).sum(axis=1)

    def _preprocess(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "size size 3"]:
        """Resizes the shorter side (bicubic) and crops the central square."""
        opened = Image.fromarray(np.asarray(image, np.uint8))
        cropped = image_ops.resize_and_center_crop(opened, self.config.image_size)
        return image_ops.to_array(cropped)

    def _embed(self, method: str, rows: Sequence[np.ndarray]) -> Float32[np.ndarray, "n embedding"]:
        """Embeds rows in batches of one size."""
        found = [np.zeros((0, self.config.embedding_width), np.float32)]
        for start in range(0, len(rows), self.batch_size):
            chunk = np.stack(rows[start : start + self.batch_size])
            padding = np.zeros((self.batch_size - len(chunk), *chunk.shape[1:]), chunk.dtype)
            full = np.concatenate([chunk, padding])
            embedded = _apply(self._on_device, full, config=self.config, method=method)
            found.append(np.asarray(embedded)[: len(chunk)])
        return np.concatenate(found)

    @functools.cached_property
    def _on_device(self) -> Any:
        return jax.device_put(dict(self.params))


@functools.partial(jax.jit, static_argnames=("config", "method"))
def _apply(
    params: Any, rows: Array, *, config: CLIPConfig, method: str
) -> Float[Array, "n embedding"]:
    """Calls a method of the network."""
    embedded = CLIPNetwork(config).apply({"params": params}, rows, method=method)
    return cast(Array, embedded)


def _normalise(embeddings: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Returns vectors of length 1."""
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
