"""Converts checkpoint files in both directions, bit for bit; invalid files raise clear errors."""

import argparse
import re
import time

import jax
import numpy as np
import official_model
import pytest
import recipe
from peak_memory import peak_bytes
from shown_progress import assert_shown, every_line

from ofa_jax.checkpoints import storage
from ofa_jax.interop import (
    args_for_fairseq,
    config_from_fairseq,
    files,
    from_fairseq,
    initialise_from_bart,
    resize_vocabulary,
    torch_file,
)
from ofa_jax.model import OFAConfig
from tools import convert_checkpoint


@pytest.fixture(scope="module")
def tiny(golden):
    """Returns (args, float32 state dict with buffers and counters) of the small official model."""
    args, state_dict = official_model.make_tiny(golden)
    for key in state_dict:
        if key.endswith("num_batches_tracked"):
            state_dict[key] = np.array(1234, np.int64)
    return args, state_dict


@pytest.fixture(scope="module", params=["args", "cfg", "half"])
def official(request, tiny, tmp_path_factory):
    """Writes a `.pt` as old and new fairseq do, in float32 and in float16."""
    args, state_dict = tiny
    if request.param == "half":
        state_dict = {
            k: a.astype(np.float16) if a.dtype == np.float32 else a for k, a in state_dict.items()
        }
    namespace = argparse.Namespace(**args)
    content = {"args": None, "cfg": {"model": namespace, "task": {"num_bins": 32}}}
    if request.param == "args":
        content = {"args": namespace}
    path = tmp_path_factory.mktemp("official") / "model.pt"
    torch_file.save(path, content | {"model": state_dict})
    return path


def assert_same_tensors(first, second):
    one, two = torch_file.load(first), torch_file.load(second)
    one, two = one.get("model", one), two.get("model", two)
    assert list(one) == list(two)
    for key in one:
        assert one[key].dtype == two[key].dtype, key
        assert one[key].shape == two[key].shape, key
        assert one[key].tobytes() == two[key].tobytes(), key


def test_conversion_both_ways_gives_the_same_tensors_bit_for_bit(official, tmp_path, capsys):
    ours, back = str(tmp_path / "ours"), str(tmp_path / "back.pt")
    with every_line() as shown:
        convert_checkpoint.main([str(official), ours])
        convert_checkpoint.main([ours, back])
    assert_shown(shown, "converting", "2 parts", is_even=False)
    text = shown.getvalue()
    assert re.search(r"converting: 0/2 parts, .* > converting tensors: (\d+)/\1 ", text)
    assert re.search(r"converting: 1/2 parts, .* > writing tensors: ([\d.]+)/\1 MB", text)
    assert_same_tensors(official, back)
    assert "Wrote" in capsys.readouterr().out
    again = files.read(back)
    assert again.config == files.read(official).config


def test_through_the_other_layout_and_back(official, tmp_path):
    folder, back = tmp_path / "hf", tmp_path / "back.pt"
    convert_checkpoint.main([str(official), str(folder), "--layout=huggingface"])
    held = torch_file.load(folder / "pytorch_model.bin")
    assert "decoder.layers.0.cross_attn_mid_layer_norm.weight" in held
    assert "encoder.layers.1.self_attn.c_attn" in held
    convert_checkpoint.main([str(folder), str(back)])
    one, two = files.read(official).state_dict, files.read(back).state_dict
    for key in one:
        np.testing.assert_array_equal(one[key].astype(np.float64), two[key], err_msg=key)
    config = files.read(folder).config
    assert config == files.read(official).config.replace(resnet_layers=config.resnet_layers)


@pytest.mark.parametrize("size", ["tiny", "medium", "base", "large", "huge"])
def test_arguments_are_converted_both_ways(size):
    config = getattr(OFAConfig, size)()
    assert config_from_fairseq(args_for_fairseq(config), config.vocab_size) == config


def test_a_resnet_unknown_to_the_official_code_cannot_be_written():
    with pytest.raises(ValueError, match="has no ResNet of"):
        args_for_fairseq(OFAConfig.scenes())


def test_all_mismatches_are_listed_at_once(tiny):
    args, state_dict = tiny
    config = config_from_fairseq(args, 401)
    broken = dict(state_dict)
    del broken["encoder.layer_norm.weight"], broken["decoder.pos_ln.bias"]
    broken["encoder.new"] = broken["decoder.newer"] = np.zeros(3)
    broken["encoder.image_proj.bias"] = np.zeros(65)
    with pytest.raises(ValueError) as raised:
        from_fairseq(broken, config)
    message = str(raised.value)
    assert "missing: decoder.pos_ln.bias, encoder.layer_norm.weight" in message
    assert "not expected: decoder.newer, encoder.new" in message
    assert "misshapen: encoder.image_proj.bias [65] (must be [64])" in message


def test_another_vocabulary_is_reported_with_advice_and_can_be_extended(tiny):
    args, state_dict = tiny
    config = config_from_fairseq(args, 411)
    sentence = "vocabulary of 401 ids, and the model one of 411.*--vocab_size=411"
    with pytest.raises(ValueError, match=sentence):
        from_fairseq(state_dict, config)
    longer = resize_vocabulary(state_dict, 411)
    variables = from_fairseq(longer, config)
    embedding = variables["params"]["token_embedding"]["embedding"]
    np.testing.assert_array_equal(embedding[:401], state_dict["encoder.embed_tokens.weight"])
    # Ten rows of 64 draws from N(0, 1/64): their deviation is known to 1 / sqrt(2 * 640).
    assert embedding[401:].std() == pytest.approx(0.125, rel=5 / np.sqrt(2 * 640))
    with pytest.raises(ValueError, match="cannot be cut to 400"):
        resize_vocabulary(state_dict, 400)


