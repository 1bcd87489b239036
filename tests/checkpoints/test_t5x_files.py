"""Checkpoints of t5x from ours and back, bit for bit, by `ofa-convert`; t5x is not needed."""

import argparse
import dataclasses
import json
import re

import jax
import ml_dtypes
import numpy as np
import official_model
import optax
import orbax.checkpoint as ocp
import pytest
from huggingface_fixtures import tiny, vocabulary  # noqa: F401
from small_model import SMALL
from small_run import make_parts

from ofa_jax import convert
from ofa_jax.checkpoints import storage, t5x_files
from ofa_jax.checkpoints.manager import Checkpoints
from ofa_jax.inference import loading
from ofa_jax.interop import config_from_fairseq, from_fairseq, torch_file
from ofa_jax.tokenizers.processor import Processor

STEP, SKIPPED = 12, 3
RUN = {"seed": 3, "streams": [{"name": "pairs"}], "trained_seconds": 1.5}
OPTIMIZERS = {
    "adamw": {},
    "frozen": {"frozen": ("resnet",)},
    "averaged": {"ema_decay": 0.99},
}


def random_state(new_state):
    """Returns a state of other numbers, none of which are alike."""
    rng = np.random.default_rng(0)

    def draw(x):
        if x.dtype == np.float32:
            return rng.standard_normal(x.shape).astype(np.float32)
        return np.array(STEP - SKIPPED, x.dtype)

    state = jax.tree.map(draw, new_state())
    return state.replace(step=np.array(STEP, np.int32), skipped_steps=np.array(SKIPPED, np.int32))


@pytest.fixture(scope="module", params=OPTIMIZERS)
def run(request, tmp_path_factory):
    """Returns (a run directory with one checkpoint, its state, its abstract state)."""
    abstract, new_state, _, _ = make_parts(SMALL, **OPTIMIZERS[request.param])
    state = random_state(new_state)
    folder = tmp_path_factory.mktemp(request.param) / "run"
    checkpoints = Checkpoints(folder)
    checkpoints.save(STEP, state, RUN)
    checkpoints.close()
    storage.write_model_config(folder, SMALL)
    return folder, state, abstract


def restore(folder, abstract, step=STEP):
    checkpoints = Checkpoints(folder)
    found = checkpoints.restore(step, abstract)
    checkpoints.close()
    return found


def assert_same(one, two):
    """Compares trees bit for bit, types included."""
    one, two = (jax.tree_util.tree_leaves_with_path(tree) for tree in (one, two))
    assert [path for path, _ in one] == [path for path, _ in two]
    for (path, a), (_, b) in zip(one, two, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes(), path


def test_a_state_comes_back_bit_for_bit_and_its_run_goes_on(run, tmp_path, capsys):
    folder, state, abstract = run
    convert.main([str(folder), str(tmp_path / "t5x"), "--layout=t5x"])
    convert.main([str(tmp_path / "t5x"), str(tmp_path / "back")])
    wanted = state.replace(ema_params=None)
    found, metadata = restore(tmp_path / "back", abstract.replace(ema_params=None))
    assert_same(found, wanted)
    assert metadata == RUN and storage.read_model_config(tmp_path / "back") == SMALL
    printed = capsys.readouterr().out
    assert (state.ema_params is not None) == ("averaged weights, which are not taken" in printed)


def test_a_checkpoint_of_t5x_has_the_names_of_t5x(run, tmp_path):
    folder, state, _ = run
    convert.main([str(folder), str(tmp_path / "t5x"), "--layout=t5x"])
    checkpoint = t5x_files.find(tmp_path / "t5x")
    assert checkpoint.name == f"checkpoint_{STEP}"
    tree = storage.read_arrays_tree(checkpoint)
    assert set(tree) == {"target", "state", "flax_mutables"}
    assert set(tree["state"]) == {"step", "param_states"}
    read = t5x_files.read(tmp_path / "t5x")
    assert_same(read.variables, state.variables)
    states = read.param_states
    if "inner_states" in states:
        states = states["inner_states"]["learn"]["inner_state"]
    adam = states["1"]["0"]
    assert int(adam["count"]) == int(states["1"]["2"]["count"]) == STEP - SKIPPED
    kernel = state.params["token_embedding"]["embedding"]
    assert adam["mu"]["token_embedding"]["embedding"].shape == kernel.shape


def test_averaged_weights_are_taken_without_the_optimizer(run, tmp_path, capsys):
    folder, state, _ = run
    if state.ema_params is None:
        pytest.skip("has no averaged weights")
    convert.main([str(folder), str(tmp_path / "t5x"), "--layout=t5x", "--weights=ema"])
    read = t5x_files.read(tmp_path / "t5x")
    assert_same(read.variables["params"], state.ema_params)
    assert read.param_states is None and read.run is None
    convert.main([str(tmp_path / "t5x"), str(tmp_path / "back")])
    found = storage.load_numpy_variables(tmp_path / "back")
    assert_same(found["params"], state.ema_params)


def make_t5x(folder, step=5, **changes):
    """Writes a checkpoint as t5x's own training does; returns its state."""
    _, new_state, _, _ = make_parts(SMALL)
    state = random_state(new_state)
    adamw = state.opt_state[1]
    states = {
        "1": {
            "0": {"count": adamw[0].count, "mu": adamw[0].mu, "nu": adamw[0].nu},
            "2": {"count": adamw[2].count},
        }
    }
    held = t5x_files.T5XState(step, state.variables, states)
    held = dataclasses.replace(held, **changes)
    t5x_files.write(folder, held)
    storage.write_model_config(folder, SMALL)
    return held


def test_the_optimizer_of_a_training_of_t5x_is_kept_but_no_run_goes_on(tmp_path, capsys):
    held = make_t5x(tmp_path / "t5x", step=STEP)
    convert.main([str(tmp_path / "t5x"), str(tmp_path / "run")])
    assert "ofa-train cannot continue from it" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="not written by training"):
        storage.read_run_metadata(tmp_path / "run")
    convert.main([str(tmp_path / "run"), str(tmp_path / "again"), "--layout=t5x"])
    again = t5x_files.read(tmp_path / "again")
    assert again.step == STEP and again.run is None
    assert_same(again.param_states, held.param_states)


