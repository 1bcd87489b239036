"""A run directory stores the vocabulary, image tokenizer and image sizes for inference."""

import numpy as np
import pytest

from ofa_jax.interop import vqgan_file
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.tokenizers.vocabulary import OFAVocabulary


def test_a_saved_processor_is_loaded_unchanged(processor, tmp_path):
    processor.save(tmp_path)
    again = Processor.load(tmp_path)
    assert again.vocabulary == processor.vocabulary
    assert again.replace(vocabulary=None, image_tokenizer=None) == processor.replace(
        vocabulary=None, image_tokenizer=None
    )
    np.testing.assert_array_equal(
        again.image_tokenizer.codebook, processor.image_tokenizer.codebook
    )
    text = ' which region does the text " a red apple " describe?'
    assert again.vocabulary.encode(text).tolist() == processor.vocabulary.encode(text).tolist()


def test_a_saved_vqgan_is_loaded_unchanged(processor, golden, tmp_path):
    with np.load(golden / "vqgan" / "state_dict_f16.npz") as arrays:
        vqgan = vqgan_file.from_state_dict({name: arrays[name] for name in arrays.files})
    processor.replace(image_tokenizer=vqgan).save(tmp_path)
    again = Processor.load(tmp_path).image_tokenizer
    assert again.config == vqgan.config
    np.testing.assert_array_equal(
        again.params["quantize"]["embed"]["embedding"],
        vqgan.params["quantize"]["embed"]["embedding"],
    )


def test_an_image_tokenizer_of_another_kind_is_left_out(processor, tmp_path):
    class Another:
        num_codes, pixels_per_code = 16, 8

    processor.replace(image_tokenizer=Another()).save(tmp_path)
    assert Processor.load(tmp_path).image_tokenizer is None


def test_the_official_vocabulary_is_saved_to_and_loaded_from_one_file(shared_golden, tmp_path):
    official = OFAVocabulary.from_ofa_directory(shared_golden / "bpe")
    official.save(tmp_path / "vocabulary.json")
    again = OFAVocabulary.load(tmp_path / "vocabulary.json")
    assert again == official and again.vocab_size == 59457
    text = " what does the image describe? Ünïcode 123"
    assert again.encode(text).tolist() == official.encode(text).tolist()
    assert again.decode(again.encode(text)) == text


def test_an_invalid_vocabulary_is_reported_in_one_sentence(processor, tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match="was not written by OFAVocabulary.save"):
        OFAVocabulary.load(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match="There is no b.json"):
        OFAVocabulary.load(tmp_path / "b.json")
    with pytest.raises(FileNotFoundError, match="so the model's vocabulary is unknown"):
        Processor.load(tmp_path)