def test_the_command_extends_a_vocabulary(official, tmp_path):
    convert_checkpoint.main([str(official), str(tmp_path / "ours"), "--vocab_size=450"])
    assert storage.read_model_config(str(tmp_path / "ours")).vocab_size == 450
    convert_checkpoint.main([str(tmp_path / "ours"), str(tmp_path / "x.pt")])
    assert len(files.read(tmp_path / "x.pt").state_dict["encoder.embed_tokens.weight"]) == 450


def test_bart_initialises_the_text_part(tiny):
    _, state_dict = tiny
    rng = np.random.default_rng(0)
    bart = {
        key: rng.standard_normal(np.shape(array)).astype(np.float32)
        for key, array in state_dict.items()
        if ".layers." in key and "_ln" not in key and "c_attn" not in key
    }
    bart["encoder.embed_tokens.weight"] = rng.standard_normal((301, 64)).astype(np.float32)
    bart["encoder.version"] = np.array([3.0])
    result, taken = initialise_from_bart(state_dict, bart, mask_id=304)
    assert "encoder.layers.0.self_attn.q_proj.weight" in taken and "encoder.version" not in taken
    for key in taken:
        if key != "encoder.embed_tokens.weight":
            np.testing.assert_array_equal(result[key], bart[key])
    embedding = result["decoder.output_projection.weight"]
    np.testing.assert_array_equal(embedding[:300], bart["encoder.embed_tokens.weight"][:300])
    np.testing.assert_array_equal(embedding[304], bart["encoder.embed_tokens.weight"][300])
    np.testing.assert_array_equal(embedding[305:], state_dict["encoder.embed_tokens.weight"][305:])
    np.testing.assert_array_equal(
        result["encoder.image_proj.weight"], state_dict["encoder.image_proj.weight"]
    )
    narrow = bart | {"encoder.embed_tokens.weight": np.zeros((301, 32))}
    with pytest.raises(ValueError, match="BART is 32 wide and this model 64"):
        initialise_from_bart(state_dict, narrow, 304)


def test_unconvertible_inputs_are_reported_in_one_sentence(tiny, tmp_path, capsys):
    args, state_dict = tiny
    torch_file.save(tmp_path / "no_model.pt", {"weights": state_dict})
    torch_file.save(tmp_path / "no_args.pt", {"model": state_dict})
    torch_file.save(
        tmp_path / "other.pt",
        {"model": {"a": np.zeros(2)}, "args": argparse.Namespace(encoder_layers=2)},
    )
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "pytorch_model.bin").write_bytes(b"")
    for name, sentence in (
        ("no_model.pt", "has no 'model' (it holds weights)"),
        ("no_args.pt", "lacks the arguments of its model"),
        ("other.pt", "the checkpoint has no encoder.embed_tokens.weight"),
        ("hf", "which describes the model"),
        ("nowhere.pt", "There is no checkpoint file"),
        ("nowhere", "There is no checkpoint in"),
    ):
        with pytest.raises(SystemExit) as ended:
            convert_checkpoint.main([str(tmp_path / name), str(tmp_path / "out")])
        error = capsys.readouterr().err.strip()
        assert ended.value.code == 2 and sentence in error and "\n" not in error
    with pytest.raises(SystemExit):
        convert_checkpoint.main([str(tmp_path / "no_args.pt"), str(tmp_path / "other.pt")])
    assert "already: choose another OUTPUT" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_size_checkpoint_is_converted_both_ways_in_little_time_and_memory(golden, tmp_path):
    """Base, from the recipe. Each way in a process of its own: its peak is that of the command."""
    args, state_dict = recipe.official("base", golden)
    torch_file.save(tmp_path / "base.pt", {"args": argparse.Namespace(**args), "model": state_dict})
    size = (tmp_path / "base.pt").stat().st_size
    begun = time.perf_counter()
    # See test_conversion_memory.py for what is held at once.
    for source, target, shares in (("base.pt", "ours", 3.5), ("ours", "back.pt", 1.75)):
        module = "tools.convert_checkpoint"
        found = peak_bytes(module, tmp_path / source, tmp_path / target)
        assert size / 2 < found < shares * size, (source, target, found)
    assert time.perf_counter() - begun < 180
    assert_same_tensors(tmp_path / "base.pt", tmp_path / "back.pt")


def test_a_converted_model_scores_as_the_official_one(official, golden, tmp_path):
    """Through the files: logits of case a, as in the model's own tests."""
    convert_checkpoint.main([str(official), str(tmp_path / "ours")])
    reference = official_model.Official(golden / "model_tiny")
    variables = storage.load_numpy_variables(str(tmp_path / "ours"))
    case, batch = reference.case("a")
    np.testing.assert_allclose(reference.apply(variables, batch), case["logits"], atol=1e-4, rtol=0)
    jax.tree.map(np.testing.assert_array_equal, variables, reference.variables)
