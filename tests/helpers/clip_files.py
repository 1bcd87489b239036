"""A small CLIP of random weights in the layouts of OpenAI and Hugging Face, without torch."""

import io
import json
import pickle
import zipfile

import numpy as np

from ofa_jax.interop import torch_file
from ofa_jax.interop.torch_writer import _Pickler
from ofa_jax.tokenizers.clip_tokenizer import END, START, _byte_symbols

IMAGE, PATCH, WIDTH, LAYERS, HEADS = 16, 8, 128, 2, 2
TEXT_WIDTH, TEXT_HEADS, LENGTH, EMBEDDING = 64, 1, 12, 24
MERGES = [("a", "p"), ("ap", "p"), ("l", "e</w>"), ("app", "le</w>"), ("r", "e"), ("re", "d</w>")]
VOCABULARY = 512 + len(MERGES) + 2


def openai_state_dict(seed=0, image=IMAGE, patch=PATCH, length=LENGTH):
    """Returns arrays with OpenAI's names, for images and patches of these sides in pixels."""
    rng = np.random.default_rng(seed)
    arrays = {
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": ((image // patch) ** 2 + 1, WIDTH),
        "visual.conv1.weight": (WIDTH, 3, patch, patch),
        "visual.proj": (WIDTH, EMBEDDING),
        "positional_embedding": (length, TEXT_WIDTH),
        "token_embedding.weight": (VOCABULARY, TEXT_WIDTH),
        "text_projection": (TEXT_WIDTH, EMBEDDING),
        "logit_scale": (),
    }
    norms = {"visual.ln_pre": WIDTH, "visual.ln_post": WIDTH, "ln_final": TEXT_WIDTH}
    for norm, width in norms.items():
        arrays |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for prefix, width in (("visual.transformer", WIDTH), ("transformer", TEXT_WIDTH)):
        for index in range(LAYERS):
            block = f"{prefix}.resblocks.{index}"
            for name, shape in {
                "attn.in_proj_": (3 * width, width),
                "attn.out_proj.": (width, width),
                "mlp.c_fc.": (4 * width, width),
                "mlp.c_proj.": (width, 4 * width),
                "ln_1.": (width,),
                "ln_2.": (width,),
            }.items():
                arrays |= {f"{block}.{name}weight": shape, f"{block}.{name}bias": shape[:1]}
    return {
        name: np.asarray(rng.normal(size=shape, scale=0.3), np.float32)
        for name, shape in arrays.items()
    }


_PARTS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
}
_PREFIXES = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "ln_final.": "text_model.final_layer_norm.",
}
_INNER = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
    ".attn.out_proj.": ".self_attn.out_proj.",
}


def huggingface_state_dict(arrays):
    """Returns the same arrays with the names of Hugging Face."""
    renamed = {"logit_scale": arrays["logit_scale"]}
    for name, array in arrays.items():
        if name in ("visual.proj", "text_projection"):
            renamed[f"{'visual' if 'visual' in name else 'text'}_projection.weight"] = array.T
            continue
        new = _PARTS.get(name, name)
        for ours, theirs in _PREFIXES.items():
            if new.startswith(ours):
                new = theirs + new.removeprefix(ours)
        for ours, theirs in _INNER.items():
            new = new.replace(ours, theirs)
        if ".attn.in_proj_" in new:
            block, kind = new.split(".attn.in_proj_")
            for part, own in zip("qkv", np.split(array, 3), strict=True):
                renamed[f"{block}.self_attn.{part}_proj.{kind}"] = own
        elif name != "logit_scale":
            renamed[new] = array
    return renamed


def write_openai_merges(folder):
    """Writes OpenAI's file of merges."""
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *(" ".join(pair) for pair in MERGES)]
    (folder / "bpe_simple_vocab_16e6.txt").write_text("\n".join(lines) + "\n")


