"""The runs of gin_configs/finetune: each configures over official files, and two are trained."""

import collections
import json
import pathlib
import re

import downstream_files
import gin
import jax
import numpy as np
import pytest
import small_flags
from lowered_steps import planned_step, trained_step

from ofa_jax import train
from ofa_jax.cli import gin_registry
from ofa_jax.data.downstream_settings import GLUE
from ofa_jax.model.named_config import model_config
from ofa_jax.training import build, loop
from ofa_jax.training.build import build_run
from ofa_jax.training.train_program import build_train_program

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / "gin_configs" / "finetune").glob("*.gin"))
# Every part of the published runs, at sizes that compile quickly.
SMALL = [
    "--gin_file=gin_configs/models/tiny.gin",
    *small_flags.MODEL,
    "--gin.model_config.resnet_layers=(1, 1, 1)",
    "--gin.train.num_workers=0",
    "--gin.BATCH_SIZE=2",
]


@pytest.fixture
def call(tmp_path, shared_golden, monkeypatch):
    """Calls the command line in this process, over files that are written for it."""
    monkeypatch.chdir(ROOT)
    downstream_files.write(tmp_path)

    def run(name, *arguments):
        gin.clear_config()
        examples = ["--gin.EXAMPLES=4"] if name == "vqa" else []
        if name == "text_to_image_scst":  # without the user's files
            examples = ["--gin.CLIP='x'", "--gin.VQGAN='x'", "--gin.SelfCriticalConfig.ranker=None"]
            examples += ["--gin.DownstreamSettings.image_tokenizer=None"]
        train.main(
            [
                *SMALL[:1],
                f"--gin_file=gin_configs/finetune/{name}.gin",
                *SMALL[1:],
                *examples,
                f"--gin.MODEL_DIR='{tmp_path / 'run'}'",
                f"--gin.DATA_DIR='{tmp_path}'",
                f"--gin.BPE_DIR='{shared_golden / 'bpe'}'",
                *arguments,
            ]
        )

    yield run
    gin.clear_config()


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_every_fine_tuning_configures_and_makes_its_batches(call, name, monkeypatch):
    seen = []
    monkeypatch.setattr(loop, "train", seen.append)
    call(name)
    (run,) = seen
    (batch,) = next(run.batches(0)).values()
    scored = batch["decoder_loss_weights"] > 0
    assert scored.any(axis=1).all()
    # The answer is within the stream's targets, with its end (of GLUE and images it has none).
    targets = batch["decoder_target_tokens"]
    last = [row[mask][-1] for row, mask in zip(targets, scored, strict=True)]
    if not name.startswith(("glue", "text_to_image")):
        assert last == [2] * len(last)
    assert (batch["encoder_input_tokens"] == 2).sum(axis=1).tolist() == [1] * len(last)
    (held_out,) = {task for task, _ in run.validation_batches()}
    assert held_out is not None


def test_a_plan_lowers_the_step_that_trains_on_candidates(call, monkeypatch):
    runs, tries = [], []
    monkeypatch.setattr(loop, "train", runs.append)

    def spy(*arguments):
        tries.append(arguments[-1])
        return build_train_program(*arguments)

    monkeypatch.setattr(build, "build_train_program", spy)
    call("snli_ve")
    (run,), (candidates,) = runs, tries
    (trie,) = candidates.values()
    expected = trained_step(run)
    known = dict(num_tasks=len(run.task_names), candidates=candidates)
    assert planned_step(trie.vocab_size, **known) == expected
    # The stand-in for the candidates is another trie; without any the step would be another one.
    operations = [
        collections.Counter(re.findall(r"stablehlo\.\w+", text))
        for text in (
            expected,
            planned_step(trie.vocab_size, num_tasks=1),
            planned_step(trie.vocab_size, num_tasks=1, restrict_to_candidates=False),
        )
    ]
    trained, stand_in, unrestricted = (count["stablehlo.gather"] for count in operations)
    assert stand_in >= trained > unrestricted


