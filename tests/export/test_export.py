"""Exported programs: the Predictor's tokens without this project, and sentences for damage."""

import json
import os
import shutil

import numpy as np
import pytest
import tokenizers
import without_project

import ofa_jax
from ofa_jax.decoding import DecodingConfig
from ofa_jax.export import command
from ofa_jax.export.loader import Model
from ofa_jax.inference import presets, requests
from ofa_jax.inference.prepared import CallOptions, PreparedRequest, make_batch
from ofa_jax.inference.requests import Request

INSTRUCTION = "what color is the car?"
BEAMS = ["--decoding.beam_size=3", "--target_length=4", "--decoding.no_repeat_ngram_size=0"]
PROGRAMS = ["encoder", "decoder_start", "decoder_step", "greedy", "generate"]

# What runs where only JAX and numpy are, see `without_project`.
RUN = """
import json, sys

import numpy as np
from loader import Model

model = Model()
with np.load(sys.argv[1]) as stored:
    inputs = dict(stored)
found = {name: model(name, **inputs) for name in ("generate", "greedy")}
encoder = model.manifest["programs"]["encoder"]["inputs"]
cache = model("decoder_start", **model("encoder", **{name: inputs[name] for name in encoder}))
token, steps = np.zeros(len(inputs["encoder_input_tokens"]), np.int32), []
for position in range(model.manifest["shapes"]["target_length"]):
    out = dict(model("decoder_step", tokens=token, position=np.int32(position), **cache))
    logits = np.array(out.pop("logits"))
    logits[:, 1] = -np.inf
    logits[:, 2] = -np.inf if position == 0 else logits[:, 2]
    token, cache = logits.argmax(-1).astype(np.int32), out
    steps.append(token.tolist())
print(json.dumps({
    "generate": np.asarray(found["generate"]["tokens"]).tolist(),
    "scores": np.asarray(found["generate"]["scores"]).tolist(),
    "greedy": np.asarray(found["greedy"]["tokens"]).tolist(),
    "steps": steps,
    "foreign": FOREIGN(),
}))
"""


