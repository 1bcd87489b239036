"""Converts to and from the Hugging Face layout of OFA: other module names, and a config.json.

The names are those of the OFA model in the package `modelscope`; the tensors are the official ones.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from ofa_jax.interop.lazy_tensors import Tensor

T = TypeVar("T")

_MODULES = {
    "encoder": {"attn_ln": "self_attn_mid_layer_norm", "ffn_layernorm": "ffn_layer_norm"},
    "decoder": {
        "self_attn_ln": "self_attn_mid_layer_norm",
        "encoder_attn": "cross_attn",
        "encoder_attn_layer_norm": "cross_attn_layer_norm",
        "cross_attn_ln": "cross_attn_mid_layer_norm",
        "ffn_layernorm": "ffn_layer_norm",
    },
}
"""Modules of a layer: fairseq's name -> the name in this layout."""
_CODE_POSITIONS = "decoder.image_position_idx"
_BACK = {side: {new: old for old, new in names.items()} for side, names in _MODULES.items()}

_ARGUMENTS = {
    "encoder_embed_dim": "d_model",
    "decoder_embed_dim": "d_model",
    "encoder_ffn_embed_dim": "encoder_ffn_dim",
    "decoder_ffn_embed_dim": "decoder_ffn_dim",
    "encoder_attention_heads": "encoder_attention_heads",
    "decoder_attention_heads": "decoder_attention_heads",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "max_source_positions": "max_position_embeddings",
    "max_target_positions": "max_position_embeddings",
    "activation_fn": "activation_function",
    "scale_attn": "normformer",
    "scale_fc": "normformer",
    "scale_heads": "normformer",
} | {
    name: name
    for name in (
        "dropout", "attention_dropout", "activation_dropout", "encoder_normalize_before",
        "decoder_normalize_before", "encoder_drop_path_rate", "decoder_drop_path_rate",
        "layernorm_embedding", "patch_layernorm_embedding", "code_layernorm_embedding",
        "resnet_type", "resnet_drop_path_rate", "token_bucket_size", "image_bucket_size",
        "add_type_embedding", "attn_scale_factor", "code_image_size", "interpolate_position",
        "orig_patch_image_size", "entangle_position_embedding", "disable_entangle",
    )
}  # fmt: skip
"""Official argument -> field of config.json."""


def args_from_huggingface(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the official arguments that a config.json describes.

    Raises:
      ValueError: the variant is not the official model (OFASys, shared biases, residual scales).
    """
    wrong = [
        name for name in ("use_ofasys", "share_attn_bias", "use_gamma_feature") if config.get(name)
    ]
    wrong += [
        f"{name}=False"
        for name in ("use_image_feature", "share_decoder_input_output_embed")
        if not config.get(name, True)
    ]
    if wrong:
        raise ValueError(f"this OFA variant is not supported: {', '.join(wrong)}.")
    args = {ours: config[theirs] for ours, theirs in _ARGUMENTS.items() if theirs in config}
    return args | {
        # Released models do not entangle; both flags must say so, as in the official code.
        "disable_entangle": not config.get("entangle_position_embedding", False),
        "no_scale_embedding": not config.get("scale_embedding", False),
        "share_all_embeddings": True,
        "share_decoder_input_output_embed": True,
        "arch": "ofa_base",
    }


def huggingface_from_args(args: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """Returns the config.json of official arguments.

    Raises:
      ValueError: for what the layout cannot express.
    """
    normformer = {bool(args.get(name)) for name in ("scale_attn", "scale_fc", "scale_heads")}
    if len(normformer) > 1 or args.get("scale_resids"):
        raise ValueError(
            "this layout has one switch for all of NormFormer's norms, and no residual scales: it "
            "cannot hold this model."
        )
    if args.get("max_source_positions") != args.get("max_target_positions"):
        raise ValueError("this layout has one number of positions for encoder and decoder.")
    config = {theirs: args[ours] for ours, theirs in _ARGUMENTS.items() if ours in args}
    return config | {
        "model_type": "ofa",
        "architectures": ["OFAModel"],
        "vocab_size": vocab_size,
        "scale_embedding": not args.get("no_scale_embedding", False),
        "is_encoder_decoder": True,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 0,
    }


def to_huggingface(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames fairseq's tensors to this layout."""
    renamed = {
        _renamed(key, _MODULES): array
        for key, array in state_dict.items()
        if not key.endswith(".version")
    }
    # The same table of positions, with one filler less behind the codes.
    return renamed | {_CODE_POSITIONS: renamed[_CODE_POSITIONS][:-1]}


def from_huggingface(state_dict: Mapping[str, T]) -> dict[str, T]:
    """Renames this layout's tensors (or what is known of them) to fairseq's."""
    return {_renamed(key, _BACK): array for key, array in state_dict.items()}


def _renamed(key: str, names: Mapping[str, Mapping[str, str]]) -> str:
    parts = key.split(".")
    if len(parts) > 3 and parts[0] in names and parts[1] == "layers":
        parts[3] = names[parts[0]].get(parts[3], parts[3])
    return ".".join(parts)
