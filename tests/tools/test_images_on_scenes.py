"""Images out on Scenes, end to end with tiny random runs; and how what is asked is looked for."""

import dataclasses
import json
import pathlib

import gin
import numpy as np
import pytest
from official_model import random_variables
from PIL import Image
from small_evaluation import scenes_config

from ofa_jax import train
from ofa_jax.checkpoints import storage
from ofa_jax.data.downstream_settings import DownstreamSettings
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.tokenizers import PatchCodebook
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.training import loop
from tools import images_on_scenes, images_results, scene_image_scores, scene_image_start
from tools.scene_image_parts import ImageParts, Options
from tools.scene_image_scores import Asked, Found
from tools.scene_image_sets import ImageSets

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = [
    "--gin.model_config.width=16",
    "--gin.model_config.ffn_width=32",
    "--gin.model_config.num_heads=2",
    "--gin.model_config.encoder_layers=1",
    "--gin.model_config.decoder_layers=1",
    "--gin.model_config.resnet_width=4",
    "--gin.CODE_IMAGE_SIZE=64",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 24, 'targets': 64}",
    "--gin.BATCH_SIZE=2",
    "--gin.TRAIN_STEPS=1",
]


def save_run(folder, scenes, **changes):
    config = scenes_config(scenes.directory.parent).replace(**changes)
    storage.save_variables(str(folder), random_variables(config), step=5)
    storage.write_model_config(str(folder), config)
    sizes = dict.fromkeys(
        ("image_size", "max_image_size", "detection_image_size", "infill_image_size"), 64
    )
    Processor(scenes.vocabulary(64), scenes.image_tokenizer(), **sizes).save(str(folder))


@pytest.fixture(scope="module")
def scenes(small_scenes):
    return Scenes(str(small_scenes))


