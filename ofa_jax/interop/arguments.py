"""Converts official (fairseq's) arguments to our configuration and back."""

import math
from collections.abc import Mapping
from typing import Any

from ofa_jax.model.config import OFAConfig
from ofa_jax.utils.wrong_files import shorten

RESNETS = {
    "resnet18": (2, 2, 2),
    "resnet34": (3, 4, 6),
    "resnet50": (3, 4, 6),
    "resnet101": (3, 4, 23),
    "resnet152": (3, 8, 36),
}
"""Blocks of the first three stages; the official small ones use bottlenecks as well."""

_SAME = {
    "encoder_ffn_embed_dim": "ffn_width",
    "decoder_ffn_embed_dim": "ffn_width",
    "encoder_attention_heads": "num_heads",
    "decoder_attention_heads": "num_heads",
    "encoder_embed_dim": "width",
    "decoder_embed_dim": "width",
    "decoder_input_dim": "width",
    "decoder_output_dim": "width",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "max_source_positions": "max_source_positions",
    "max_target_positions": "max_target_positions",
    "token_bucket_size": "token_bucket_size",
    "image_bucket_size": "image_bucket_size",
    "code_image_size": "code_image_size",
    "attn_scale_factor": "attn_scale_factor",
    "scale_attn": "scale_attn",
    "scale_fc": "scale_fc",
    "scale_heads": "scale_heads",
    "scale_resids": "scale_resids",
    "entangle_position_embedding": "entangle_encoder_positions",
    "interpolate_position": "interpolate_positions",
    "orig_patch_image_size": "interpolation_image_size",
    "add_type_embedding": "type_embedding",
    "layernorm_embedding": "text_norm",
    "patch_layernorm_embedding": "patch_norm",
    "code_layernorm_embedding": "code_norm",
    "activation_fn": "activation",
    "dropout": "dropout_rate",
    "attention_dropout": "attention_dropout_rate",
    "activation_dropout": "activation_dropout_rate",
    "encoder_drop_path_rate": "encoder_drop_path_rate",
    "decoder_drop_path_rate": "decoder_drop_path_rate",
    "resnet_drop_path_rate": "resnet_drop_path_rate",
    "freeze_resnet": "freeze_batch_norm",
}
"""Official arguments that are fields of ours under another name."""


_LIMITS = {
    "width": 2**16,
    "ffn_width": 2**20,
    "num_heads": 2**12,
    "encoder_layers": 1000,
    "decoder_layers": 1000,
    "max_source_positions": 2**20,
    "max_target_positions": 2**20,
    "token_bucket_size": 2**12,
    "image_bucket_size": 96,
    "code_image_size": 2**12,
}
"""Largest values of whole numbers: beyond, a file is damaged, and its tables would fill memory."""
_NUMBERS = (
    "attn_scale_factor", "dropout", "attention_dropout", "activation_dropout", "relu_dropout",
    "encoder_drop_path_rate", "decoder_drop_path_rate", "resnet_drop_path_rate",
)  # fmt: skip
_FLAGS = (
    "scale_attn", "scale_fc", "scale_heads", "scale_resids", "no_scale_embedding",
    "entangle_position_embedding", "disable_entangle", "interpolate_position",
    "add_type_embedding", "layernorm_embedding", "patch_layernorm_embedding",
    "code_layernorm_embedding", "freeze_resnet", "encoder_normalize_before",
    "decoder_normalize_before", "share_all_embeddings",
)  # fmt: skip


def _check_types(args: Mapping[str, Any]) -> None:
    """Raises ValueError for an argument of another type than fairseq's, or of absurd size."""
    whole = {name: _LIMITS[field] for name, field in _SAME.items() if field in _LIMITS}
    for name in (*whole, "orig_patch_image_size"):
        value, limit = args.get(name), whole.get(name, 2**14)
        if value is not None and (type(value) is not int or not 1 <= value <= limit):
            raise _wrong_argument(name, value, f"a whole number from 1 to {limit:,}")
    for name in _NUMBERS:
        value = args.get(name)
        if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
            raise _wrong_argument(name, value, "a number")
    for name in _FLAGS:
        value = args.get(name)
        if value is not None and not (type(value) in (bool, int) and value in (0, 1)):
            raise _wrong_argument(name, value, "true or false")
    for name in ("resnet_type", "activation_fn"):
        if not isinstance(args.get(name) or "", str):
            raise _wrong_argument(name, args[name], "a word")
    if (args.get("attn_scale_factor") or 1) <= 0:
        raise _wrong_argument("attn_scale_factor", args["attn_scale_factor"], "positive")


