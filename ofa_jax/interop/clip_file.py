"""Reads the weights of a CLIP that the user has: of Hugging Face, or of OpenAI.

    clip-vit-base-patch16/     config.json, model.safetensors or pytorch_model.bin (also in shards),
                               and tokenizer.json, or vocab.json and merges.txt
    ViT-B-16.pt                OpenAI's file, a TorchScript program whose code is not read, or its
                               state dict; beside it bpe_simple_vocab_16e6.txt.gz, or the files of a
                               tokenizer above

Only vision transformers are read; CLIPs with a ResNet are refused. Nothing in a file is executed.
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.interop import huggingface_folder, torch_file
from ofa_jax.model.clip import CLIP, CLIPConfig, CLIPNetwork
from ofa_jax.tokenizers.clip_tokenizer import CLIPTokenizer
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.text_files import DamagedFileError, read_json
from ofa_jax.utils.wrong_files import shorten

_HEAD_WIDTH = 64  # of OpenAI's models
_HUGGING_FACE = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding": "visual.conv1",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "vision_model.encoder.layers": "visual.transformer.resblocks",
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_model.encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
"""Part of a name of Hugging Face -> that of OpenAI."""
_NORMS = {"attention_norm": "ln_1", "wide_norm": "ln_2"}
_DENSE = {"wide": "mlp.c_fc", "narrow": "mlp.c_proj"}


@checked
def read(path: options.PathLike, tokenizer: options.PathLike | None = None) -> CLIP:
    """Reads a CLIP.

    Args:
      path: a folder of Hugging Face, or a file.
      tokenizer: a file or folder of its tokenizer, if that is not beside the weights.

    Raises:
      FileNotFoundError, ValueError: there is none, or it is something else.
    """
    place = pathlib.Path(os.fspath(path))
    folder = place if place.is_dir() else place.parent
    described: Mapping[str, Any] = {}
    if place.is_dir() or (place.name in huggingface_folder.WEIGHTS):
        weights = huggingface_folder.find_weights(place) if place.is_dir() else place
        opened = huggingface_folder.open_file(weights)
        held = torch_file.tensors_of(opened.content)
        config_file = folder / huggingface_folder.CONFIG
        if not config_file.is_file():
            raise FileNotFoundError(f"There is no {config_file}, which describes it: add it.")
        described = read_json(config_file)
        _check_described(place, described)
    else:
        held, opened = _open_torch(place)
    opened.verify(held.values())
    try:
        config, params = from_state_dict(held, described)
    except ValueError as error:
        raise ValueError(f"{place} is not a CLIP that can be read: {error}") from error
    words = CLIPTokenizer.load(folder if tokenizer is None else os.fspath(tokenizer))
    if words.end_id >= config.vocab_size:
        raise ValueError(
            f"The tokenizer of {place} has {words.end_id + 1} ids, its model {config.vocab_size}: "
            "give the tokenizer of this model."
        )
    return CLIP(config, params, words, f"clip {place.name}")


def _check_described(place: pathlib.Path, described: Any) -> None:
    """Raises ValueError if config.json describes another model."""
    kind = described.get("model_type") if isinstance(described, Mapping) else None
    if kind not in (None, "clip"):
        raise ValueError(
            f"{place} is not a CLIP: its {huggingface_folder.CONFIG} says model_type "
            f"{shorten(kind)!r}. Give the folder of a CLIP, such as clip-vit-base-patch32."
        )


def _open_torch(path: pathlib.Path) -> tuple[dict[str, np.ndarray], torch_file.OpenedFile]:
    """Returns the tensors of a file: of a program of TorchScript, or of a state dict."""
    if path.suffix == ".safetensors":
        opened = huggingface_folder.open_file(path)
        return torch_file.tensors_of(opened.content), opened
    opened = torch_file.open_file(path, torchscript=True)
    content = opened.content
    if not isinstance(content, Mapping):
        try:
            return torch_file.torchscript_tensors(content), opened
        except torch_file.ContentError as error:
            raise DamagedFileError(f"{path} cannot be read: {error}.") from error
    for name in ("state_dict", "model"):
        content = content[name] if isinstance(content.get(name), Mapping) else content
    return torch_file.tensors_of(content), opened


def from_state_dict(
    arrays: Mapping[str, np.ndarray], described: Mapping[str, Any] | None = None
) -> tuple[CLIPConfig, dict[str, Any]]:
    """Returns sizes and parameters of arrays with the names of OpenAI or Hugging Face.

    Args:
      arrays: by name.
      described: config.json of Hugging Face, for the heads and the activation.

    Raises:
      ValueError: an array is missing, or its shape does not fit the others.
    """
    if "vision_model.embeddings.class_embedding" in arrays:
        arrays = _with_names_of_openai(arrays)
    config = _config_of(arrays, described or {})
    like = jax.eval_shape(
        CLIPNetwork(config).init,
        jax.random.key(0),
        jnp.zeros((1, config.image_size, config.image_size, 3)),
        jnp.zeros((1, config.text_length), jnp.int32),
    )["params"]
    params = {}
    for path, shape in flax.traverse_util.flatten_dict(like).items():
        array = _parameter(path, arrays, shape.shape)
        if not np.isfinite(array).all():
            raise ValueError(f"{_name_of(path)} holds numbers that are not finite.")
        params[path] = array
    return config, flax.traverse_util.unflatten_dict(params)


def _with_names_of_openai(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames the arrays of Hugging Face; query, key and value become one."""
    named: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if name in ("visual_projection.weight", "text_projection.weight"):
            name = {"v": "visual.proj", "t": "text_projection"}[name[0]]
            array = np.asarray(array).T
        for theirs, ours in _HUGGING_FACE.items():
            name = name.replace(theirs, ours)
        named[name] = array
    for name in list(named):
        if name.endswith("self_attn.q_proj.weight"):
            block = name.removesuffix("self_attn.q_proj.weight")
            for kind in ("weight", "bias"):
                parts = [f"{block}self_attn.{part}_proj.{kind}" for part in "qkv"]
                if missing := [part for part in parts if part not in named]:
                    raise ValueError(f"{missing[0]} is missing.")
                named[f"{block}attn.in_proj_{kind}"] = np.concatenate(
                    [np.asarray(named[part], np.float32) for part in parts]
                )
    return named


