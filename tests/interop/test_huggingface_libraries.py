"""Reads our folders with the libraries of Hugging Face, as far as they need no class of OFA.

`transformers` is not among the requirements. In an environment beside this project's:

    python3.11 -m venv .venv-transformers
    echo "$PWD/.venv/lib/python3.11/site-packages" > \
      .venv-transformers/lib/python3.11/site-packages/project.pth
    .venv-transformers/bin/pip install transformers safetensors
    .venv-transformers/bin/python -m pytest --slow tests/interop/test_huggingface_libraries.py
"""

import json

import numpy as np
import pytest
from huggingface_fixtures import TEXT, assert_same_bytes
from PIL import Image

from ofa_jax.interop import safetensors_file
from ofa_jax.tokenizers.vocabulary import OFAVocabulary

TEXTS = (TEXT, " what color is the car?", " an unknown zebra, 42!", "ünïcödé 中文")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed")


def test_auto_tokenizer_has_the_ids_of_the_model(transformers, folder, vocabulary):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    made = vocabulary[0]
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        assert ids == made.encode(text, add_bos=True, add_eos=True).tolist(), text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer) == made.vocab_size
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]) == [
        made.bos_id, made.pad_id, made.eos_id, made.unk_id, made.mask_id
    ]  # fmt: skip
    assert tokenizer.convert_tokens_to_ids(["<code_0>", "<bin_31>"]) == [
        made.code_ids.start, made.bin_ids.stop - 1
    ]  # fmt: skip
    marked = tokenizer("<bin_3><bin_4>", add_special_tokens=False).input_ids
    assert marked == [made.bin_ids.start + 3, made.bin_ids.start + 4]


def test_the_official_tokenizer_files_have_the_official_ids(transformers, shared_golden, tmp_path):
    OFAVocabulary.from_ofa_directory(shared_golden / "bpe").save_for_huggingface(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rows = json.loads((shared_golden / "bpe" / "bpe.json").read_text())["encode"]
    # In texts, fairseq knows no special symbols, and the library finds those of OFA.
    plain = [row for row in rows if "<" not in row["text"]]
    assert len(plain) > len(rows) / 2
    for row in plain:
        assert tokenizer(row["text"], add_special_tokens=False).input_ids == row["ids"]


def test_auto_image_processor_makes_the_pixels_of_the_model(transformers, folder):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(noise.repeat(64, axis=0).repeat(64, axis=1))
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    found = np.asarray(processor(image, return_tensors="np")["pixel_values"])
    size = json.loads((folder / "preprocessor_config.json").read_text())["size"]["height"]
    assert found.shape == (1, 3, size, size)
    resized = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.float32)
    wanted = (resized / 127.5 - 1).transpose(2, 0, 1)
    # Pillow rounds to whole numbers of 255; other backends may round once more.
    np.testing.assert_allclose(found[0], wanted, atol=1.01 / 127.5)


def test_the_library_safetensors_reads_every_file(folder):
    library = pytest.importorskip("safetensors", reason="the library safetensors is not installed")
    listed = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for name in sorted(set(listed.values())):
        with library.safe_open(folder / name, "np") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert {key for key, file in listed.items() if file == name} == set(opened.keys())
            ours = safetensors_file.load(folder / name)
            assert_same_bytes({key: opened.get_tensor(key) for key in ours}, ours)