def _wrong_argument(name: str, value: Any, wanted: str) -> ValueError:
    return ValueError(f"the checkpoint's argument {name} is {shorten(value)}; it must be {wanted}.")


def config_from_fairseq(args: Mapping[str, Any], vocab_size: int) -> OFAConfig:
    """Returns the configuration of the model that official arguments describe.

    Args:
      args: the arguments after the architecture function filled them in (`vars(args)`, or the
        `cfg.model` of a checkpoint). Absent ones have the official default.
      vocab_size: length of the dictionary.

    Returns:
      OFAConfig.

    Raises:
      ValueError: for an option that the released models do not use and that is not supported.
    """

    def get(name: str, default: Any = None) -> Any:
        value = args.get(name, default)
        return default if value is None else value

    _check_types(args)
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
        # The official decoder reads the second flag alone.
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
    """Raises ValueError for every option that changes the model and is not supported."""
    required = {
        "encoder_normalize_before": True,
        "decoder_normalize_before": True,
        "share_all_embeddings": True,
    }
    forbidden = (
        "adaptive_input",
        "adaptive_softmax_cutoff",
        "encoder_prompt",
        "decoder_prompt",
        "adapter",
        "no_cross_attention",
        "cross_self_attention",
        "quant_noise_pq",
        "quant_noise_scalar",
        "encoder_layerdrop",
        "decoder_layerdrop",
        "encoder_layers_to_keep",
        "decoder_layers_to_keep",
        "use_bias_kv",
    )
    equal = (
        ("encoder_embed_dim", "decoder_embed_dim"),
        ("encoder_embed_dim", "decoder_input_dim"),
        ("encoder_embed_dim", "decoder_output_dim"),
        ("encoder_ffn_embed_dim", "decoder_ffn_embed_dim"),
        ("encoder_attention_heads", "decoder_attention_heads"),
    )
    wrong = [
        f"{name}={shorten(args.get(name))} (must be {value})"
        for name, value in required.items()
        if bool(args.get(name, False)) != value
    ]
    wrong += [f"{name}={shorten(args[name])} (must be off)" for name in forbidden if args.get(name)]
    wrong += [
        f"{a}={args[a]} and {b}={args[b]} (must be equal)"
        for a, b in equal
        if args.get(a) is not None and args.get(b) is not None and args[a] != args[b]
    ]
    if (resnet := args.get("resnet_type") or "resnet101") not in RESNETS:
        wrong.append(f"resnet_type={shorten(resnet)} (must be one of {', '.join(RESNETS)})")
    if args.get("code_layernorm_embedding") and not args.get("layernorm_embedding"):
        wrong.append(
            "code_layernorm_embedding without layernorm_embedding (the official model "
            "would never apply it)"
        )
    if wrong:
        raise ValueError("this OFA variant is not supported: " + "; ".join(wrong) + ".")


def args_for_fairseq(config: OFAConfig) -> dict[str, Any]:
    """Returns the official arguments of a configuration: the inverse of `config_from_fairseq`.

    Raises:
      ValueError: the official model has no ResNet of these stages or this width.
    """
    names = [name for name, layers in RESNETS.items() if layers == config.resnet_layers]
    if not names or config.resnet_width != 64:
        raise ValueError(
            f"the official model has no ResNet of {config.resnet_layers} blocks and width "
            f"{config.resnet_width}: it cannot hold this model."
        )
    return {name: getattr(config, field) for name, field in _SAME.items()} | {
        "arch": "ofa_base",
        # The two small ones of three stages are alike; the larger number is the usual name.
        "resnet_type": names[-1],
        "no_scale_embedding": not config.scale_embedding,
        "disable_entangle": not config.entangle_decoder_positions,
        "encoder_normalize_before": True,
        "decoder_normalize_before": True,
        "share_all_embeddings": True,
        "share_decoder_input_output_embed": True,
    }