@pytest.fixture(scope="module")
def exported(run_directory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "exported"
    assert command.main([str(run_directory), f"--out={folder}", "--source_length=32", *BEAMS]) == 0
    return folder


@pytest.fixture(scope="module")
def batch(processor, config, image):
    """Returns the features that the Predictor makes of an image and an instruction."""
    preset = presets.find_preset(None, processor, config)
    example, transform = requests.encode_request(Request(INSTRUCTION, image), processor, preset)
    call = CallOptions(None, None, False, None)
    made = make_batch([PreparedRequest(example, transform, preset, call, 32)], 1)
    return {name: x for name, x in made.items() if name.startswith("encoder_")}


@pytest.fixture(scope="module")
def elsewhere(exported, batch, tmp_path_factory):
    """Returns what the programs find in a process without flax and this project."""
    request = tmp_path_factory.mktemp("request") / "request.npz"
    np.savez(request, **batch)
    return json.loads(without_project.run(RUN, exported, request))


@pytest.fixture(scope="module")
def predictor(run_directory):
    return ofa_jax.Predictor(run_directory, source_lengths=(32,))


def ids(tokens):
    """Returns the tokens before eos."""
    return [*tokens, 2][: [*tokens, 2].index(2)]


def test_the_tokens_are_those_of_the_predictor(elsewhere, predictor, processor, image):
    decoding = DecodingConfig(beam_size=3, max_length=4)
    wanted = predictor.predict(image, INSTRUCTION, decoding=decoding)
    assert processor.vocabulary.decode(elsewhere["generate"][0][0]).strip() == wanted.symbols
    assert elsewhere["scores"][0][0] == pytest.approx(wanted.score, rel=1e-5)
    others = [
        processor.vocabulary.decode(tokens).strip()
        for tokens, score in zip(elsewhere["generate"][0], elsewhere["scores"][0], strict=True)
        if np.isfinite(score)
    ]
    assert others[1:] == [other.symbols for other in wanted.alternatives]
    greedy = predictor.predict(image, INSTRUCTION, decoding=decoding.replace(beam_size=1))
    assert processor.vocabulary.decode(elsewhere["greedy"][0][0]).strip() == greedy.symbols


def test_a_loop_over_the_decoder_step_gives_the_greedy_output(elsewhere):
    steps = [tokens[0] for tokens in elsewhere["steps"]]
    assert ids(steps) == ids(elsewhere["greedy"][0][0])


def test_nothing_but_jax_and_numpy_was_imported(elsewhere):
    assert not [name for name in elsewhere["foreign"] if name in ("flax", "ofa_jax", "tensorflow")]


def test_the_manifest_describes_the_export(exported, processor, config):
    manifest = json.loads((exported / "manifest.json").read_text())
    assert sorted(manifest["programs"]) == sorted(PROGRAMS)
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert manifest["shapes"] == {
        "batch_size": 1, "image_size": 48, "source_length": 32, "target_length": 4
    }  # fmt: skip
    assert manifest["decoding"]["beam_size"] == 3
    inputs = manifest["programs"]["generate"]["inputs"]
    assert inputs["encoder_images"] == {"shape": [1, 48, 48, 3], "dtype": "uint8"}
    tokens = manifest["programs"]["generate"]["outputs"]["tokens"]
    assert tokens == {"shape": [1, 3, 5], "dtype": "int32"}
    logits = manifest["programs"]["decoder_step"]["outputs"]["logits"]
    assert logits == {"shape": [1, config.vocab_size], "dtype": "float32"}
    assert manifest["vocabulary"]["size"] == processor.vocabulary.vocab_size
    assert manifest["vocabulary"]["location_bins"]["count"] == 65
    present = {str(p.relative_to(exported)) for p in exported.rglob("*") if p.is_file()}
    assert present - {"manifest.json"} == set(manifest["sha256"])


def test_the_tokenizer_files_encode_as_the_vocabulary_does(exported, processor):
    """Encodes as the guide shows, with the library tokenizers and numpy alone."""
    bpe = tokenizers.Tokenizer.from_file(str(exported / "tokenizer.json"))
    table = np.load(exported / "text_ids.npy", allow_pickle=False)
    example = json.loads((exported / "manifest.json").read_text())["vocabulary"]["example"]
    encoded = table[bpe.encode(example["text"], add_special_tokens=False).ids]
    assert [0, *encoded.tolist(), 2] == example["ids"]
    assert example["ids"][1:-1] == processor.vocabulary.encode(example["text"]).tolist()


# ---------------------------------------------------------------------------- refusals


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


def refusal(function, *arguments, **keywords):
    with pytest.raises(ValueError) as caught:
        function(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["parameters.npz", "generate.stablehlo", "tokenizer.json"])
@pytest.mark.parametrize("change", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named(copied, name, change):
    path = copied / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content[: len(content) // 2] if change == "cut" else content)
    if change == "remove":
        path.unlink()
    message = refusal(Model, copied)
    assert f"{path} is missing or damaged" in message and "export the model again" in message


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"sha256": 3}', '{"sha256": {}, "platforms": [], "programs": 1}']
)
def test_a_damaged_manifest_is_named(copied, text):
    (copied / "manifest.json").write_text(text)
    assert "manifest.json is missing or damaged" in refusal(Model, copied)


def test_a_missing_folder_is_named(tmp_path):
    assert "missing or damaged" in refusal(Model, tmp_path / "nothing")


def test_an_export_for_other_platforms_is_refused(copied):
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["platforms"] = ["tpu"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    assert "--platforms=cpu" in refusal(Model, copied)


def test_inputs_that_do_not_fit_are_named(exported, batch):
    model = Model(exported)
    assert "There is no program beam" in refusal(model, "beam", **batch).replace("'", "")
    wrong = batch | {"encoder_input_tokens": np.zeros((1, 31), np.int32)}
    assert "encoder_input_tokens of generate is {'shape': [1, 31]" in refusal(
        model, "generate", **wrong
    )
    wrong = batch | {"encoder_images": batch["encoder_images"].astype(np.float32)}
    assert "float32" in refusal(model, "generate", **wrong)
    fewer = {name: x for name, x in batch.items() if name != "encoder_images"}
    assert "encoder_images of generate is missing" in refusal(model, "generate", **fewer)
    assert "must be left out" in refusal(model, "generate", **batch, other=np.zeros(1))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--decoding.beamsize=3"], "Did you mean beam_size?"),
        (["--decoding.beam_size=0"], "beam_size"),
        (["--decoding.beam_size"], "has no value"),
        (["--decoding.beam_size=500"], "beam_size"),
        (["--platforms=gpu"], "--platforms names gpu"),
        (["--platforms="], "--platforms is empty"),
        (["--task=captioning"], "Did you mean image_captioning?"),
        (["--source_length=1000"], "has 64 positions"),
        (["--target_length=1000"], "max_length"),
        (["--image_size=50"], "image_size"),
        (["--image_size=0", "--task=image_infilling"], "needs an image"),
        (["--batch_size=0"], "batch_size"),
        (["--batch_size=some"], "give a number of rows, or any"),
        (["--candidates_file=nothing.txt"], "nothing.txt"),
        (["--outt=x"], "--outt"),
    ],
)
def test_wrong_flags_are_refused_in_a_sentence(run_directory, tmp_path, capsys, flags, sentence):
    with pytest.raises(SystemExit) as ended:
        command.main([str(run_directory), f"--out={tmp_path / 'new'}", *flags])
    captured = capsys.readouterr().err
    assert ended.value.code == 2 and sentence in captured and captured.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_kept(run_directory, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit):
        command.main([str(run_directory), f"--out={tmp_path}"])
    assert "where there is something already" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["mine.txt"]


