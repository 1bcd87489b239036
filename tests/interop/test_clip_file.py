"""CLIP from the user's files: the three layouts are one model, which equals a numpy reference.

The reference is float64 and follows Radford et al. 2021; the embeddings are of order 1 and agree to
1e-4.
"""

import clip_files
import numpy as np
import pytest

from ofa_jax.interop import clip_file, torch_file
from ofa_jax.tokenizers.clip_tokenizer import CLIPTokenizer

CAPTIONS = ["a red apple", "Two   APPLES, don't!", "été 日本 42"]
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
CLOSE = dict(rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def arrays():
    return clip_files.openai_state_dict()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def clip(arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    clip_files.write_huggingface(folder, arrays)
    return clip_file.read(folder)


# ------------------------------------------------------------------------------- numpy reference


def norm(x, arrays, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def layer(x, arrays, name, heads, mask):
    h = norm(x, arrays, f"{name}.ln_1")
    qkv = h @ arrays[f"{name}.attn.in_proj_weight"].T + arrays[f"{name}.attn.in_proj_bias"]
    q, k, v = (np.stack(np.split(own, heads, -1)) for own in np.split(qkv, 3, -1))
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]) + mask
    attended = np.concatenate(list(softmax(scores) @ v), axis=-1)
    x = x + attended @ arrays[f"{name}.attn.out_proj.weight"].T
    x = x + arrays[f"{name}.attn.out_proj.bias"]
    h = norm(x, arrays, f"{name}.ln_2") @ arrays[f"{name}.mlp.c_fc.weight"].T
    h = h + arrays[f"{name}.mlp.c_fc.bias"]
    h = h / (1 + np.exp(-1.702 * h))
    return x + h @ arrays[f"{name}.mlp.c_proj.weight"].T + arrays[f"{name}.mlp.c_proj.bias"]


def embed_image(image, arrays):
    pixels = ((image / 255 - MEAN) / STD).transpose(2, 0, 1)
    size = clip_files.PATCH
    patches = [
        arrays["visual.conv1.weight"].reshape(clip_files.WIDTH, -1)
        @ pixels[:, top : top + size, left : left + size].reshape(-1)
        for top in range(0, 16, size)
        for left in range(0, 16, size)
    ]
    x = np.stack([arrays["visual.class_embedding"], *patches])
    x = norm(x + arrays["visual.positional_embedding"], arrays, "visual.ln_pre")
    for index in range(clip_files.LAYERS):
        x = layer(x, arrays, f"visual.transformer.resblocks.{index}", clip_files.HEADS, 0)
    return norm(x[0], arrays, "visual.ln_post") @ arrays["visual.proj"]


def embed_text(ids, arrays):
    x = arrays["token_embedding.weight"][ids] + arrays["positional_embedding"]
    mask = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for index in range(clip_files.LAYERS):
        x = layer(x, arrays, f"transformer.resblocks.{index}", clip_files.TEXT_HEADS, mask)
    return norm(x[ids.argmax()], arrays, "ln_final") @ arrays["text_projection"]


def test_embeddings_equal_the_reference(clip, arrays, images):
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    expected = np.stack([embed_image(image, wide) for image in images])
    np.testing.assert_allclose(clip.embed_images(images), expected, **CLOSE)
    ids = [clip.tokenizer.encode(text, clip_files.LENGTH) for text in CAPTIONS]
    texts = np.stack([embed_text(own, wide) for own in ids])
    np.testing.assert_allclose(clip.embed_texts(CAPTIONS), texts, **CLOSE)
    cosines = (expected * texts).sum(1) / np.linalg.norm(expected, axis=1)
    cosines /= np.linalg.norm(texts, axis=1)
    np.testing.assert_allclose(clip.score(CAPTIONS, images), cosines, **CLOSE)


@pytest.mark.parametrize("layout", ["bin", "torchscript", "half", "state dict"])
def test_all_layouts_are_the_same_model(clip, arrays, images, tmp_path, layout):
    if layout == "bin":
        clip_files.write_huggingface(tmp_path, arrays, safetensors=False)
        other = clip_file.read(tmp_path)
    else:
        clip_files.write_openai_merges(tmp_path)
        path = tmp_path / "ViT-tiny.pt"
        held = arrays
        if layout == "half":
            held = {name: array.astype(np.float16) for name, array in arrays.items()}
        write = torch_file.save if layout == "state dict" else clip_files.write_torchscript
        write(path, held)
        other = clip_file.read(path)
    assert other.config == clip.config
    close = dict(rtol=1e-6, atol=1e-6) if layout != "half" else dict(rtol=0.05, atol=0.05)
    np.testing.assert_allclose(other.score(CAPTIONS, images), clip.score(CAPTIONS, images), **close)


def test_texts_are_split_as_clip_was_trained(tmp_path):
    clip_files.write_openai_merges(tmp_path)
    tokenizer = CLIPTokenizer.load(tmp_path)
    apple, red = 512 + 3, 512 + 5
    a = 256 + [*range(33, 127)].index(ord("a"))
    expected = [tokenizer.start_id, a, red, apple, tokenizer.end_id, 0, 0]
    assert tokenizer.encode(" A  RED\napple", 7).tolist() == expected
    assert tokenizer.encode("a red apple red", 5).tolist() == [*expected[:4], tokenizer.end_id]
    assert tokenizer.end_id == clip_files.VOCABULARY - 1
    assert tokenizer.encode("", 3).tolist() == [tokenizer.start_id, tokenizer.end_id, 0]


def test_images_of_other_sizes_show_their_central_square(clip):
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, 8:24] = np.random.default_rng(2).integers(0, 256, (16, 16, 3), np.uint8)
    found = clip.embed_images([wide, wide[:, 8:24]])
    np.testing.assert_allclose(found[0], found[1], **CLOSE)
    assert clip.embed_images([]).shape == (0, clip_files.EMBEDDING)


