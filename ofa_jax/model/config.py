"""The model's configuration: a frozen dataclass with the published sizes as constructors.

Sizes and flags follow OFA (Wang et al., ICML 2022, arXiv 2202.03052), table 1 and appendix A, as
set by the released pretraining scripts.
"""

import dataclasses
import math
from typing import Annotated, Any

from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked

RELATIVE_POSITION_RANGE = 1024
"""Largest distance between tokens that the logarithmic buckets of the 1-D table distinguish."""

PIXELS_PER_CODE = 8
"""Side of the pixel square that one image code represents (the f8 image tokenizer)."""

PATCH_STRIDE = 16
"""Side of the pixel square that the ResNet turns into one patch feature."""

REMAT_POLICIES = ("none", "full", "dots", "weight_dots")
"""Values of `OFAConfig.remat`; see its documentation for what each policy saves."""

ATTENTION_IMPLEMENTATIONS = ("bias", "columns", "fused", "auto")
"""Values of `OFAConfig.attention_implementation`; see its documentation."""

CUDNN_COLUMNS = 128
"""Most columns of a head in cuDNN's attention: content and position together."""

SIZES = ("tiny", "medium", "base", "large", "huge", "scenes")
"""Names of the constructors of `OFAConfig`: the five published sizes and one for CPUs."""

_PUBLISHED_REGULARIZATION: dict[str, Any] = dict(
    dropout_rate=0.1, encoder_drop_path_rate=0.1, decoder_drop_path_rate=0.1
)
"""Regularisation of the released pretraining scripts."""


