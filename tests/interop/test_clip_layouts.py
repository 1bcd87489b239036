"""CLIP's files as they are published: every file of a Hugging Face folder, and OpenAI's archive.

Shaped as ViT-B/32 and ViT-B/16 (head width 64, the text twice as narrow or more, 77 tokens), but
smaller. Wrong files are answered by a sentence.
"""

import json

import clip_files
import numpy as np
import pytest

from ofa_jax.interop import clip_file, torch_file

SHAPES = {
    "patch32": dict(image=64, patch=32, length=77),
    "patch16": dict(image=64, patch=16, length=77),
}
CAPTIONS = ["a red apple", "A RED\n apple ", "ape!"]
CLOSE = dict(rtol=1e-5, atol=1e-5)


@pytest.fixture(params=SHAPES)
def shaped(request):
    """Returns the arrays of a shape, with OpenAI's names."""
    return clip_files.openai_state_dict(**SHAPES[request.param])


@pytest.fixture
def images():
    return np.random.default_rng(3).integers(0, 256, (3, 64, 64, 3), np.uint8)


def test_a_published_folder_and_a_published_archive_are_one_model(shaped, images, tmp_path):
    folder = tmp_path / "clip-vit"
    clip_files.write_published_folder(folder, shaped)
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "pytorch_model.bin", "tokenizer.json", "config.json"} < names
    clip_files.write_published_archive(tmp_path / "ViT-B.pt", shaped)
    clip_files.write_openai_merges(tmp_path)
    hugging, openai = clip_file.read(folder), clip_file.read(tmp_path / "ViT-B.pt")
    assert hugging.config == openai.config
    patches = (64 // hugging.config.patch_size) ** 2
    assert hugging.config.num_positions == patches + 1 and hugging.config.text_length == 77
    np.testing.assert_allclose(
        hugging.score(CAPTIONS, images), openai.score(CAPTIONS, images), rtol=0.05, atol=0.05
    )  # OpenAI's file has float16
    for text in CAPTIONS:
        np.testing.assert_array_equal(
            hugging.tokenizer.encode(text, 77), openai.tokenizer.encode(text, 77)
        )
    # Case and white space are no part of a text.
    first, second, _ = hugging.embed_texts(CAPTIONS)
    np.testing.assert_allclose(first, second, **CLOSE)


def test_either_file_of_weights_is_read(shaped, images, tmp_path):
    expected = None
    for left_out in ("pytorch_model.bin", "model.safetensors"):
        folder = tmp_path / left_out
        clip_files.write_published_folder(folder, shaped)
        (folder / left_out).unlink()
        found = clip_file.read(folder).score(CAPTIONS, images)
        expected = found if expected is None else expected
        np.testing.assert_array_equal(found, expected)


def test_any_file_of_a_tokenizer_is_enough(tmp_path):
    shaped = clip_files.openai_state_dict(**SHAPES["patch32"])
    clip_files.write_published_folder(tmp_path, shaped)
    texts = [*CAPTIONS, "apple " * 200, ""]
    rows = [clip_file.read(tmp_path).tokenizer.encode(text, 77) for text in texts]
    end = clip_files.VOCABULARY - 1
    # Of a long text the first 75 tokens stay, and the end.
    assert rows[3][0] == end - 1 and rows[3][-1] == end and (rows[3][1:-1] < end - 1).all()
    assert rows[4].tolist() == [end - 1, end] + [0] * 75
    (tmp_path / "tokenizer.json").unlink()
    again = [clip_file.read(tmp_path).tokenizer.encode(text, 77) for text in texts]
    np.testing.assert_array_equal(again, rows)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "model.safetensors is a pointer of Git LFS"),
        ("config.json", "config.json is a pointer of Git LFS"),
        ("tokenizer.json", "tokenizer.json.*pointer of Git LFS"),
    ],
)
def test_a_pointer_in_a_folder_is_named(tmp_path, name, message):
    clip_files.write_published_folder(tmp_path, clip_files.openai_state_dict())
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(ValueError, match=message):
        clip_file.read(tmp_path)


@pytest.mark.parametrize("name", ["ViT-B.pt", "bpe_simple_vocab_16e6.txt"])
def test_a_pointer_beside_an_archive_is_named(tmp_path, name):
    clip_files.write_published_archive(tmp_path / "ViT-B.pt", clip_files.openai_state_dict())
    clip_files.write_openai_merges(tmp_path)
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(ValueError, match=f"{name}.*pointer of Git LFS"):
        clip_file.read(tmp_path / "ViT-B.pt")


def test_another_model_is_named(tmp_path):
    folder = tmp_path / "bert"
    clip_files.write_published_folder(folder, clip_files.openai_state_dict())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"is not a CLIP: its config\.json says model_type 'bert'"):
        clip_file.read(folder)
    path = tmp_path / "ofa.pt"
    torch_file.save(path, {"model": {"encoder.embed_tokens.weight": np.zeros((4, 2), np.float32)}})
    clip_files.write_openai_merges(tmp_path)
    with pytest.raises(
        ValueError, match=r"ofa\.pt is not a CLIP .*visual\.conv1\.weight is missing"
    ):
        clip_file.read(path)


@pytest.mark.parametrize("part", ["text_model.", "visual_projection"])
def test_a_tower_alone_is_named(tmp_path, part):
    """Folders of image encoders or of text encoders have half of a CLIP."""
    shaped = clip_files.openai_state_dict()
    clip_files.write_published_folder(tmp_path, shaped)
    held = clip_files.huggingface_state_dict(shaped)
    held = {name: array for name, array in held.items() if not name.startswith(part)}
    clip_files.write_safetensors(tmp_path / "model.safetensors", held)
    with pytest.raises(ValueError, match="is not a CLIP that can be read: .* is missing"):
        clip_file.read(tmp_path)


def test_the_published_archive_is_not_executed(tmp_path):
    """Its code would end the process; a class outside of the program is refused."""
    path = tmp_path / "ViT-B.pt"
    clip_files.write_openai_merges(tmp_path)
    clip_files.write_published_archive(path, clip_files.openai_state_dict())
    assert clip_file.read(path).name == "clip ViT-B.pt"
    clip_files.write_torchscript(
        path, clip_files.openai_state_dict(), module=b"cbuiltins\neval\n)\x81"
    )
    with pytest.raises(ValueError, match="asks for builtins.eval"):
        clip_file.read(path)
