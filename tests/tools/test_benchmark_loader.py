"""The measurements and the output of `python -m tools.benchmark_loader`."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tools import benchmark_loader

SMALL = [
    "--image_size=64",
    "--batch_size=4",
    "--images=6",
    "--examples=24",
    "--steps=2",
    "--warm_up=1",
    "--num_threads",
    "1",
    "--num_workers",
]
STAGES = {
    "read",
    "decode JPEG",
    "resize and crop",
    "RandAugment",
    "tokenise",
    "pack features",
    "stack a batch",
    "one example, all of it",
}


def test_it_times_every_stage_and_the_whole_loader(capsys):
    benchmark_loader.main([*SMALL, "--json"])
    text = capsys.readouterr().out.splitlines()[-1]
    result = json.loads(text)
    stages = result["stages"]
    assert set(stages) == STAGES
    assert all(stage["milliseconds"] > 0 for stage in stages.values())
    # 4 of 6 examples at the published rates; a batch is stacked for every fourth.
    assert stages["RandAugment"]["runs"] == pytest.approx(4 / 6)
    assert stages["stack a batch"]["runs"] == 1 / 4
    whole = stages.pop("one example, all of it")
    assert whole["milliseconds"] > stages["decode JPEG"]["in_an_example"]
    assert result["examples_per_second"].keys() == {"1 threads"}
    assert result["examples_per_second"]["1 threads"] > 0
    console = Console(file=io.StringIO(), width=100)
    benchmark_loader.show(json.loads(text), console)
    shown = console.file.getvalue()
    assert all(stage in shown for stage in STAGES) and "examples/s" in shown


def test_synthetic_images_are_jpegs_of_the_published_kind():
    images = [
        Image.open(io.BytesIO(benchmark_loader.photograph(np.random.default_rng(seed))))
        for seed in range(3)
    ]
    assert {(image.format, image.size) for image in images} == {("JPEG", (640, 480))}
    assert len({np.asarray(image).tobytes() for image in images}) == 3


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--image_size=100", "--image_size=100 is not a multiple of 16"),
        ("--images=2", "--images must be at least 3"),
        ("--steps=0", "--steps must be at least 1"),
        ("--num_workers=0", "count from 1"),
    ],
)
def test_unmeasurable_options_are_reported_in_one_sentence(capsys, option, sentence):
    with pytest.raises(SystemExit):
        benchmark_loader.main([*SMALL, option])
    assert sentence in " ".join(capsys.readouterr().err.split())
