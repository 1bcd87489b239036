"""The OFA model: one encoder-decoder Transformer over text, image patches, boxes and image codes.

    from ofa_jax.model import OFA, OFAConfig
    model = OFA(OFAConfig.tiny())
    variables = model.init(jax.random.key(0), batch)          # {'params': ..., 'batch_stats': ...}
    logits = model.apply(variables, batch)                    # float32 [B, T, V]
    logits, updates = model.apply(variables, batch, train=True, mutable=["batch_stats"],
                                  rngs={"dropout": key})

`batch` holds encoder_input_tokens int32[B,S], decoder_input_tokens int32[B,T] (or [B,G,T] for
several targets per example; logits are [B,G,T,V] then) and, all optional,
encoder_images uint8|float[B,H,W,3], encoder_image_mask bool[B], encoder_image_blank_boxes
int32[B,4], encoder_patch_indices int32[B,N], decoder_code_mask bool[B], and for a second image
(OFAConfig.second_image) encoder_second_images and encoder_second_patch_indices; other keys are
ignored. Without encoder_images the ResNet does not run.

To encode and decode separately: `encoded = model.apply(variables, batch, method="encode")`, then
`method="decode"` for all positions at once. To decode token by token: `cache =
model.apply(variables, encoded, length, beams, method="start_cache")`, then `logits, cache =
model.apply(variables, tokens, cache, position, method="decode_step")`. `ofa_jax.decoding` generates
whole sequences.

`init` boxes every parameter with its logical axes (`nn.LogicallyPartitioned`; `nn.meta.unbox`
strips the boxes, `nn.get_partition_spec` reads them); `apply` takes boxed and plain arrays alike.

Contents:
    config            `OFAConfig` and the published sizes
    network           `OFA`: encode, decode, logits
    encoder, decoder  embedding of inputs and the layer stacks
    transformer       encoder and decoder layers
    attention         multi-head attention; `attention_ops` has scores and softmax
    attention_positions    positions that layers share, and the biases of a layer from its tables
    attention_terms   attention whose absolute bias is given by its factors, as columns
    attention_fused   chooses a kernel or products; `attention_devices` splits kernels over a mesh;
                      `attention_cudnn` is for GPUs
    attention_kernel  calls the TPU kernels (`attention_call`), whose programs are in
                      `attention_program`, with `attention_blocks` of queries and keys, the bias of
                      sampled `attention_patches` and the bits of `attention_random`
    positions         position ids and rows of the relative tables; `position_biases` looks them up
    resnet            image encoder; `convolutions` and `batch_norm` hold its operations
    layers            dense, norms, embedding, stochastic depth, rematerialisation
    cache             decoder cache for decoding token by token
    pack_streams      scoring several streams at once
    factored_logits   the logits' two factors, for losses that need no array of all logits
    parameter_groups  freezing and training groups of parameters
    layout            plain and stacked parameter layouts
    checks            checks of inputs

Logical axes of parameters:
    vocab      rows of the shared embedding
    embed      model width
    heads, kv  attention heads, width of one head
    mlp        width of the feed-forward layers
    positions  rows of the absolute position embeddings
    relpos     rows of the relative position tables
    types      rows of the type embedding
    conv_height, conv_width, conv_in, conv_out    ResNet kernels; its norms are conv_out
    norm       scales and biases of LayerNorms, and biases over the model width
    layers     layers or blocks that are stacked (`OFAConfig.scan_layers`)
Logical axes of activations:
    activation_batch, activation_images (in the ResNet), activation_length,
    activation_embed, activation_heads, activation_kv,
    activation_mlp, activation_vocab, activation_height, activation_width, activation_channels
"""

from ofa_jax.model.cache import DecoderCache
from ofa_jax.model.config import SIZES, OFAConfig
from ofa_jax.model.encoder import EncoderOutput, ModelInputs
from ofa_jax.model.network import OFA

__all__ = ["OFA", "SIZES", "DecoderCache", "EncoderOutput", "ModelInputs", "OFAConfig"]