def damaged(arrays, name, change):
    arrays = dict(arrays)
    if change is None:
        del arrays[name]
    else:
        arrays[name] = change(arrays[name])
    return arrays


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("visual.proj", None, "visual.proj is missing"),
        ("ln_final.bias", None, "ln_final.bias is missing"),
        ("transformer.resblocks.0.ln_1.weight", None, r"it has the layers \[1\]"),
        ("text_projection", lambda x: x[:, :3], r"text_projection has the shape \[64, 3\]"),
        ("visual.conv1.weight", lambda x: x[0], "does not fit"),
        ("visual.positional_embedding", lambda x: x[:4], "3 patches, which are no square"),
        ("visual.layer1.0.conv1.weight", lambda x: x, "through a ResNet"),
        ("logit_scale", lambda x: x, None),
        ("ln_final.weight", lambda x: x * np.nan, "not finite"),
    ],
)
def test_other_files_are_one_sentence(arrays, tmp_path, name, change, message):
    held = {"visual.layer1.0.conv1.weight": np.zeros(1, np.float32)} if "layer1" in name else {}
    path = tmp_path / "ViT-tiny.pt"
    clip_files.write_openai_merges(tmp_path)
    clip_files.write_torchscript(path, damaged(arrays | held, name, change))
    if message is None:
        assert clip_file.read(path).name == "clip ViT-tiny.pt"
        return
    with pytest.raises(ValueError, match=message):
        clip_file.read(path)


def test_a_clip_needs_its_tokenizer_and_its_description(arrays, tmp_path):
    path = tmp_path / "ViT-tiny.pt"
    clip_files.write_torchscript(path, arrays)
    with pytest.raises(FileNotFoundError, match="has no tokenizer of CLIP"):
        clip_file.read(path)
    with pytest.raises(FileNotFoundError):
        clip_file.read(tmp_path / "other.pt")
    clip_files.write_huggingface(tmp_path / "folder", arrays)
    assert clip_file.read(path, tmp_path / "folder").config.vision_heads == clip_files.HEADS
    (tmp_path / "folder" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json, which describes it"):
        clip_file.read(tmp_path / "folder")
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(b"\x1f\x8b\x08 damaged")
    with pytest.raises(ValueError, match="is not a tokenizer of CLIP"):
        clip_file.read(path)


def test_nothing_of_a_program_is_executed(arrays, tmp_path):
    """Other readers still refuse programs, and names outside of the program are refused here."""
    path = tmp_path / "ViT-tiny.pt"
    clip_files.write_torchscript(path, arrays)
    with pytest.raises(ValueError, match="is a TorchScript program"):
        torch_file.load(path)
    content = path.read_bytes()
    assert b"__torch__.multimodal.model" in content
    clip_files.write_torchscript(path, arrays, module=b"cos\nsystem\n)\x81")
    with pytest.raises(ValueError, match="asks for os.system"):
        clip_file.read(path)


@pytest.mark.slow
def test_embeddings_equal_those_of_transformers(arrays, images, tmp_path):
    """`pip install torch transformers`, then `bash tests/run.sh slow`."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    clip_files.write_huggingface(tmp_path, arrays)
    clip = clip_file.read(tmp_path)
    config = transformers.CLIPConfig(
        vision_config=dict(
            hidden_size=clip_files.WIDTH,
            intermediate_size=4 * clip_files.WIDTH,
            num_hidden_layers=clip_files.LAYERS,
            num_attention_heads=clip_files.HEADS,
            image_size=clip_files.IMAGE,
            patch_size=clip_files.PATCH,
        ),
        text_config=dict(
            hidden_size=clip_files.TEXT_WIDTH,
            intermediate_size=4 * clip_files.TEXT_WIDTH,
            num_hidden_layers=clip_files.LAYERS,
            num_attention_heads=clip_files.TEXT_HEADS,
            max_position_embeddings=clip_files.LENGTH,
            vocab_size=clip_files.VOCABULARY,
            eos_token_id=clip_files.VOCABULARY - 1,
        ),
        projection_dim=clip_files.EMBEDDING,
    )
    theirs = transformers.CLIPModel(config).eval()
    held = clip_files.huggingface_state_dict(arrays)
    theirs.load_state_dict({name: torch.tensor(x) for name, x in held.items()}, strict=False)
    ids = np.stack([clip.tokenizer.encode(text, clip_files.LENGTH) for text in CAPTIONS])
    pixels = ((images / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    with torch.no_grad():
        seen = theirs.get_image_features(torch.tensor(pixels, dtype=torch.float32))
        read = theirs.get_text_features(torch.tensor(ids, dtype=torch.int64))
    # Newer versions put the array into an object.
    expected, texts = (getattr(found, "pooler_output", found).numpy() for found in (seen, read))
    np.testing.assert_allclose(clip.embed_images(images), expected, **CLOSE)
    np.testing.assert_allclose(clip.embed_texts(CAPTIONS), texts, **CLOSE)
