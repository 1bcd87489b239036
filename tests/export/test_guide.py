"""The code in docs/guides/export.md runs, and finds what the Predictor finds."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import without_project

import ofa_jax
from ofa_jax.decoding import DecodingConfig
from ofa_jax.export import command
from ofa_jax.export.loader import Model

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "guides" / "export.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text("utf-8"), re.S | re.M)
INSTRUCTION = "what does the image describe?"


@pytest.fixture
def folder(run_directory, image, tmp_path):
    """Returns a folder with an export and an image, as the guide has them."""
    flags = ["--source_length=32", "--target_length=4", "--decoding.beam_size=3"]
    command.main([str(run_directory), f"--out={tmp_path / 'exported'}", *flags])
    image.save(tmp_path / "room.jpg", quality=95)
    return tmp_path


def test_the_example_runs_without_this_project(folder, run_directory, processor):
    example, loop, plain = BLOCKS[:3]
    report = """
import json
steps = []
print(json.dumps({
    "best": best,
    "again": np.asarray(again["tokens"]).tolist(),
    "tokens": np.asarray(found["tokens"]).tolist(),
    "logits": np.asarray(logits).tolist(),
    "foreign": FOREIGN(),
}))
"""
    program = "\n".join([example, loop, plain, report])
    found = json.loads(
        without_project.run(program, folder, allowed=("loader", "tokenizers", "PIL"))
    )
    decoding = DecodingConfig(beam_size=3, max_length=4)
    predictor = ofa_jax.Predictor(run_directory, source_lengths=(32,), beam_size=3)
    wanted = predictor.predict(folder / "room.jpg", INSTRUCTION, decoding=decoding)
    assert processor.vocabulary.decode(np.array(found["best"])).strip() == wanted.symbols
    assert found["again"] == found["tokens"]
    assert np.isfinite(found["logits"]).all() and np.shape(found["logits"])[0] == 1
    assert not {"flax", "ofa_jax", "tensorflow", "orbax"} & set(found["foreign"])


@pytest.mark.slow
def test_the_saved_model_runs_in_tensorflow(folder):
    """Loads it in a process that imports TensorFlow alone, and compares with the loader."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS[3]], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    model = Model(folder / "exported")
    rng = np.random.default_rng(0)
    entry = model.manifest["programs"]["encoder"]["inputs"]
    inputs = {
        "encoder_input_tokens": np.array([[0, *rng.integers(5, 300, 30), 2]], np.int32),
        "encoder_images": rng.integers(0, 256, entry["encoder_images"]["shape"], np.uint8),
        "encoder_image_mask": np.ones(1, bool),
    }
    np.savez(folder / "inputs.npz", **inputs)
    program = """
import sys
sys.modules |= dict.fromkeys(("jax", "flax", "ofa_jax"))  # importing them fails
import numpy as np
import tensorflow as tf
model = tf.saved_model.load("saved_model")
encoded = model.encoder(dict(np.load("inputs.npz")))
cache, logits = model.decoder_start(encoded), []
for position in range(4):
    tokens = np.array([5 + position], np.int32)
    cache = dict(model.decoder_step({"tokens": tokens, "position": np.int32(position), **cache}))
    logits.append(cache.pop("logits").numpy())
np.savez("outputs.npz", hidden=encoded["hidden"].numpy(), logits=logits)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    encoded = model("encoder", **inputs)
    cache, logits = model("decoder_start", **encoded), []
    for position in range(4):
        tokens = np.array([5 + position], np.int32)
        cache = model("decoder_step", tokens=tokens, position=np.int32(position), **cache)
        logits.append(np.asarray(cache.pop("logits")))
    with np.load(folder / "outputs.npz") as outputs:
        np.testing.assert_allclose(outputs["hidden"], encoded["hidden"], atol=1e-5)
        np.testing.assert_allclose(outputs["logits"], logits, atol=1e-5)


@pytest.mark.slow
def test_beam_search_does_not_run_in_tensorflow(folder):
    """When this fails, TensorFlow has learned it: offer it in the guide."""
    program = BLOCKS[3].replace('"encoder", "decoder_start", "decoder_step"', '"generate",')
    program += (
        "inputs = {key: tf.zeros(x.shape, x.dtype) for key, x in "
        "module.generate.input_signature[0].items()}\n"
        "module.generate(inputs)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode and "vhlo.composite_v2" in done.stderr
