"""Averaged weights in a checkpoint: reported where they are not taken, and taken on demand."""

import argparse

import jax
import numpy as np
import official_model
import pytest

from ofa_jax.checkpoints import load, storage, warm_start
from ofa_jax.checkpoints.warm_start import WarmStart
from ofa_jax.interop import files, from_fairseq, torch_file
from ofa_jax.sharding import Partitioner
from tools import convert_checkpoint

KEY = "encoder.layers.0.fc1.weight"


@pytest.fixture(scope="module")
def tiny(golden):
    """Returns (args, state dict) of the small official model."""
    return official_model.make_tiny(golden)


def shifted(state_dict, by=0.25):
    moved = {}
    cast = {}
    for key, array in state_dict.items():
        # Tied tensors stay tied.
        if id(array) not in cast:
            cast[id(array)] = array + np.float32(by) if array.dtype == np.float32 else array
        moved[key] = cast[id(array)]
    return moved


def write(path, tiny, **extra):
    args, state_dict = tiny
    content = {"args": argparse.Namespace(**args), "cfg": None, "model": state_dict}
    torch_file.save(path, content | extra)
    return path


@pytest.fixture(scope="module")
def vqa(tiny, tmp_path_factory):
    """A checkpoint as fairseq writes it with --store-ema: averages in half precision."""
    half = {
        key: array.astype(np.float16) if array.dtype == np.float32 else array
        for key, array in shifted(tiny[1]).items()
    }
    return write(
        tmp_path_factory.mktemp("vqa") / "checkpoint_best.pt",
        tiny,
        extra_state={
            "ema": half,
            "ema_fp32_params": shifted(tiny[1]),
            "epoch": 3,
            "val_loss": None,
        },
        last_optimizer_state={"state": {0: {"exp_avg": np.zeros(3, np.float32)}}},
        optimizer_history=[{"num_updates": 7}],
        task_state={},
    )


def test_averages_are_reported_and_not_taken(vqa, tiny):
    read = files.read(vqa)
    np.testing.assert_array_equal(read.state_dict[KEY], tiny[1][KEY])
    assert read.other_weights == ("extra_state.ema", "extra_state.ema_fp32_params")
    assert read.unread == (
        "extra_state (epoch, val_loss)", "last_optimizer_state (state)", "optimizer_history"
    )  # fmt: skip
    assert read.describe_weights("x.pt", "--weights") == (
        "x.pt holds averaged weights (extra_state.ema, extra_state.ema_fp32_params), which are not "
        "taken: --weights=ema takes them, as the reference implementation's --ema-eval does."
    )


@pytest.mark.parametrize(
    "weights, dtype", [("ema", np.float16), ("extra_state.ema_fp32_params", np.float32)]
)
def test_averages_are_taken_on_demand(vqa, tiny, weights, dtype):
    read = files.read(vqa, weights)
    expected = tiny[1][KEY] + np.float32(0.25)
    np.testing.assert_array_equal(read.state_dict[KEY], expected.astype(dtype))
    assert read.config == files.read(vqa).config
    assert f"Took the weights {read.weights} of x.pt, not those of model," in (
        read.describe_weights("x.pt")
    )
    # Ours are float32, as the reference implementation converts them.
    variables = from_fairseq(read.state_dict, read.config)
    assert {array.dtype for array in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    "place", [("ema",), ("ema_params",), ("model_ema",), ("extra_state", "ema_params"),
              ("ema", "state_dict")],
)  # fmt: skip
def test_averages_are_found_wherever_they_are(tiny, tmp_path, place):
    held = shifted(tiny[1])
    for key in reversed(place):
        held = {key: held}
    path = write(tmp_path / "x.pt", tiny, **held)
    assert files.read(path).other_weights == (".".join(place),)
    read = files.read(path, "ema")
    np.testing.assert_array_equal(read.state_dict[KEY], tiny[1][KEY] + np.float32(0.25))


def test_averages_of_parameters_alone_keep_the_statistics_of_the_model(tiny, tmp_path):
    averaged = {
        f"module.{key}": array for key, array in shifted(tiny[1]).items() if "running" not in key
    }
    path = write(tmp_path / "x.pt", tiny, ema=averaged)
    read = files.read(path, "ema")
    from_fairseq(read.state_dict, read.config)
    name = next(key for key in tiny[1] if key.endswith("running_var"))
    np.testing.assert_array_equal(read.state_dict[name], tiny[1][name])
    np.testing.assert_array_equal(read.state_dict[KEY], tiny[1][KEY] + np.float32(0.25))


