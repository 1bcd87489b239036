"""Exports with an open number of rows, guidance, and all platforms: what the Predictor finds."""

import json
import shutil

import numpy as np
import pytest
import without_project
from jax import export

import ofa_jax
from ofa_jax.decoding import DecodingConfig
from ofa_jax.export import command
from ofa_jax.export.loader import Model
from ofa_jax.inference import presets, requests
from ofa_jax.inference.prepared import CallOptions, PreparedRequest, make_batch
from ofa_jax.inference.requests import Request

INSTRUCTIONS = (
    "what color is the car?", "which region does the text describe? a green apple", "yes no yes no"
)  # fmt: skip
CAPTIONS = ("a red apple", "a green apple in the region", "what?")
FORM = "what is the complete image? caption: {}"
SCALE = 6.0
PLATFORMS = ("cpu", "cuda", "tpu")

# Runs `generate` for each number of rows with the first rows of the inputs.
RUN = """
import json, sys
import numpy as np
from loader import Model

model = Model()
with np.load(sys.argv[1]) as stored:
    inputs = dict(stored)
found = []
for rows in map(int, sys.argv[2:]):
    part = {name: x[:rows] if x.ndim else x for name, x in inputs.items()}
    out = model("generate", **part)
    found.append({name: np.asarray(x).tolist() for name, x in out.items()})
print(json.dumps({"found": found, "foreign": FOREIGN()}))
"""


def export_run(run_directory, folder, *flags):
    assert command.main([str(run_directory), f"--out={folder}", "--source_length=32", *flags]) == 0
    return folder


@pytest.fixture(scope="module")
def exported(run_directory, tmp_path_factory):
    """Exports free text with three beams, for any number of rows."""
    return export_run(
        run_directory, tmp_path_factory.mktemp("export") / "any", "--batch_size=any",
        "--target_length=4", "--decoding.beam_size=3", "--decoding.no_repeat_ngram_size=2",
    )  # fmt: skip


@pytest.fixture(scope="module")
def guided(run_directory, tmp_path_factory):
    """Exports images from captions with guidance, for any number of rows."""
    return export_run(
        run_directory, tmp_path_factory.mktemp("export") / "guided", "--batch_size=any",
        "--task=text_to_image", "--image_size=0", f"--decoding.guidance_scale={SCALE}",
    )  # fmt: skip


def features(processor, config, task, wanted):
    """Returns the features that the Predictor makes of requests."""
    preset = presets.find_preset(task, processor, config)
    call = CallOptions(task, None, False, None)
    prepared = [
        PreparedRequest(*requests.encode_request(request, processor, preset), preset, call, 32)
        for request in wanted
    ]
    return make_batch(prepared, len(prepared))


def outputs(processor, found):
    """Returns the best output of each row as symbols."""
    return [processor.vocabulary.decode(tokens[0]).strip() for tokens in found["tokens"]]


@pytest.fixture
def images(image):
    return [image, image.rotate(90), image.rotate(180)]


def run_elsewhere(folder, inputs, path, *rows):
    np.savez(path, **inputs)
    found = json.loads(without_project.run(RUN, folder, path, *rows))
    assert not {"flax", "ofa_jax", "tensorflow"} & set(found["foreign"])
    return found["found"]


def test_any_number_of_rows_has_the_tokens_of_the_predictor(
    exported, run_directory, processor, config, images, tmp_path
):
    wanted = [Request(*pair) for pair in zip(INSTRUCTIONS, images, strict=True)]
    batch = features(processor, config, None, wanted)
    inputs = {name: x for name, x in batch.items() if name.startswith("encoder_")}
    one, three = run_elsewhere(exported, inputs, tmp_path / "inputs.npz", 1, 3)
    predictor = ofa_jax.Predictor(run_directory, source_lengths=(32,), beam_size=3)
    decoding = DecodingConfig(beam_size=3, max_length=4, no_repeat_ngram_size=2)
    wanted = predictor.predict_batch(images, INSTRUCTIONS, decoding=decoding)
    symbols, scores = [own.symbols for own in wanted], [own.score for own in wanted]
    assert len(set(scores)) == 3, "the rows differ"
    for found, rows in ((three, 3), (one, 1)):
        assert outputs(processor, found) == symbols[:rows]
        assert [row[0] for row in found["scores"]] == pytest.approx(scores[:rows], rel=1e-5)