def _config_of(arrays: Mapping[str, np.ndarray], described: Mapping[str, Any]) -> CLIPConfig:
    """Returns the sizes that arrays have.

    Raises:
      ValueError: arrays that determine them are missing.
    """
    if "visual.layer1.0.conv1.weight" in arrays:
        raise ValueError("its images go through a ResNet; give one with a vision transformer.")
    needed = {
        "visual.conv1.weight": 4,
        "visual.positional_embedding": 2,
        "visual.proj": 2,
        "token_embedding.weight": 2,
        "positional_embedding": 2,
    }
    for name, rank in needed.items():
        if name not in arrays:
            raise ValueError(f"{name} is missing.")
        if np.ndim(arrays[name]) != rank or not np.size(arrays[name]):
            raise ValueError(f"{name} has the shape {np.shape(arrays[name])}, which does not fit.")
    vision_width, _, _, patch = np.shape(arrays["visual.conv1.weight"])
    patches = len(arrays["visual.positional_embedding"]) - 1
    side = round(patches**0.5)
    if side < 1 or side * side != patches:
        raise ValueError(f"visual.positional_embedding has {patches} patches, which are no square.")
    text_length, text_width = np.shape(arrays["positional_embedding"])
    vision, text = (_section(described, f"{part}_config") for part in ("vision", "text"))
    return CLIPConfig(
        embedding_width=np.shape(arrays["visual.proj"])[1],
        image_size=side * patch,
        patch_size=patch,
        vision_width=vision_width,
        vision_layers=_count_layers(arrays, "visual.transformer."),
        vision_heads=vision.get("num_attention_heads", max(1, vision_width // _HEAD_WIDTH)),
        text_width=text_width,
        text_layers=_count_layers(arrays, "transformer."),
        text_heads=text.get("num_attention_heads", max(1, text_width // _HEAD_WIDTH)),
        text_length=text_length,
        vocab_size=len(arrays["token_embedding.weight"]),
        activation=vision.get("hidden_act", "quick_gelu"),
    )


def _section(described: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns a part of config.json; empty if there is none."""
    found = described.get(name) if isinstance(described, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _count_layers(arrays: Mapping[str, np.ndarray], prefix: str) -> int:
    """Returns the number of layers. Raises ValueError if one is missing."""
    pattern = re.compile(re.escape(prefix) + r"resblocks\.(\d{1,4})\.ln_1\.weight$")
    numbers = sorted(int(found[1]) for name in arrays if (found := pattern.match(name)))
    if numbers != list(range(len(numbers))) or not numbers:
        raise ValueError(f"it has the layers {numbers[:8]} of {prefix}resblocks.")
    return len(numbers)


def _name_of(path: tuple[str, ...]) -> str:
    """Returns OpenAI's name of a parameter, without the kind of array.

    ("vision", "layer_1", "wide", "kernel") becomes visual.transformer.resblocks.1.mlp.c_fc.weight.
    """
    tower, *rest = path
    prefix = "visual." if tower == "vision" else ""
    kind = "bias" if rest[-1] == "bias" else "weight"
    if rest[0].startswith("layer_"):
        block = f"{prefix}transformer.resblocks.{rest[0].removeprefix('layer_')}."
        if rest[1] == "attention":
            if rest[2] == "out":
                return f"{block}attn.out_proj.{kind}"
            return f"{block}attn.in_proj_{kind}"
        return f"{block}{(_NORMS | _DENSE)[rest[1]]}.{kind}"
    return {
        ("vision", "patches"): "visual.conv1.weight",
        ("vision", "class_token"): "visual.class_embedding",
        ("vision", "positions"): "visual.positional_embedding",
        ("vision", "first_norm"): f"visual.ln_pre.{kind}",
        ("vision", "last_norm"): f"visual.ln_post.{kind}",
        ("vision", "projection"): "visual.proj",
        ("text", "tokens"): "token_embedding.weight",
        ("text", "positions"): "positional_embedding",
        ("text", "last_norm"): f"ln_final.{kind}",
        ("text", "projection"): "text_projection",
    }[tower, rest[0]]


def _parameter(
    path: tuple[str, ...], arrays: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> np.ndarray:
    """Returns a parameter in the layout of flax.

    Raises:
      ValueError: it is missing, or of another shape.
    """
    name = _name_of(path)
    if name not in arrays:
        raise ValueError(f"{name} is missing.")
    array = np.asarray(arrays[name], np.float32)
    wrong = f"{name} has the shape {list(array.shape)}, which does not fit."
    if "attention" in path and path[-2] != "out":
        parts = ("query", "key", "value")
        if len(array) % len(parts):
            raise ValueError(wrong)
        array = np.split(array, len(parts))[parts.index(path[-2])]
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    elif path[-1] == "kernel" and path[-2] != "projection":
        array = array.T  # a projection is stored as we have it
    if array.size != np.prod(shape) or ("attention" not in path and array.shape != shape):
        raise ValueError(wrong)
    return np.ascontiguousarray(array.reshape(shape))
