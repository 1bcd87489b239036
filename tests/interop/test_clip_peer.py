"""CLIP beside `transformers`, from the files that `transformers` and torch write.

Slow, and skipped where these packages are missing. They need an environment of their own:

    python3.11 -m venv .venv-clip
    P=lib/python3.11/site-packages; echo "$PWD/.venv/$P" > .venv-clip/$P/project.pth
    .venv-clip/bin/pip install torch torchvision transformers pytorch-fid torch-fidelity
    .venv-clip/bin/python -m pytest --slow tests/interop/test_clip_peer.py \
      tests/interop/test_clip_file.py tests/evaluation/test_metrics_generated_images.py

The models have random weights and the shapes of ViT-B/32 and ViT-B/16, but smaller. Embeddings are
of order 1 and agree to 1e-4, tokens exactly.
"""

import json

import clip_files
import numpy as np
import pytest
from PIL import Image

from ofa_jax.interop import clip_file

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TEXTS = [
    "a red apple",
    "A RED\n\t apple",
    "two apples, don't!  it's 42",
    "été 日本 naïve",
    "",
    "red apple " * 60,
    "&amp; <b>apple</b> #1!?",
]
CLOSE = dict(rtol=1e-4, atol=1e-4)


@pytest.fixture(params=[32, 16], ids=["patch32", "patch16"])
def theirs(request, tmp_path):
    """Returns a model of transformers, its tokenizer, and the folder that both are saved in."""
    torch.manual_seed(request.param)
    merges = tmp_path / "files"
    clip_files.write_huggingface(merges, clip_files.openai_state_dict())
    tokenizer = transformers.CLIPTokenizer(
        vocab=json.loads((merges / "vocab.json").read_text()),
        merges=[tuple(pair) for pair in clip_files.MERGES],
        model_max_length=77,
    )
    shared = dict(num_hidden_layers=2, projection_dim=clip_files.EMBEDDING, initializer_range=0.2)
    config = transformers.CLIPConfig(
        vision_config=dict(
            hidden_size=128,
            intermediate_size=512,
            num_attention_heads=2,
            image_size=64,
            patch_size=request.param,
            **shared,
        ),
        text_config=dict(
            hidden_size=64,
            intermediate_size=256,
            num_attention_heads=1,
            vocab_size=clip_files.VOCABULARY,
            bos_token_id=clip_files.VOCABULARY - 2,
            eos_token_id=clip_files.VOCABULARY - 1,
            pad_token_id=clip_files.VOCABULARY - 1,
            **shared,
        ),
        projection_dim=clip_files.EMBEDDING,
    )
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    folder = tmp_path / "clip-vit-base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer, folder


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (100, 75), (75, 101), (333, 64), (40, 50)]
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for width, height in sizes]


def embedding(output):
    """Returns the array of `get_image_features`, which newer versions put into an object."""
    return getattr(output, "pooler_output", output).numpy()


def processor_of(transformers):
    """Returns the image processor that resizes with Pillow, as the published models were used."""
    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    return kind(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})


def test_tokens_are_theirs(theirs):
    _, tokenizer, folder = theirs
    ours = clip_file.read(folder).tokenizer
    ids = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=77)["input_ids"]
    for text, expected in zip(TEXTS, np.array(ids), strict=True):
        row = ours.encode(text, 77)
        length = int(np.argmax(row == ours.end_id)) + 1
        # Behind the end, which is where a text is read, they repeat it and OpenAI has zeros.
        np.testing.assert_array_equal(row[:length], expected[:length], err_msg=text)
        assert (expected[length:] == ours.end_id).all() and not row[length:].any()


def test_pixels_are_theirs(theirs, images):
    _, _, folder = theirs
    clip = clip_file.read(folder)
    expected = processor_of(transformers)([Image.fromarray(one) for one in images])
    mean, std = (np.array(x)[:, None, None] for x in (
        [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]))  # fmt: skip
    for image, theirs_ in zip(images, expected["pixel_values"], strict=True):
        ours = clip._preprocess(image).transpose(2, 0, 1) / 255
        np.testing.assert_allclose((ours - mean) / std, np.asarray(theirs_), atol=1e-5)


def test_embeddings_and_scores_are_theirs(theirs, images):
    model, tokenizer, folder = theirs
    clip = clip_file.read(folder)
    texts = TEXTS[: len(images)]
    pixels = processor_of(transformers)(
        [Image.fromarray(one) for one in images], return_tensors="pt"
    )
    tokens = tokenizer(
        texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.no_grad():
        seen = embedding(model.get_image_features(**pixels))
        read = embedding(model.get_text_features(**tokens))
        whole = model(**pixels, **tokens)
    np.testing.assert_allclose(clip.embed_images(images), seen, **CLOSE)
    np.testing.assert_allclose(clip.embed_texts(texts), read, **CLOSE)
    cosines = whole.logits_per_image.numpy() / float(model.logit_scale.exp())
    np.testing.assert_allclose(clip.score(texts, images), cosines.diagonal(), **CLOSE)


def test_torch_files_are_the_same_model(theirs, images):
    """`pytorch_model.bin` of torch.save, with and without `model.safetensors` beside it."""
    model, _, folder = theirs
    expected = clip_file.read(folder).score(TEXTS[: len(images)], images)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    for name in ("both", "model.safetensors"):
        (folder / name).unlink(missing_ok=True)
        found = clip_file.read(folder).score(TEXTS[: len(images)], images)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_an_archive_of_torch_jit_is_read(tmp_path):
    """The layout of OpenAI's files: torch.jit.save of a module with these names, in float16."""
    arrays = clip_files.openai_state_dict(image=64, patch=32, length=77)
    arrays = {name: array.astype(np.float16) for name, array in arrays.items()}
    root = _Tower()
    for name, array in arrays.items():
        *parts, last = name.split(".")
        place = root
        for part in parts:
            if not hasattr(place, part):
                place.add_module(part, _Tower())
            place = getattr(place, part)
        place.register_parameter(last, torch.nn.Parameter(torch.tensor(array)))
    for name, size in {"input_resolution": 64, "context_length": 77, "vocab_size": 520}.items():
        root.register_buffer(name, torch.tensor(size))
    torch.jit.save(torch.jit.trace(root, torch.zeros(1)), tmp_path / "ViT-B-32.pt")
    clip_files.write_openai_merges(tmp_path)
    found = clip_file.read(tmp_path / "ViT-B-32.pt")
    assert found.config.num_positions == 5 and found.config.text_length == 77
    clip_files.write_published_folder(tmp_path / "folder", arrays)
    other = clip_file.read(tmp_path / "folder")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    np.testing.assert_allclose(
        found.score(TEXTS[:2], images), other.score(TEXTS[:2], images), rtol=1e-5, atol=1e-5
    )


class _Tower(torch.nn.Module):
    def forward(self, x):
        return x