def test_states_of_other_optimizers_are_none_of_ours(tmp_path):
    held = make_t5x(tmp_path / "t5x", step=STEP)
    assert int(t5x_files.to_train_state(held).skipped_steps) == SKIPPED
    adam = held.param_states["1"]["0"]
    first, *_ = adam["mu"]
    damaged = [
        {"0": adam},
        {"1": {"0": adam}},
        {"1": adam["count"]},
        {"1": {"0": adam | {"count": np.zeros(3, np.int32)}, "2": {"count": adam["count"]}}},
        {"1": {"0": adam | {"mu": adam["count"]}, "2": {"count": adam["count"]}}},
        {"1": {"0": adam | {"count": -adam["count"]}, "2": {"count": adam["count"]}}},
        {"1": {"0": adam, "2": {"count": np.array(np.nan, np.float32)}}},
        {"1": {"0": adam | {"nu": {first: adam["count"]}}, "2": {"count": adam["count"]}}},
        {"inner_states": {"other": {"inner_state": held.param_states}}},
    ]
    for states in damaged:
        changed = dataclasses.replace(held, param_states=states)
        assert t5x_files.to_train_state(changed) is None


def test_another_optimizer_is_left_out(tmp_path, capsys):
    lion = jax.tree.map(np.asarray, optax.lion(1e-3).init({"a": np.zeros(3, np.float32)}))
    make_t5x(tmp_path / "t5x", param_states={"0": {"count": lion[0].count, "mu": lion[0].mu}})
    convert.main([str(tmp_path / "t5x"), str(tmp_path / "run")])
    assert "it is not that of ofa_jax.t5x.adamw" in capsys.readouterr().out
    assert set(storage.read_arrays_tree(storage.find_checkpoint(tmp_path / "run"))) == {
        "params", "batch_stats"
    }  # fmt: skip


def test_the_newest_checkpoint_is_taken_and_others_by_name(tmp_path):
    for step in (9, 10):
        make_t5x(tmp_path / "t5x", step=step, param_states=None)
    assert t5x_files.find(tmp_path / "t5x").name == "checkpoint_10"
    convert.main([str(tmp_path / "t5x" / "checkpoint_9"), str(tmp_path / "run")])
    assert list(storage.list_checkpoints(tmp_path / "run")) == [9]


def test_an_official_checkpoint_becomes_one_of_t5x(golden, tmp_path):
    args, state_dict = official_model.make_tiny(golden)
    path = tmp_path / "model.pt"
    torch_file.save(path, {"args": argparse.Namespace(**args), "model": state_dict})
    convert.main([str(path), str(tmp_path / "t5x"), "--layout=t5x"])
    read = t5x_files.read(tmp_path / "t5x")
    config = storage.parse_model_config(tmp_path / "t5x" / "model.json")
    assert read.step == 0 and read.param_states is None
    assert_same(read.variables, from_fairseq(state_dict, config))
    convert.main([str(tmp_path / "t5x"), str(tmp_path / "again.pt")])
    convert.main([str(tmp_path / "t5x"), str(tmp_path / "hf"), "--layout=huggingface"])
    assert (tmp_path / "hf" / "model.safetensors").is_file()
    again = torch_file.load(tmp_path / "again.pt")["model"]
    for name, array in state_dict.items():
        if array.dtype == np.float32:
            np.testing.assert_array_equal(again[name], array)


def test_vocabulary_and_image_sizes_go_along(tiny, vocabulary, tmp_path, capsys):  # noqa: F811
    config, run, t5x = config_from_fairseq(tiny[0], 401), tmp_path / "run", tmp_path / "t5x"
    storage.save_variables(run, from_fairseq(tiny[1], config), step=20)
    storage.write_model_config(run, config)
    Processor(vocabulary[0], image_size=48, max_image_size=64).save(run)
    convert.main([str(run), str(t5x), "--layout=t5x"])
    for source, name, *options in (
        (t5x, "back"),
        (t5x / "checkpoint_20", "by_name"),
        (t5x, "hf", "--layout=huggingface"),
    ):
        convert.main([str(source), str(tmp_path / name), *options])
        loaded = loading.load_processor(str(tmp_path / name))
        assert (loaded.image_size, loaded.max_image_size) == (48, 64)
        text = " a brown horse"
        np.testing.assert_array_equal(loaded.vocabulary.encode(text), vocabulary[0].encode(text))
    printed = capsys.readouterr().out
    assert "not taken" not in printed and "no tokenizer files" not in printed