@pytest.mark.slow
def test_samples_and_candidates_are_those_of_the_predictor(
    run_directory, processor, predictor, image, batch, tmp_path
):
    """Draws the codes of an image with the Predictor's seeds, and searches among candidates."""
    codes, chosen = tmp_path / "codes", tmp_path / "chosen"
    base = [str(run_directory), "--source_length=32", "--platforms=cpu"]
    command.main([*base, f"--out={codes}", "--task=text_to_image", "--image_size=0"])
    caption = "what is the complete image? caption: a red apple"
    preset = presets.find_preset("text_to_image", processor, predictor.loaded.model.config)
    example, transform = requests.encode_request(Request(caption), processor, preset)
    call = CallOptions("text_to_image", None, False, None)
    inputs = make_batch([PreparedRequest(example, transform, preset, call, 32)], 1)
    model = Model(codes)
    wanted = model.manifest["programs"]["generate"]["inputs"]
    seeds = {"seed": np.uint32(0), "decoder_seeds": np.zeros(1, np.uint32)}
    found = model("generate", **{n: (inputs | seeds)[n] for n in wanted})["tokens"]
    first = ofa_jax.Predictor(run_directory, source_lengths=(32,)).predict(None, caption)
    assert processor.vocabulary.decode_codes(ids(found[0, 0].tolist())).tolist() == (
        first.codes.reshape(-1).tolist()
    )

    (tmp_path / "choices.txt").write_text("yes\nno\na red apple\n")
    command.main([*base, f"--out={chosen}", f"--candidates_file={tmp_path / 'choices.txt'}",
                  "--decoding.beam_size=2"])  # fmt: skip
    tokens = Model(chosen)("generate", **batch)["tokens"]
    best = ofa_jax.Predictor(run_directory, source_lengths=(32,), beam_size=2).predict(
        image, INSTRUCTION, candidates=["yes", "no", "a red apple"]
    )
    assert processor.vocabulary.decode(tokens[0, 0]).strip() == best.symbols