PUBLISHED = {
    # Peak rate, batch, image, stochastic depth, label smoothing.
    "caption": (1e-5, 128, 480, 0.1, 0.1),
    "caption_large": (1e-5, 128, 480, 0.1, 0.1),
    **{f"caption_scst{size}": (1e-5, 64, 480, 0.0, 0.0) for size in ("", "_large")},
    "vqa": (5e-5, 512, 480, 0.1, 0.1),
    "vqa_large": (5e-5, 512, 480, 0.2, 0.1),
    **{name: (5e-5, 128, 512, 0.1, 0.1) for name in ("refcoco", "refcoco_plus", "refcocog")},
    **{
        f"{name}_large": (3e-5, 128, 512, 0.2, 0.1)
        for name in ("refcoco", "refcoco_plus", "refcocog")
    },
    "snli_ve": (5e-5, 256, 480, 0.1, 0.0),
    "snli_ve_large": (2e-5, 256, 480, 0.2, 0.0),
    "imagenet": (5e-5, 256, 480, 0.1, 0.1),
    "text_to_image": (1e-3, 512, None, 0.1, 0.0),
    "text_to_image_scst": (1e-6, 32, None, 0.0, 0.0),
    "gigaword": (1e-4, 512, None, 0.1, 0.1),
    **{f"glue_{name}": (5e-5, 128, None, 0.1, 0.0) for name in GLUE},
}
# Updates, and the share or number of them that is warm-up.
LENGTHS = {
    "caption": (round(5 * 566747 / 128 + 0.5), 0.06),
    "caption_large": (round(2 * 566747 / 128 + 0.5), 0.06),
    "caption_scst": (round(3 * 113287 / 64 + 0.5), 0.06),
    "vqa_large": (40000, 1000),
    "imagenet": (160000, 1000),
    "text_to_image": (40000, 2000),
    "text_to_image_scst": (5000, 0),
    "refcoco": (round(10 * 120624 / 128 + 0.5), 0.06),
}


def configured(name, monkeypatch):
    """Returns the arguments that gin gives to the run, whose data are not opened."""
    monkeypatch.chdir(ROOT)
    gin.clear_config()
    gin_registry.register({"train": build_run, "model_config": model_config})
    gin.parse_config_files_and_bindings(
        [
            f"gin_configs/models/{'large' if 'large' in name else 'base'}.gin",
            f"gin_configs/finetune/{name}.gin",
        ],
        ["MODEL_DIR = 'x'", "DATA_DIR = 'x'", "BPE_DIR = 'x'", "VOCABULARY = None"]
        + ["EXAMPLES = 1000"] * (name == "vqa")
        + ["CLIP = 'x'", "VQGAN = 'x'"] * (name == "text_to_image_scst"),
    )
    names = ("model", "streams", "optimizer", "loss", "settings")
    return {part: gin.query_parameter(f"train.{part}") for part in names}


def made(reference):
    """Returns the object that `@Name()` in a gin file stands for."""
    if isinstance(reference, list):
        return [made(one) for one in reference]
    return reference.scoped_configurable_fn()


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_settings_are_the_published_ones(name, monkeypatch):
    try:
        given = configured(name, monkeypatch)
        model, (stream,), optimizer, loss = (
            made(given[part]) for part in ("model", "streams", "optimizer", "loss")
        )
    finally:
        gin.clear_config()
    rate, batch, size, drop_path, smoothing = PUBLISHED[name]
    assert (optimizer.learning_rate, stream.batch_size, stream.image_size) == (rate, batch, size)
    assert model.encoder_drop_path_rate == model.decoder_drop_path_rate == drop_path
    dropout = 0.0 if "scst" in name else 0.1
    assert (model.dropout_rate, loss.label_smoothing) == (dropout, smoothing)
    assert optimizer.clip_norm == 1.0
    if name in LENGTHS:
        assert (optimizer.total_steps, optimizer.warmup) == LENGTHS[name]
    assert loss.drop_worst_after == {"caption": 6000, "caption_large": 2500}.get(name, 0)
    assert optimizer.ema_decay == (0.9999 if name.startswith("vqa") else None)


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_each_file_states_its_command(file):
    header = " ".join(line[1:].strip() for line in file.read_text().split("\n\n")[0].splitlines())
    assert f"--gin_file=gin_configs/finetune/{file.stem}.gin" in header
    for mentioned in re.findall(r"gin_configs/models/\w+\.gin", header):
        assert (ROOT / mentioned).is_file()
    for mentioned in re.findall(r"(?<![/\w])(\w+\.gin)", header):
        assert (file.parent / mentioned).is_file(), mentioned


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task", "others"),
    [
        ("refcoco", "refcoco", ["--gin.IMAGE_SIZE=64"]),
        ("glue_rte", "glue_rte", ["--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 40}"]),
    ],
)
def test_fine_tuning_reduces_the_loss(call, tmp_path, name, task, others, capsys):
    call(
        name,
        *others,
        "--gin.TRAIN_STEPS=3",
        "--gin.LoopConfig.log_period=1",
        "--gin.LEARNING_RATE=1e-3",
        "--gin.OptimizerConfig.warmup=0",
        "--gin.model_config.dropout_rate=0.0",
        "--gin.DROP_PATH=0.0",
    )
    assert "step 3/3" in capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "validation.json").read_text())
    assert set(results) == {task}
    assert np.isfinite(results[task]["loss"])
    assert jax.process_count() == 1


def test_restricting_to_candidates_needs_a_list_of_them(call, capsys):
    with pytest.raises(SystemExit):
        call("refcoco", "--gin.train.restrict_to_candidates=True")
    error = capsys.readouterr().err.strip()
    assert error.startswith(
        "error: train.restrict_to_candidates is set, but there are no candidates for refcoco"
    )