def test_a_structure_of_an_old_orbax_is_refused(tmp_path, capsys):
    make_t5x(tmp_path / "t5x", param_states=None)
    state = tmp_path / "t5x" / "checkpoint_5" / "state"
    (state / "_METADATA").rename(state / "checkpoint")
    sentence = fails(capsys, tmp_path / "t5x", tmp_path / "out")
    assert "old version of Orbax" in sentence and "save it again" in sentence
    (state / "checkpoint").unlink()
    sentence = fails(capsys, tmp_path / "t5x", tmp_path / "out")
    assert "cannot be read (it has no _METADATA of its arrays)" in sentence


def zarr_of_t5x(folder):
    """Writes a checkpoint of t5x in zarr; returns the `.zarray` of each array."""
    held = make_t5x(folder)
    state = folder / "checkpoint_5" / "state"
    content = {
        "target": held.variables["params"],
        "flax_mutables": {"batch_stats": held.variables["batch_stats"]},
        "state": {"step": np.array(5), "param_states": held.param_states},
    }
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(state, ocp.args.PyTreeSave(content), force=True)
    return {path.parent.name: path for path in state.rglob(".zarray")}


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("target", {"shape": [2**40]}, r"is \[1099511627776\] and should be"),
        ("target", {"chunks": [2**40]}, "stored in too large pieces"),
        ("target", {"dtype": "<i4"}, "has the type int32 and should have float32"),
        ("state", {"shape": [2**40], "chunks": [2**40]}, ""),
    ],
)
def test_arrays_are_checked_before_memory_is_taken(name, change, sentence, tmp_path, capsys):
    arrays = zarr_of_t5x(tmp_path / "t5x")
    path = next(
        own for key, own in sorted(arrays.items())
        if key.startswith(name) and len(json.loads(own.read_text())["shape"]) == 1
    )  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if sentence:
        assert re.search(sentence, fails(capsys, tmp_path / "t5x", tmp_path / "run"))
        return
    convert.main([str(tmp_path / "t5x"), str(tmp_path / "run")])
    assert "it has an array that is larger than every parameter" in capsys.readouterr().out


def test_parameters_in_bfloat16_become_float32(tmp_path):
    held = make_t5x(tmp_path / "full", param_states=None)
    half = jax.tree.map(lambda array: array.astype(ml_dtypes.bfloat16), held.variables)
    make_t5x(tmp_path / "t5x", param_states=None, variables=half)
    convert.main([str(tmp_path / "t5x"), str(tmp_path / "run")])
    found = storage.load_numpy_variables(tmp_path / "run")
    assert_same(found, jax.tree.map(lambda array: array.astype(np.float32), half))


def fails(capsys, *arguments):
    """Returns the sentence with which a conversion fails."""
    with pytest.raises(SystemExit) as error:
        convert.main([str(argument) for argument in arguments])
    assert error.value.code == 2
    *_, sentence = capsys.readouterr().err.strip().splitlines()  # behind the progress
    return sentence


def test_what_cannot_be_converted_is_said_in_a_sentence(tmp_path, capsys):
    folder = tmp_path / "t5x"
    make_t5x(folder)
    out = tmp_path / "out"
    assert "leave --weights out" in fails(capsys, folder, out, "--weights=ema")
    other = tmp_path / "other.json"
    wider = SMALL.replace(ffn_width=64)
    other.write_text(json.dumps(dataclasses.asdict(wider)))
    assert "is of another model" in fails(capsys, folder, out, f"--model_config={other}")
    (folder / "model.json").rename(tmp_path / "model.json")
    assert re.search(
        "no .*model.json, so the model of .* --model_config=PATH", fails(capsys, folder, out)
    )
    convert.main([str(folder), str(out), f"--model_config={tmp_path / 'model.json'}"])
    assert "for checkpoints of t5x" in fails(capsys, out, tmp_path / "o", f"--model_config={other}")
    with pytest.raises(ValueError, match="checkpoint of t5x: convert it with ofa-convert first"):
        storage.load_numpy_variables(folder / "checkpoint_5")
    legacy = tmp_path / "old" / "checkpoint_3"
    legacy.mkdir(parents=True)
    (legacy / "checkpoint").write_bytes(b"\x80")
    assert "use_orbax = False" in fails(capsys, tmp_path / "old", tmp_path / "o")
    foreign = {"target": {"embedding": np.zeros(3)}, "state": {"step": np.array(5)}}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "t5" / "checkpoint_5" / "state", foreign)
    storage.write_model_config(tmp_path / "t5", SMALL)
    assert "is not a checkpoint of OFA" in fails(capsys, tmp_path / "t5", tmp_path / "o")