@pytest.fixture(scope="module")
def full_run(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("full") / "run"
    save_run(folder, scenes)
    return folder


def value(command, name):
    (found,) = [part for part in command if part.startswith(f"--gin.{name}=")]
    return found.split("=", 1)[1].strip("'")


def command_line(scenes, full_run, folder, *more):
    return [
        f"--model_dir={full_run}",
        f"--data_dir={scenes.directory.parent}",
        *(f"--{name}={folder / name}" for name in ("tokenizer_dir", "text_to_image_dir")),
        f"--output_dir={folder / 'images'}",
        f"--results_dir={folder / 'results'}",
        "--num_images=3",
        "--num_candidates=2",
        "--batch_size=4",
        "--code_image_size=64",
        *more,
    ]


def train_at_random(scenes, commands):
    """Returns what takes the place of the two trainings: it writes random parameters."""

    def call(command):
        commands.append(command)
        folder = pathlib.Path(value(command, "MODEL_DIR"))
        if command[1] == "tools.train_image_tokenizer":
            folder.mkdir()
            scenes.image_tokenizer().save(folder / "image_tokenizer.npz")
        elif not folder.exists():
            save_run(folder, scenes, code_image_size=64)
        return 0

    return call


def test_the_command_measures_all_parts_and_repeats_nothing(scenes, full_run, tmp_path, capsys):
    commands = []
    call = train_at_random(scenes, commands)
    arguments = command_line(scenes, full_run, tmp_path)
    assert images_on_scenes.main(arguments, call) == 0
    text = (tmp_path / "results" / "images.json").read_text()
    results = json.loads(text)
    tokenizer, made, infilled = (results[name] for name in images_on_scenes.PARTS)
    assert tokenizer["psnr"] == tokenizer["codebook_psnr"] > 0  # the same codebook
    for name in ("ssim", "feature_distance", "codes_used", "perplexity"):
        assert tokenizer[name] == tokenizer[f"codebook_{name}"]
    for name in ("asked_nouns", "real_images", "shuffled_captions", "nearest_training_images"):
        assert 0 <= made[name] <= 1
    rows = made["rows"]
    assert rows.keys() == {
        *("real", "generated", "one_sample", "reconstructed", "nearest", "shuffled_captions"),
    }
    assert rows["generated"]["asked"] == rows["real"]["asked"]
    for name in ("real", "generated", "one_sample", "reconstructed"):
        assert rows[name]["frechet_distance"] > 0 and rows[name]["nearest_training_image"] > 0
    assert infilled["rows"].keys() == {"real", "infilled", "reconstructed", "hidden"}
    assert infilled["psnr"] < infilled["rows"]["reconstructed"]["psnr"] < 48
    for part in (tokenizer, made, infilled):
        assert part["seed"] == 0 and part["commit"] and part["command"].startswith("python -m")
        with Image.open(tmp_path / "results" / part["sheet"]) as sheet:
            assert sheet.size > (64, 64)
    page = (tmp_path / "results" / "images.md").read_text()
    assert page in capsys.readouterr().out
    for words in ("VQGAN", "control: generated, captions of other images", "| aim |", "middle"):
        assert words in page
    generated = sorted((tmp_path / "images" / "sets" / "generated").glob("*.png"))
    before = {path: path.stat().st_mtime_ns for path in generated}
    assert len(generated) == 3

    # Again: the tokenizer is there, the fine-tuning says itself that it is done, jobs are finished.
    commands.clear()
    (tmp_path / "results" / "images.json").unlink()
    assert images_on_scenes.main(arguments, call) == 0
    assert [command[1] for command in commands] == ["ofa_jax.train"]
    again = json.loads((tmp_path / "results" / "images.json").read_text())
    assert again == results
    assert {path: path.stat().st_mtime_ns for path in generated} == before


def test_the_fine_tuning_reads_what_the_command_writes(scenes, full_run, tmp_path, monkeypatch):
    """Without compiling anything: the gin file, the codes, and the tokenizer in the new run."""
    monkeypatch.chdir(ROOT)
    seen, commands = [], []
    monkeypatch.setattr(loop, "train", seen.append)
    train_tokenizer = train_at_random(scenes, commands)

    def call(command):
        if command[1] == "tools.train_image_tokenizer":
            return train_tokenizer(command)
        commands.append(command)
        gin.clear_config()
        try:
            train.main([*command[2:]])
        finally:
            gin.clear_config()
        return 3  # stops the command here

    arguments = command_line(scenes, full_run, tmp_path, "--parts", "text_to_image", "--")
    assert images_on_scenes.main([*arguments, *SMALL], call) == 3
    (run,) = seen
    batch = next(run.batches(0))["task"]
    codes = scenes.vocabulary(64).code_ids
    assert np.isin(batch["decoder_target_tokens"], np.asarray(codes)).all()
    assert batch["decoder_target_tokens"].shape == (2, 64) and batch["decoder_code_mask"].all()
    tokenizer = run.processor.image_tokenizer
    np.testing.assert_array_equal(tokenizer.codebook, scenes.image_tokenizer().codebook)
    records = scenes.records("captions", "train")
    lines = (tmp_path / "images" / "codes" / "train.tsv").read_text().splitlines()
    assert len(lines) == sum(len(records[n]["captions"]) for n in range(len(records)))
    name, found, caption = lines[0].split("\t")
    assert (name, caption) == (records[0]["id"], records[0]["captions"][0])
    assert len(found.split()) == 64
    assert not (tmp_path / "results" / "images.json").exists()


def test_text_to_image_starts_from_the_run_with_the_codes_of_a_new_tokenizer(
    scenes, full_run, tmp_path
):
    """Text and bins keep their embeddings, also with another number of codes."""
    codebook = np.random.default_rng(0).integers(0, 256, (48, 192)).astype(np.float32)
    tokenizer = PatchCodebook(codebook)
    made = scene_image_start.write_start(full_run, tokenizer, scenes, tmp_path / "start", seed=1)
    old, new = scenes.vocabulary(64), made.vocabulary
    assert (new.num_codes, new.num_bins) == (48, 64)
    tables = [
        storage.load_numpy_variables(str(folder))["params"]["token_embedding"]["embedding"]
        for folder in (full_run, tmp_path / "start")
    ]
    for before, after in ((range(old.code_ids.start), range(new.code_ids.start)),
                          (old.bin_ids, new.bin_ids)):  # fmt: skip
        np.testing.assert_array_equal(tables[0][before], tables[1][after])
    codes = tables[1][new.code_ids]
    assert codes.shape[0] == 48 and 0.015 < codes.std() < 0.025
    assert storage.read_model_config(tmp_path / "start").vocab_size == new.vocab_size
    loaded = Processor.load(tmp_path / "start")
    assert loaded.equals(made) and loaded.image_size == 64
    assert loaded.vocabulary.encode(" two dogs").tolist() == old.encode(" two dogs").tolist()


@pytest.mark.parametrize(("counts", "chosen"), [((1, 7, 9), 48), ((2, 1, 0), 32), ((0, 1, 3), 64)])
def test_the_smallest_size_whose_codes_show_the_nouns_is_chosen(
    scenes, full_run, tmp_path, monkeypatch, counts, chosen
):
    """Of ten images the run finds so many at 32, 48 and 64 pixels; at least 60 % are enough."""
    asked = []

    def find(sets, name, checkpoint, images):
        captions = parts.captions_of_validation
        asked.append(name)
        size = int(name.rpartition("_")[2])
        right = counts[(32, 48, 64).index(size)] / 10 * len(captions)
        assert images.shape[1:] == (64, 64, 3)
        return [Found(text) if number < right else Found() for number, text in enumerate(captions)]

    monkeypatch.setattr(ImageSets, "find", find)
    monkeypatch.setattr(scene_image_scores, "parse_caption", lambda text: Asked({"dog": 1}))
    monkeypatch.setattr(scene_image_scores, "count_nouns", lambda text: {})
    parts = ImageParts(Options(full_run, tmp_path), scenes)
    count = min(100, len(scenes.records("all", "validation")))
    parts.captions_of_validation = ["a dog"] * count
    tokenizer = scenes.image_tokenizer()
    assert parts.choose_size(tokenizer) == chosen
    assert asked == ["coded_32", "coded_48", "coded_64"]
    assert parts.choose_size(tokenizer) == chosen and len(asked) == 3  # it is kept
    given = ImageParts(Options(full_run, tmp_path, code_image_size=56), scenes)
    assert given.choose_size(tokenizer) == 56


@pytest.mark.slow
def test_a_run_is_fine_tuned_and_measured(scenes, full_run, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = command_line(scenes, full_run, tmp_path, "--parts", "text_to_image", "--", *SMALL)
    assert images_on_scenes.main(arguments) == 0
    results = images_results.load(tmp_path / "results" / "images.json")
    assert results["text_to_image"]["steps"] == 1


def test_mistakes_are_sentences(scenes, full_run, tmp_path, capsys):
    call = train_at_random(scenes, [])
    parts = ("--parts", "infilling")
    arguments = command_line(scenes, full_run, tmp_path)
    for more, sentence in (
        ([f"--model_dir={tmp_path / 'none'}"], "there is no trained run in"),
        (["--num_images=1"], "give at least 2"),
        (["--num_candidates=0"], "--num_candidates is 0; give at least 1"),
        (["--code_image_size=20"], "give a multiple of the 8 pixels of a code"),
    ):
        assert images_on_scenes.main([*arguments, *more, *parts], call) == 2
        assert sentence in capsys.readouterr().err
    (tmp_path / "images").mkdir(exist_ok=True)
    settings = {"seed": 1, "num_images": 3}
    (tmp_path / "images" / "settings.json").write_text(json.dumps(settings))
    assert images_on_scenes.main([*arguments, *parts], call) == 2
    assert "has images of another" in capsys.readouterr().err


CAPTIONS = [
    ("two dogs, an owl and three mice", {"dog": 2, "owl": 1, "mouse": 3}, None),
    ("there is a picture of a mouse trap on grass", {"mouse trap": 1}, "grass"),
    ("exactly one sheep in outer space", {"sheep": 1}, "outer space"),
    ("a dog above a dog", {"dog": 2}, None),
    ("dogs", {"dog": 2}, None),
    ("two Apples.", {"apple": 2}, None),
    ("", {}, None),
]


@pytest.mark.parametrize(("text", "counts", "background"), CAPTIONS)
def test_a_caption_asks_for_nouns_counts_and_a_background(text, counts, background):
    assert scene_image_scores.parse_caption(text) == Asked(counts, background)


def test_captions_of_scenes_ask_for_their_objects(scenes):
    records = scenes.records("all", "train")
    for number in range(40):
        record = records[number]
        labels = record["object_labels"]
        counts = {label: labels.count(label) for label in labels}
        for caption in record["captions"]:
            assert scene_image_scores.parse_caption(caption).counts == counts, caption


def test_shares_count_what_either_finds():
    asked = [Asked({"dog": 2, "owl": 1}, "grass"), Asked({"car": 1}), Asked({"sun": 1}, "wood")]
    found = [
        Found("a dog on gravel", ("owl",), "grass"),
        Found("two cars", ("car", "sun"), "wood"),
        Found(),
    ]
    shares = scene_image_scores.measure(asked, found)
    assert dataclasses.asdict(shares) == {
        "nouns": 3 / 4,
        "nouns_captioned": 2 / 4,
        "nouns_detected": 2 / 4,
        "counts": 2 / 4,
        "backgrounds": 1 / 2,
        "asked": {"nouns": 4, "backgrounds": 2},
    }
    control = scene_image_scores.measure(scene_image_scores.shuffled(asked), found)
    assert control.nouns == 1 / 4 and control.backgrounds == 1 / 2
    assert scene_image_scores.measure([Asked({})], [Found()]).nouns is None


def test_the_nearest_image_is_found_by_its_features():
    others = np.random.default_rng(0).standard_normal((9, 4))
    places, distances = scene_image_scores.nearest(others[[7, 2]] + 1e-3, others)
    assert places.tolist() == [7, 2]
    np.testing.assert_allclose(distances, 2e-3, rtol=1e-6)
    lines = [
        {"id": "1/objects", "answer": "dog", "labels": ["dog"]},
        {"id": "0/caption", "answer": "a dog"},
        {"id": "1/caption", "error": "none"},
    ]
    assert scene_image_scores.read_found(lines, 2) == [Found("a dog"), Found(labels=["dog"])]


def test_an_old_or_torn_file_is_refused(tmp_path):
    path = tmp_path / "images.json"
    assert images_results.load(path) == {}
    assert "Not measured" in images_results.page({})
    path.write_text('{"tokenizer": {"psnr": 20.0}}')
    with pytest.raises(ValueError, match="does not have the results of images"):
        images_results.load(path)


def test_a_tokenizer_of_other_codes_is_refused(scenes):
    with pytest.raises(ValueError, match="image_tokenizer has 32 codes and the vocabulary 16"):
        DownstreamSettings(
            scenes.vocabulary(64, num_codes=16), image_tokenizer=scenes.image_tokenizer()
        )