def write_huggingface(folder, arrays, safetensors=True):
    """Writes a folder of Hugging Face."""
    folder.mkdir(exist_ok=True)
    held = huggingface_state_dict(arrays)
    if safetensors:
        write_safetensors(folder / "model.safetensors", held)
    else:
        torch_file.save(folder / "pytorch_model.bin", held)
    config = {
        "model_type": "clip",
        "vision_config": {"num_attention_heads": HEADS, "hidden_act": "quick_gelu"},
        "text_config": {"num_attention_heads": TEXT_HEADS, "hidden_act": "quick_gelu"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    letters = _byte_symbols()
    symbols = [*letters, *(x + "</w>" for x in letters), *("".join(pair) for pair in MERGES)]
    vocabulary = {symbol: index for index, symbol in enumerate([*symbols, START, END])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")


def write_published_folder(folder, arrays):
    """Writes the files of openai/clip-vit-base-patch32, but those of other frameworks."""
    write_huggingface(folder, arrays)
    positions = {
        "vision_model.embeddings.position_ids": len(arrays["visual.positional_embedding"]),
        "text_model.embeddings.position_ids": len(arrays["positional_embedding"]),
    }
    held = huggingface_state_dict(arrays)
    held |= {name: np.arange(count)[None] for name, count in positions.items()}
    write_safetensors(folder / "model.safetensors", held)
    torch_file.save(folder / "pytorch_model.bin", held)
    sections = {
        "text_config": {
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 4 * TEXT_WIDTH,
            "max_position_embeddings": positions["text_model.embeddings.position_ids"],
            "num_attention_heads": TEXT_HEADS,
            "vocab_size": VOCABULARY,
        },
        "vision_config": {
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "image_size": arrays["visual.conv1.weight"].shape[-1]
            * round((positions["vision_model.embeddings.position_ids"] - 1) ** 0.5),
            "num_attention_heads": HEADS,
            "patch_size": arrays["visual.conv1.weight"].shape[-1],
        },
    }
    for section in sections.values():
        section |= {
            "_name_or_path": "",
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-05,
            "num_hidden_layers": LAYERS,
            "projection_dim": EMBEDDING,
            "torch_dtype": None,
        }
    config = {
        "architectures": ["CLIPModel"],
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": EMBEDDING,
        **sections,
        **{f"{name}_dict": section for name, section in sections.items()},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    size = sections["vision_config"]["image_size"]
    preprocessing = {"crop_size": size, "do_resize": True, "resample": 3, "size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps(special | {"model_max_length": 77}))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer_json(folder)))


def _tokenizer_json(folder):
    """Returns the content of the published tokenizer.json, with the vocabulary of a folder."""
    special = [
        {"id": VOCABULARY - 2 + place, "special": True, "content": text, "single_word": False,
         "lstrip": False, "rstrip": False, "normalized": True}
        for place, text in enumerate((START, END))
    ]  # fmt: skip
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": words},
                    "behavior": "Removed",
                    "invert": True,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
            ],
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [END, VOCABULARY - 1],
            "cls": [START, VOCABULARY - 2],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "vocab": json.loads((folder / "vocab.json").read_text()),
            "merges": [" ".join(pair) for pair in MERGES],
        },
    }


def write_published_archive(path, arrays):
    """Writes OpenAI's file: float16 but for norms and embeddings, and sizes as scalar tensors."""
    kept = ("ln_", "embedding", "logit_scale", "conv1")
    held = {
        name: array if any(part in name for part in kept) else array.astype(np.float16)
        for name, array in arrays.items()
    }
    sizes = {"input_resolution": 224, "context_length": 77, "vocab_size": VOCABULARY}
    held |= {name: np.array(size, np.int64) for name, size in sizes.items()}
    write_torchscript(path, held)


def write_safetensors(path, arrays):
    """Writes a safetensors file of float32 and int64 arrays."""
    header, start, parts = {}, 0, []
    for name, array in arrays.items():
        whole = array.dtype.kind == "i"
        content = np.ascontiguousarray(array, np.int64 if whole else np.float32).tobytes()
        end = start + len(content)
        kind = "I64" if whole else "F32"
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, end]}
        parts.append(content)
        start = end
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


class _Module(dict):
    """The attributes of a module of a TorchScript program."""


_PROGRAM_CLASS = b"c__torch__.multimodal.model\nMultimodal\n)\x81"


class _ProgramPickler(_Pickler):
    """Writes modules as torch.jit.save does: a class of the program, and attributes as state."""

    module = _PROGRAM_CLASS

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Module):
            self.write(self.module)
            super().save(dict(obj))
            self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)


def write_torchscript(path, arrays, name="ViT-tiny", module=_PROGRAM_CLASS):
    """Writes a TorchScript program with the arrays in nested modules."""
    root = _Module(training=False)
    for key, array in arrays.items():
        *parts, last = key.split(".")
        place = root
        for part in parts:
            place = place.setdefault(part, _Module(training=False))
        place[last] = array
    pickled = io.BytesIO()
    pickler = _ProgramPickler(pickled)
    pickler.module = module
    pickler.dump(root)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{name}/data.pkl", pickled.getvalue())
        archive.writestr(f"{name}/constants.pkl", pickle.dumps((), 2))
        archive.writestr(f"{name}/code/__torch__/multimodal/model.py", "raise SystemExit\n")
        for key, array in enumerate(pickler.arrays):
            archive.writestr(f"{name}/data/{key}", np.ascontiguousarray(array).tobytes())
        archive.writestr(f"{name}/version", "3\n")