def test_guided_images_are_those_of_the_predictor(
    guided, run_directory, processor, config, tmp_path
):
    texts = [FORM.format(caption) for caption in CAPTIONS]
    batch = features(processor, config, "text_to_image", [Request(text) for text in texts])
    manifest = json.loads((guided / "manifest.json").read_text())
    # The Predictor's samples follow from its seed and the number of the request.
    inputs = batch | {"seed": np.uint32(0), "decoder_seeds": np.arange(3, dtype=np.uint32)}
    inputs = {name: inputs[name] for name in manifest["programs"]["generate"]["inputs"]}
    one, three = run_elsewhere(guided, inputs, tmp_path / "inputs.npz", 1, 3)
    preset = presets.find_preset("text_to_image", processor, config)

    def predict(scale):
        predictor = ofa_jax.Predictor(run_directory, source_lengths=(32,))
        decoding = preset.decoding.replace(guidance_scale=scale)
        found = [predictor.predict(None, text, decoding=decoding) for text in texts]
        return [own.symbols for own in found], [own.score for own in found]

    symbols, scores = predict(SCALE)
    for found, rows in ((three, 3), (one, 1)):
        assert outputs(processor, found) == symbols[:rows]
        assert [row[0] for row in found["scores"]] == pytest.approx(scores[:rows], rel=1e-5)
    assert not np.allclose(predict(1.0)[1], scores, rtol=1e-3), "guidance matters"


@pytest.mark.parametrize("name", ["exported", "guided"])
def test_the_programs_are_lowered_for_every_platform(name, request):
    folder = request.getfixturevalue(name)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["platforms"] == [*PLATFORMS]
    for program in manifest["programs"].values():
        read = export.deserialize(bytearray((folder / program["file"]).read_bytes()))
        assert tuple(read.platforms) == PLATFORMS
        # The number of rows is the one size that is open.
        assert {str(size) for x in read.in_avals for size in x.shape if type(size) is not int} == {
            "batch"
        }


def test_a_model_with_fused_attention_is_exported(run_directory, tmp_path):
    run = shutil.copytree(run_directory, tmp_path / "run")
    described = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps(described | {"attention_implementation": "fused"}))
    flags = ["--batch_size=any", "--target_length=4", "--decoding.beam_size=1"]
    folder = export_run(run, tmp_path / "fused", *flags)
    assert json.loads((folder / "manifest.json").read_text())["platforms"] == [*PLATFORMS]


def test_the_manifest_names_the_open_size(exported):
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["shapes"]["batch_size"] == "batch"
    program = manifest["programs"]["generate"]
    assert program["inputs"]["encoder_input_tokens"]["shape"] == ["batch", 32]
    assert program["outputs"]["tokens"]["shape"] == ["batch", 3, 5]


def test_rows_that_differ_in_number_are_named(exported):
    model = Model(exported)
    inputs = {
        name: np.zeros([2 if n == "batch" else n for n in entry["shape"]], entry["dtype"])
        for name, entry in model.manifest["programs"]["generate"]["inputs"].items()
    }
    for name, part in (
        ("encoder_images", inputs["encoder_images"][:1]),
        ("encoder_image_mask", np.ones(3, bool)),
        ("encoder_input_tokens", np.zeros((2, 31), np.int32)),
        ("encoder_input_tokens", np.int32(3)),
    ):
        with pytest.raises(ValueError, match="but it must be") as raised:
            model("generate", **inputs | {name: part})
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="but it must be"):
        model("generate", **{name: x[:0] for name, x in inputs.items()})
