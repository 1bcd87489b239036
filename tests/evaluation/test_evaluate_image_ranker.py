"""`python -m ofa_jax.evaluate` with `evaluate.image_ranker`: which images are chosen.

A tiny random model generates images of 32 px for captions of prepared codes. The control is the
same evaluation without a ranker: it draws the same candidates and takes the most probable one.
"""

import json
import pathlib

import clip_files
import gin
import numpy as np
import pytest
import small_evaluation
from official_model import random_variables

from ofa_jax import evaluate
from ofa_jax.checkpoints import storage
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.evaluation.prediction_files import read_lines
from ofa_jax.inference.image_generation import matching_ranker
from ofa_jax.interop import clip_file
from ofa_jax.tokenizers.processor import Processor

ROOT = pathlib.Path(__file__).parent.parent.parent
CAPTIONS = [
    "a red apple",
    "two apples on grass",
    "an owl",
    "a dog to the left of a car",
    "exactly one sheep",
]
SIDE, CANDIDATES = 4, 8


@pytest.fixture(scope="module")
def run(small_scenes, tmp_path_factory):
    """Returns a run of a random model on text-to-image, with its image tokenizer."""
    folder = tmp_path_factory.mktemp("ranked") / "run"
    scenes = Scenes(str(small_scenes))
    config = small_evaluation.scenes_config(small_scenes)
    storage.save_variables(str(folder), random_variables(config), step=5)
    storage.write_model_config(str(folder), config)
    sizes = dict.fromkeys(
        ("image_size", "max_image_size", "detection_image_size", "infill_image_size"), 64
    )
    Processor(scenes.vocabulary(64), scenes.image_tokenizer(), **sizes).save(str(folder))
    codes = np.random.default_rng(0).integers(0, 32, (len(CAPTIONS), SIDE**2))
    lines = [
        f"{number}\t{' '.join(map(str, own))}\t{caption}\n"
        for number, (own, caption) in enumerate(zip(codes, CAPTIONS, strict=True))
    ]
    for split in ("train", "validation"):
        (folder.parent / f"{split}.tsv").write_text("".join(lines))
    clip_files.write_huggingface(folder.parent / "clip", clip_files.openai_state_dict())
    return folder


@pytest.fixture
def call(run, small_scenes, monkeypatch):
    """Evaluates with further arguments; returns the metrics and the lines of predictions."""
    monkeypatch.setenv("OFA_DATA_DIR", str(small_scenes))
    monkeypatch.chdir(ROOT)
    scenes = Scenes(str(small_scenes))
    vocabulary = scenes.vocabulary(64)
    codes = vocabulary.code_ids

    def evaluated(name, *arguments):
        gin.clear_config()
        evaluate.main(
            [
                "--gin_file=gin_configs/runs/scenes_text_to_image.gin",
                "--gin_file=gin_configs/runs/evaluate.gin",
                f"--gin.MODEL_DIR='{run}'",
                "--gin.CODE_IMAGE_SIZE=32",
                f"--gin.TASK_FEATURE_LENGTHS={{'inputs': 24, 'targets': {SIDE**2}}}",
                "--gin.BATCH_SIZE=2",
                f"--gin.DownstreamSettings.data_dir='{run.parent}'",
                f"--gin.image_tokenizer.path='{run}'",
                f"--gin.vocabulary_from_tokenizer_json.path='{scenes.vocabulary_path}'",
                f"--gin.vocabulary_from_tokenizer_json.num_codes={vocabulary.num_codes}",
                f"--gin.vocabulary_from_tokenizer_json.num_bins={vocabulary.num_bins}",
                f"--gin.LossConfig.constraint_range=({codes.start}, {codes.stop})",
                f"--gin.text_to_image/DecodingConfig.beam_size={CANDIDATES}",
                f"--gin.evaluate.directory='{run.parent / name}'",
                "--gin.evaluate.gallery_examples=0",
                *arguments,
            ]
        )
        metrics = json.loads((run.parent / name / "metrics.json").read_text())
        path = run.parent / name / "5" / "text_to_image" / "predictions.jsonl"
        return metrics["5"]["text_to_image"], read_lines(path)

    yield evaluated
    gin.clear_config()


def score(ranker, run, lines):
    """Returns the ranker's score of each chosen image with its caption."""
    grids = np.stack([np.array(line["prediction"]).reshape(SIDE, SIDE) for line in lines])
    images = Processor.load(run).image_tokenizer.decode(grids)
    return np.asarray(ranker.score([line["references"] for line in lines], images))


def test_a_ranker_chooses_the_images_of_an_evaluation(call, run):
    plain, control = call("plain")
    assert "image_score" not in plain
    rankers = {
        "clip": (
            clip_file.read(run.parent / "clip"),
            ["--gin.evaluate.image_ranker=@clip()", f"--gin.clip.path='{run.parent / 'clip'}'"],
        ),
        "matching": (
            matching_ranker(str(run)),
            [
                "--gin.evaluate.image_ranker=@matching_ranker()",
                f"--gin.matching_ranker.checkpoint='{run}'",
            ],
        ),
    }
    for name, (ranker, arguments) in rankers.items():
        metrics, chosen = call(name, *arguments)
        assert [line["references"] for line in chosen] == CAPTIONS
        mine, others = score(ranker, run, chosen), score(ranker, run, control)
        # The score in the file and the metric are the ranker's of the image that was chosen.
        np.testing.assert_allclose([line["score"] for line in chosen], mine, rtol=1e-4, atol=1e-5)
        assert metrics["image_score"] == pytest.approx(mine.mean(), rel=1e-4, abs=1e-5)
        # The control is one of the same candidates: never better, and worse on the whole.
        assert (mine >= others - 1e-5).all()
        assert mine.mean() > others.mean() + 1e-3
        different = [
            one["prediction"] != other["prediction"]
            for one, other in zip(chosen, control, strict=True)
        ]
        assert any(different), name
        events = list((run.parent / name).glob("events.*"))
        assert events


def test_predictions_of_another_ranker_are_not_continued(call, run, capsys):
    """The ranker's name is among the settings of the predictions."""
    clip = ["--gin.evaluate.image_ranker=@clip()", f"--gin.clip.path='{run.parent / 'clip'}'"]
    call("refused")
    with pytest.raises(SystemExit) as stopped:
        call("refused", *clip)
    assert stopped.value.code == 2
    assert "image_ranker" in capsys.readouterr().err


def test_a_ranker_without_an_image_tokenizer_is_a_sentence(call, run, capsys):
    clip = ["--gin.evaluate.image_ranker=@clip()", f"--gin.clip.path='{run.parent / 'clip'}'"]
    with pytest.raises(SystemExit) as stopped:
        call("none", *clip, "--gin.DownstreamSettings.image_tokenizer=None")
    assert stopped.value.code == 2
    assert "set DownstreamSettings.image_tokenizer" in capsys.readouterr().err