@checked
@dataclasses.dataclass(frozen=True)
class OFAConfig:
    """Architecture and regularisation of an OFA model. The defaults are OFA-base without dropout.

    Attributes:
      vocab_size: rows of the embedding that encoder, decoder and output projection share.
      width: model width.
      ffn_width: width of the feed-forward layers.
      num_heads: attention heads.
      encoder_layers, decoder_layers: transformer layers on each side.
      resnet_layers: bottleneck blocks in conv2_x, conv3_x, conv4_x.
      resnet_width: channels of the stem, 64 in every published size. Patch features have
        `16 * resnet_width` channels.
      max_source_positions, max_target_positions: longest text, in tokens. The embedding tables have
        two more rows, as in the reference implementation.
      token_bucket_size: the 1-D relative table has `2 * token_bucket_size - 1` rows.
      image_bucket_size: side of the largest patch grid; the 2-D relative table has
        `(2 * image_bucket_size - 1) ** 2 + 3` rows.
      code_image_size: side in pixels of the images that the decoder generates as codes (8 pixels
        per code).
      attn_scale_factor: scores are scaled by `(head_dim * attn_scale_factor) ** -0.5`.
      scale_attn: LayerNorm on every attention output.
      scale_fc: LayerNorm inside the feed-forward layer, after its activation.
      scale_heads: one learned factor per head on the attention output.
      scale_resids: learned factors `w_resid` on the residual of the feed-forward layer.
      scale_embedding: multiply token and patch embeddings by `sqrt(width)`.
      entangle_encoder_positions, entangle_decoder_positions: also add the position embeddings to
        the embeddings (the published models do not).
      interpolate_positions: images with more patches than an image of
        `interpolation_image_size` get the position embeddings of its grid, resized bilinearly.
      interpolation_image_size: side in pixels of the image whose position grid is resized.
      type_embedding: add a type vector for text or image to the embeddings.
      text_norm, patch_norm, code_norm: LayerNorms on text, patch and code embeddings (`text_norm`
        is `layernorm_embedding` in the reference implementation).
      second_image: examples may have two images (NLVR2); adds a type vector for the second.
      activation: "gelu" (exact, not the tanh approximation) or "relu".
      dropout_rate, attention_dropout_rate, activation_dropout_rate: dropout on residual branches
        and embeddings, on attention weights, and inside the feed-forward layers.
      encoder_drop_path_rate, decoder_drop_path_rate, resnet_drop_path_rate: stochastic depth of the
        last layer; the rate grows linearly from 0 at the first layer and is drawn per example.
      freeze_batch_norm: use the running statistics in training too, and do not update them.
      prefix_length: learned keys and values put before those of every self-attention (prefix
        tuning, Li and Liang 2021); 0 for none.
      adapter_width: width of a bottleneck after every feed-forward layer (adapters, Houlsby et al.
        2019), which is initialised as the identity; 0 for none.
      pad_id: id of the padding token.
      dtype: compute dtype of the layers, "float32" or "bfloat16". Parameters, softmax,
        normalisation statistics and logits are float32 in both.
      scan_layers: run the layers of each side, and equal blocks of a ResNet stage, as a scan. This
        compiles in a fraction of the time, stacks the parameters (see `layout`) and draws different
        dropout masks.
      remat: what the backward pass recomputes instead of saving it: "none", "full" (saves only the
        input of each layer), "dots" (saves matrix products and convolutions) or "weight_dots"
        (saves them except for the products within attention).
      attention_implementation: "bias" adds absolute and relative position biases as arrays of all
        pairs of positions; "columns" computes the absolute bias within the scores, from position
        queries and keys as further columns of queries and keys; "fused" does so in one kernel for
        scores, softmax and values on TPUs, and with cuDNN on GPUs, where they take the shapes, and
        is "columns" elsewhere; "auto" is "fused" on TPUs, and on GPUs where cuDNN takes the dtype,
        the heads and the dropout, and "bias" elsewhere. Parameters and random draws are the same,
        results agree within rounding; decoding token by token is always "bias".
      vocab_multiple: pad the embedding to a multiple of this many rows, so that it can be split
        over devices (59,457 is odd); padding rows are never predicted.
    """

    vocab_size: options.Count = 59457
    width: options.Count = 768
    ffn_width: options.Count = 3072
    num_heads: options.Count = 12
    encoder_layers: options.Layers = 6
    decoder_layers: options.Layers = 6
    resnet_layers: tuple[options.Layers, options.Layers, options.Layers] = (3, 4, 23)
    resnet_width: options.Count = 64

    max_source_positions: options.Count = 1024
    max_target_positions: options.Count = 1024
    token_bucket_size: options.Count = 256
    image_bucket_size: options.Count = 42
    code_image_size: options.Pixels = 128
    attn_scale_factor: options.Positive = 2.0

    scale_attn: bool = True
    scale_fc: bool = True
    scale_heads: bool = True
    scale_resids: bool = False
    scale_embedding: bool = False
    entangle_encoder_positions: bool = False
    entangle_decoder_positions: bool = False
    interpolate_positions: bool = False
    interpolation_image_size: options.Pixels = 256
    type_embedding: bool = True
    text_norm: bool = True
    patch_norm: bool = True
    code_norm: bool = True
    second_image: bool = False
    activation: Annotated[str, options.OneOf(("gelu", "relu"))] = "gelu"

    dropout_rate: options.Rate = 0.0
    attention_dropout_rate: options.Rate = 0.0
    activation_dropout_rate: options.Rate = 0.0
    encoder_drop_path_rate: options.Rate = 0.0
    decoder_drop_path_rate: options.Rate = 0.0
    resnet_drop_path_rate: options.Rate = 0.0
    freeze_batch_norm: bool = False

    prefix_length: options.Natural = 0
    adapter_width: options.Natural = 0

    pad_id: options.TokenId = 1
    dtype: options.Dtype = "float32"
    scan_layers: bool = False
    remat: Annotated[str, options.OneOf(REMAT_POLICIES)] = "none"
    attention_implementation: Annotated[str, options.OneOf(ATTENTION_IMPLEMENTATIONS)] = "bias"
    vocab_multiple: options.Count = 1

    def __post_init__(self) -> None:
        # gin and json pass lists; a tuple keeps the config hashable.
        object.__setattr__(self, "resnet_layers", tuple(self.resnet_layers))
        self._check_sizes()
        self._check_positions()
        self._check_options()

    def _check_sizes(self) -> None:
        """Raises ValueError for sizes that do not fit each other."""
        if self.width % self.num_heads:
            raise ValueError(
                f"OFAConfig.width {self.width} does not divide into num_heads {self.num_heads}; "
                "choose a width that is a multiple of the number of heads."
            )
        if self.vocab_size <= self.pad_id:
            raise ValueError(
                f"OFAConfig.vocab_size {self.vocab_size} leaves no row for pad_id "
                f"{self.pad_id}; the vocabulary starts with <s>, <pad>, </s>, <unk>."
            )

    def _check_positions(self) -> None:
        """Raises ValueError for position tables that the bucketing cannot use."""
        if self.token_bucket_size % 2 or self.token_bucket_size > RELATIVE_POSITION_RANGE:
            raise ValueError(
                f"OFAConfig.token_bucket_size is {self.token_bucket_size}; it must be "
                f"even and at most {RELATIVE_POSITION_RANGE}."
            )
        if self.code_image_size % PIXELS_PER_CODE or not (self.code_grid <= self.image_bucket_size):
            raise ValueError(
                f"OFAConfig.code_image_size is {self.code_image_size} pixels; it must be a "
                f"multiple of {PIXELS_PER_CODE} and at most {PIXELS_PER_CODE} * image_bucket_size "
                f"= {PIXELS_PER_CODE * self.image_bucket_size}."
            )

    def _check_options(self) -> None:
        """Raises ValueError for options that do not go together."""
        if self.second_image and not self.type_embedding:
            raise ValueError(
                "OFAConfig.second_image needs type_embedding, which distinguishes the images."
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.num_heads

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and size of the logits' last axis."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def attention_scale(self) -> float:
        """Factor on content and position queries; the two score terms are summed."""
        return (self.head_dim * self.attn_scale_factor) ** -0.5

    @property
    def embedding_scale(self) -> float:
        """Factor on token and patch embeddings."""
        return math.sqrt(self.width) if self.scale_embedding else 1.0

    @property
    def patch_channels(self) -> int:
        """Channels of the ResNet's output."""
        return 16 * self.resnet_width

    @property
    def code_grid(self) -> int:
        """Side of the grid of image codes."""
        return self.code_image_size // PIXELS_PER_CODE

    def on_platform(self, platform: str) -> "OFAConfig":
        """Returns a copy in which the attention of a platform takes the place of "auto".

        Args:
          platform: "tpu", "gpu", "cuda", "cpu" ...; `jax.Device.platform`.
        """
        if self.attention_implementation != "auto":
            return self
        takes_cudnn = (
            self.dtype == "bfloat16"
            and 2 * self.head_dim <= CUDNN_COLUMNS
            and not self.attention_dropout_rate
        )
        is_fused = platform == "tpu" or (platform in ("gpu", "cuda") and takes_cudnn)
        return self.replace(attention_implementation="fused" if is_fused else "bias")

    def replace(self, **overrides: Any) -> "OFAConfig":
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **overrides)

    @classmethod
    def tiny(cls, **overrides: Any) -> "OFAConfig":
        """Returns OFA-tiny: 33,488,336 parameters."""
        return cls._published(256, 1024, 4, 4, 4, (3, 4, 6), overrides)

    @classmethod
    def medium(cls, **overrides: Any) -> "OFAConfig":
        """Returns OFA-medium: 92,892,000 parameters."""
        return cls._published(512, 2048, 8, 4, 4, (3, 4, 23), overrides)

    @classmethod
    def base(cls, **overrides: Any) -> "OFAConfig":
        """Returns OFA-base: 182,238,536 parameters."""
        return cls._published(768, 3072, 12, 6, 6, (3, 4, 23), overrides)

    @classmethod
    def large(cls, **overrides: Any) -> "OFAConfig":
        """Returns OFA-large: 472,977,152 parameters."""
        return cls._published(1024, 4096, 16, 12, 12, (3, 8, 36), overrides)

    @classmethod
    def huge(cls, **overrides: Any) -> "OFAConfig":
        """Returns OFA-huge: 929,486,848 parameters."""
        return cls._published(1280, 5120, 16, 24, 12, (3, 8, 36), overrides)

    @classmethod
    def scenes(cls, **overrides: Any) -> "OFAConfig":
        """Returns a small model that learns Scenes on a CPU: 128 px images, 64 px of codes."""
        scenes: dict[str, Any] = dict(
            width=128,
            ffn_width=512,
            num_heads=4,
            encoder_layers=3,
            decoder_layers=3,
            resnet_layers=(1, 1, 1),
            resnet_width=16,
            code_image_size=64,
            dropout_rate=0.0,
        )
        return cls(**scenes | overrides)

    @classmethod
    def _published(
        cls,
        width: int,
        ffn_width: int,
        num_heads: int,
        encoder_layers: int,
        decoder_layers: int,
        resnet_layers: tuple[int, int, int],
        overrides: dict[str, Any],
    ) -> "OFAConfig":
        """Returns a published size with its regularisation; `overrides` take precedence."""
        sizes: dict[str, Any] = dict(
            width=width,
            ffn_width=ffn_width,
            num_heads=num_heads,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            resnet_layers=resnet_layers,
        )
        return cls(**_PUBLISHED_REGULARIZATION | sizes | overrides)
