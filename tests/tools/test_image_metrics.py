"""Metrics of generated images on the command line."""

import json

import clip_files
import numpy as np
import pytest
from PIL import Image

from ofa_jax.evaluation.metrics import generated_images
from ofa_jax.interop import clip_file
from tools import image_metrics

RNG = np.random.default_rng(0)


def run(capsys, *arguments):
    code = image_metrics.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return json.loads(printed.out) if code == 0 else printed.err


@pytest.fixture
def job(tmp_path):
    """Returns the folder of a job with four images, and its CLIP."""
    folder = tmp_path / "job"
    folder.mkdir()
    lines = []
    for number in range(4):
        pixels = RNG.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        caption = f"what is the complete image? caption: apple {number}"
        lines.append({"id": str(number), "instruction": caption, "image": f"{number}.png"})
    lines.append({"id": "4", "instruction": "?", "error": "It is empty"})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "answers-00000-of-00001.jsonl").write_text(text)
    clip_files.write_huggingface(tmp_path / "clip", clip_files.openai_state_dict())
    return folder, tmp_path / "clip"


def test_images_of_a_job_are_compared_with_their_captions(job, capsys):
    folder, weights = job
    values = run(capsys, f"--predictions={folder}", f"--clip={weights}", f"--references={folder}")
    clip = clip_file.read(weights)
    images = [np.asarray(Image.open(folder / f"{number}.png")) for number in range(4)]
    expected = clip.score([f"apple {number}" for number in range(4)], images).mean()
    assert values["clip_score"] == pytest.approx(expected, rel=1e-4)
    assert values["clip_fid"] == pytest.approx(0, abs=1e-6) and values["images"] == 4


def test_few_images_are_a_note(tmp_path, capsys):
    np.save(tmp_path / "few.npy", RNG.normal(size=(3, 5)))
    path = tmp_path / "few.npy"
    assert image_metrics.main([f"--features={path}", f"--reference_features={path}"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["fid"] == pytest.approx(0, abs=1e-9)
    assert printed.err.count("3 images with 5 features each") == 1


def test_features_of_other_programs_are_compared(tmp_path, capsys):
    true, made = RNG.normal(size=(30, 5)), RNG.normal(size=(40, 5)) + 1
    np.save(tmp_path / "made.npy", made)
    statistics = {"mu": true.mean(axis=0), "sigma": np.cov(true, rowvar=False)}
    np.savez(tmp_path / "true.npz", **statistics)
    classes = np.eye(5)[np.arange(20) % 5]
    np.save(tmp_path / "classes.npy", classes)
    values = run(
        capsys,
        f"--features={tmp_path / 'made.npy'}",
        f"--reference_features={tmp_path / 'true.npz'}",
        f"--probabilities={tmp_path / 'classes.npy'}",
        "--splits=2",
    )
    assert values["fid"] == pytest.approx(generated_images.fid(true, made)["fid"])
    assert values["inception_score"] == pytest.approx(5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "There is nothing to measure"),
        (["--features=a.npy"], "give --reference_features, too"),
        (["--predictions=x", "--clip=missing"], "missing"),
        (["--references=x"], "give both"),
        (["--probabilities=missing.npy"], "There is no file missing.npy"),
        (["--probabilities={folder}/damaged.npy"], "holds no numpy arrays"),
        (["--predictions={folder}", "--clip={folder}/clip"], "has no predictions of ofa-infer"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, arguments, message):
    (tmp_path / "damaged.npy").write_bytes(b"\x93NUMPY damaged")
    clip_files.write_huggingface(tmp_path / "clip", clip_files.openai_state_dict())
    printed = run(capsys, *(argument.format(folder=tmp_path) for argument in arguments))
    assert message in printed and "Traceback" not in printed