def test_weights_that_a_file_lacks_are_refused(vqa, tiny, tmp_path):
    plain = write(tmp_path / "x.pt", tiny)
    assert files.read(plain).describe_weights(plain) is None
    with pytest.raises(ValueError, match="does not hold the weights ema: it has model"):
        files.read(plain, "ema")
    with pytest.raises(
        ValueError, match="weights extra_state.x: it has model, extra_state.ema, ex"
    ):
        files.read(vqa, "extra_state.x")


def test_the_command_reports_and_takes_averages(vqa, tiny, tmp_path, capsys):
    convert_checkpoint.main([str(vqa), str(tmp_path / "last")])
    printed = capsys.readouterr().out
    assert "holds averaged weights (extra_state.ema, extra_state.ema_fp32_params)" in printed
    assert "--weights=ema takes them" in printed
    assert "also holds what is not read: extra_state (epoch, val_loss), last_optim" in printed
    convert_checkpoint.main([str(vqa), str(tmp_path / "ema"), "--weights=ema"])
    assert "Took the weights extra_state.ema of" in capsys.readouterr().out
    for name, by in (("last", 0), ("ema", 0.25)):
        convert_checkpoint.main([str(tmp_path / name), str(tmp_path / f"{name}.pt")])
        back = torch_file.load(tmp_path / f"{name}.pt")["model"][KEY]
        dtype = np.float16 if by else np.float32
        assert back.dtype == dtype
        np.testing.assert_array_equal(back, (tiny[1][KEY] + np.float32(by)).astype(dtype))
    with pytest.raises(SystemExit):
        convert_checkpoint.main([str(vqa), str(tmp_path / "x"), "--weights=best"])
    assert "does not hold the weights best" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ema", "ema.pt", "last", "last.pt"]


def test_models_are_loaded_with_either_weights(vqa, monkeypatch):
    logged = []
    monkeypatch.setattr(warm_start.logging, "warning", lambda text, *x: logged.append(text % x))
    partitioner = Partitioner(devices=tuple(jax.local_devices()[:1]))
    config = load.load_config(str(vqa))
    last = jax.tree.leaves(load.load_variables(str(vqa), config, partitioner))
    averaged = jax.tree.leaves(load.load_variables(str(vqa), config, partitioner, "ema"))
    assert [line.split(" (extra")[0] for line in logged] == [
        f"{vqa} holds averaged weights", f"Took the weights extra_state.ema of {vqa}, not those of "
        "model, extra_state.ema_fp32_params."
    ]  # fmt: skip
    assert any(not np.array_equal(a, b) for a, b in zip(last, averaged, strict=True))
    expected = from_fairseq(files.read(vqa, "ema").state_dict, config)
    for got, wanted in zip(averaged, jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_training_begins_from_either_weights(vqa):
    config = files.read(vqa).config
    for weights, place in (("model", "model"), ("ema", "extra_state.ema")):
        assert WarmStart.open(str(vqa), config, weights).official.weights == place
    with pytest.raises(ValueError, match="does not hold the weights best"):
        WarmStart.open(str(vqa), config, "best")


def test_a_run_of_ours_with_averages_is_treated_alike(vqa, tmp_path, capsys):
    read = files.read(vqa)
    variables = from_fairseq(read.state_dict, read.config)
    average = from_fairseq(files.read(vqa, "ema").state_dict, read.config)["params"]
    storage.save_variables(tmp_path / "run", variables | {"ema_params": average})
    storage.write_model_config(tmp_path / "run", read.config)
    convert_checkpoint.main([str(tmp_path / "run"), str(tmp_path / "last.pt")])
    assert "holds averaged weights, which are not taken: --weights=ema" in capsys.readouterr().out
    convert_checkpoint.main([str(tmp_path / "run"), str(tmp_path / "ema.pt"), "--weights=ema"])
    last, ema = (torch_file.load(tmp_path / f"{name}.pt")["model"] for name in ("last", "ema"))
    np.testing.assert_array_equal(last[KEY], read.state_dict[KEY])
    np.testing.assert_array_equal(ema[KEY], files.read(vqa, "ema").state_dict[KEY])
    assert WarmStart.open(str(tmp_path / "run"), read.config, "ema").averaged
    assert not WarmStart.open(str(tmp_path / "run"), read.config).averaged
    storage.save_variables(tmp_path / "plain", variables)
    with pytest.raises(ValueError, match="has no averaged weights"):
        WarmStart.open(str(tmp_path / "plain"), read.config, "ema")
