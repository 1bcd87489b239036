"""`python -m ofa_jax.train` as users call it: a whole run, a stopped one, and user errors."""

import contextlib
import io
import json
import os
import shutil

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import small_flags
from command_calls import calling
from lowered_steps import planned_step, trained_step
from official_files import write_official_files
from report_files import json_in
from snapshots import snapshot

import ofa_jax
from ofa_jax import train
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.model import OFAConfig
from ofa_jax.preprocessing import objectives
from ofa_jax.training import flops, loop
from tools import convert_tsv

RUN = "--gin_file=gin_configs/runs/pretrain_scenes.gin"
# Every part of the real run, at sizes that compile quickly.
SMALL = [
    *small_flags.SCENES,
    "--gin.LoopConfig.checkpoint_period=2",
    "--gin.LoopConfig.log_period=1",
    "--gin.train.validation_examples=6",
    "--gin.train.baseline_examples=20",
    "--gin.TRAIN_STEPS=4",
]


@pytest.fixture
def call(small_scenes):
    """Calls the command line in this process, from a clean gin."""
    with calling(train.main, small_scenes) as call:
        yield call


def model_dir(path):
    return f"--gin.MODEL_DIR='{path}'"


def checkpoint(path, step):
    return ocp.PyTreeCheckpointer().restore(path / "checkpoints" / str(step) / "state")


@pytest.fixture(scope="module")
def runs(small_scenes, tmp_path_factory):
    """Returns a folder of runs: `whole` is trained to its end, and printed `whole.txt`."""
    folder = tmp_path_factory.mktemp("runs")
    with (
        calling(train.main, small_scenes) as call,
        contextlib.redirect_stdout(io.StringIO()) as printed,
    ):
        call(RUN, *SMALL, model_dir(folder / "whole"))
    (folder / "whole.txt").write_text(printed.getvalue())
    return folder


def test_a_run_learns_all_eight_objectives_and_reports_their_metrics(runs):
    text = (runs / "whole.txt").read_text()
    results = json.loads((runs / "whole" / "validation.json").read_text())
    assert set(results) == set(objectives.OBJECTIVES)
    for row in results.values():
        assert list(row) == ["loss", "unigram_loss", "token_accuracy", "majority_accuracy"]
        assert all(np.isfinite(value) for value in row.values())
    assert "step 4/4" in text and "Validation after 4 steps" in text
    names = os.listdir(runs / "whole")
    assert {"checkpoints", "config.gin", "validation.json"} < set(names)
    assert any(name.startswith("events.out.tfevents") for name in names)
    page = (runs / "whole" / "report.html").read_text()
    assert f"The report is {runs / 'whole' / 'report.html'}." in text
    for task in objectives.OBJECTIVES:
        assert f'"text":"{task.replace("_", " ")}"' in page  # a figure's title


def test_the_last_validation_shows_examples_of_all_eight_objectives(runs):
    folder = runs / "whole" / "galleries" / "validation" / "4"
    assert {path.stem for path in folder.iterdir()} == set(objectives.OBJECTIVES)
    page = (runs / "whole" / "report.html").read_text()
    galleries = {gallery["task"]: gallery for gallery in json_in(page, "galleries")}
    assert set(galleries) == set(objectives.OBJECTIVES)
    for task in objectives.OBJECTIVES:
        examples = json.loads((folder / f"{task}.json").read_text())
        # The small split has eight images.
        assert len(examples) == (12 if task == "text_infilling" else 8)
        assert (galleries[task]["split"], galleries[task]["step"]) == ("validation", 4)
        assert all(example["instruction"] and example["target"] for example in examples)
        assert all(example["metric"] for example in examples)
        has_image = task != "text_infilling"
        assert all((example["image"] is not None) == has_image for example in examples)
    for example in json.loads((folder / "visual_grounding.json").read_text()):
        assert len(example["target_boxes"]) == 1
    for example in json.loads((folder / "image_infilling.json").read_text()):
        assert example["truth_image"] and example["reconstruction"] and example["predicted_image"]


def test_a_stopped_run_ends_as_an_uninterrupted_one(call, runs, capsys):
    # What a kill after the first checkpoint leaves.
    stopped = runs / "stopped"
    shutil.copytree(runs / "whole", stopped)
    shutil.rmtree(stopped / "checkpoints" / "4")
    (stopped / "validation.json").unlink()
    call(RUN, *SMALL, model_dir(stopped))
    assert "Resuming from step 2 of 4" in capsys.readouterr().out
    jax.tree.map(
        np.testing.assert_array_equal,
        checkpoint(runs / "whole", 4),
        checkpoint(runs / "stopped", 4),
    )
    whole, resumed = (
        json.loads((runs / name / "validation.json").read_text()) for name in ("whole", "stopped")
    )
    assert whole == resumed


def test_the_operative_configuration_is_a_gin_file_of_the_same_run(call, runs, capsys):
    call(f"--gin_file={runs / 'whole' / 'config.gin'}")
    assert "already complete (checkpoint of step 4 of 4, " in capsys.readouterr().out


def test_the_run_directory_alone_suffices_for_inference(call, runs, small_scenes, tmp_path):
    moved = shutil.copytree(runs / "whole", tmp_path / "moved")
    scenes = Scenes(str(small_scenes))
    predictor = ofa_jax.Predictor(moved, source_lengths=[32], beam_size=2)
    processor = predictor.loaded.processor
    assert processor.vocabulary == scenes.vocabulary(64)
    assert processor.image_size == processor.max_image_size == processor.infill_image_size == 64
    image = scenes.records("images", "validation")[0]["image"]
    found = predictor.predict(image, "what is the image in the middle part?")
    expected = scenes.image_tokenizer().decode(found.codes.reshape(1, 4, 4))[0]
    np.testing.assert_array_equal(np.asarray(found.image), expected)
    box = predictor.predict(image, 'which region does the text "a dog" describe?').boxes
    assert box.shape == (1, 4) and 0 <= box.min() <= box.max() <= 64


def test_a_plan_lowers_the_step_that_trains(call, small_scenes, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(loop, "train", seen.append)
    call(RUN, *SMALL, model_dir(tmp_path), "--gin.train.gradient_accumulation=2")
    vocabulary = Scenes(str(small_scenes)).vocabulary(64)
    expected = trained_step(seen[0])
    assert planned_step(vocabulary.vocab_size) == expected
    assert planned_step(vocabulary.vocab_size, gradient_accumulation=1) != expected


@pytest.mark.parametrize("preset", ["data", "fsdp", "tensor", "fsdp_tensor"])
def test_every_partitioning_preset_configures_a_run(call, runs, tmp_path, monkeypatch, preset):
    seen = []
    monkeypatch.setattr(loop, "train", seen.append)
    tensor = ["--gin.TENSOR=1"] if "tensor" in preset else []
    preset_file = f"--gin_file=gin_configs/partitioning/{preset}.gin"
    call(RUN, preset_file, *tensor, *SMALL, model_dir(tmp_path))
    assert dict(seen[0].partitioner.mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    partitioner = seen[0].partitioner
    assert (partitioner.data, partitioner.fsdp) == ((1, -1) if "fsdp" in preset else (-1, 1))


def test_the_published_run_configures_over_any_data_set(
    call, small_scenes, shared_golden, tmp_path, monkeypatch
):
    """Published shapes and vocabulary; a size and a batch that this machine can hold."""
    seen = []
    monkeypatch.setattr(loop, "train", seen.append)
    call(
        "--gin_file=gin_configs/models/tiny.gin",
        "--gin_file=gin_configs/runs/pretrain.gin",
        model_dir(tmp_path),
        "--gin.DATA_SET=@Scenes()",
        "--gin.VOCABULARY=@vocabulary_from_ofa_directory()",
        f"--gin.vocabulary_from_ofa_directory.bpe_dir='{shared_golden / 'bpe'}'",
        "--gin.IMAGE_TOKENIZER=@patch_codebook()",
        f"--gin.patch_codebook.path='{small_scenes / 'scenes' / 'codebook.npz'}'",
        "--gin.train.num_workers=0",
        "--gin.train.peak_flops=1e11",
        *(f"--gin.{stream}/Stream.batch_size=2" for stream in ("pairs", "images", "text")),
    )
    (run,) = seen
    assert sum(x.size for x in jax.tree.leaves(run.abstract_state.params)) == (
        33_488_336 + 63 * 256
    )  # rows up to a multiple of 128
    batch = next(run.batches(0))
    assert batch["pairs"]["encoder_images"].shape == (2, 384, 384, 3)
    assert batch["pairs"]["encoder_patch_indices"].shape == (2, 196)
    assert batch["images"]["decoder_target_tokens"].shape == (2, 264)
    assert batch["text"]["encoder_input_tokens"].shape == (2, 288)
    assert run.flops_per_step == flops.training_flops(batch, OFAConfig.tiny())
    assert run.peak_flops == 1e11


@pytest.mark.parametrize("form", ["tsv", "records"])
def test_the_published_run_configures_over_the_official_files(
    call, golden, shared_golden, tmp_path, monkeypatch, form
):
    seen = []
    monkeypatch.setattr(loop, "train", seen.append)
    folder = write_official_files(golden, tmp_path)
    if form == "records":
        kinds = ("vision_language", "text", "images", "detection")
        files = [f"--{kind}={folder / kind.removesuffix('s')}_examples.tsv" for kind in kinds]
        folder = tmp_path / "records"
        assert (
            convert_tsv.main(
                [
                    f"--output_dir={folder}",
                    "--num_workers=0",
                    *files,
                    f"--negative_samples={tmp_path / 'negative_sample'}",
                ]
            )
            == 0
        )
    call(
        "--gin_file=gin_configs/models/tiny.gin",
        f"--gin_file=gin_configs/runs/pretrain_ofa_{form}.gin",
        model_dir(tmp_path / "run"),
        f"--gin.DATA_DIR='{folder}'",
        f"--gin.BPE_DIR='{shared_golden / 'bpe'}'",
        "--gin.train.num_workers=0",
        *(f"--gin.{stream}/Stream.batch_size=8" for stream in ("pairs", "images", "text")),
    )
    (run,) = seen
    assert run.validation_batches is None
    batch = next(run.batches(0))
    assert {
        name: (rows["decoder_loss_weights"].sum(1) > 0).tolist() for name, rows in batch.items()
    } == {name: [True] * 8 for name in ("pairs", "images", "text")}
    # Every task of each stream is there: 2 of 6, twice 1 of 6 ... of the pairs; half of the images.
    names = [run.task_names[number] for rows in batch.values() for number in rows["task_ids"]]
    assert set(names) == set(objectives.OBJECTIVES)


def test_a_missing_official_file_is_reported_in_one_sentence(
    call, golden, shared_golden, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(loop, "train", None)
    (write_official_files(golden, tmp_path) / "detection_examples.tsv").unlink()
    files = [
        "--gin_file=gin_configs/models/tiny.gin",
        "--gin_file=gin_configs/runs/pretrain_ofa_tsv.gin",
        model_dir(tmp_path / "run"),
        f"--gin.DATA_DIR='{tmp_path}'",
        f"--gin.BPE_DIR='{shared_golden / 'bpe'}'",
    ]
    for others, sentence in (
        ([], f"There is no file {tmp_path / 'detection_examples.tsv'}: check the path."),
        (
            ["--gin.OfaTsv.detection=None"],
            "leave the task out with PretrainingSettings.rates = {'object_detection': 0}",
        ),
    ):
        with pytest.raises(SystemExit):
            call(*files, *others)
        error = capsys.readouterr().err.strip()
        assert sentence in error and error.startswith("error: ") and "\n" not in error


def tune(call, runs, name, *options, begin="whole"):
    """Trains one step of visual question answering from the checkpoint of another run."""
    call(
        "--gin_file=gin_configs/models/scenes.gin",
        "--gin_file=gin_configs/runs/finetune.gin",
        *(option for option in SMALL if "model_config" in option),
        model_dir(runs / name),
        f"--gin.INITIAL_CHECKPOINT_PATH='{runs / begin}'",
        "--gin.MIXTURE_OR_TASK_MODULE='tasks.pretraining'",
        "--gin.MIXTURE_OR_TASK_NAME='visual_question_answering'",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 40, 'targets': 24}",
        "--gin.IMAGE_SIZE=64",
        "--gin.BATCH_SIZE=4",
        "--gin.TRAIN_STEPS=1",
        "--gin.train.settings=@scenes_settings()",
        *(option for option in SMALL if "scenes_settings" in option),
        *options,
    )


def test_one_task_is_trained_from_a_checkpoint_with_the_flags_of_t5x(call, runs, capsys):
    tune(call, runs, "tuned", "--gin.LEARNING_RATE=1e-12")
    assert list(json.loads((runs / "tuned" / "validation.json").read_text())) == [
        "visual_question_answering"
    ]
    # A step of no length: the parameters are those of the checkpoint.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9),
        checkpoint(runs / "tuned", 1)["params"],
        checkpoint(runs / "whole", 4)["params"],
    )


@pytest.mark.slow
def test_a_run_learns_from_the_cider_of_its_own_captions(call, runs, capsys):
    tune(
        call,
        runs,
        "self_critical",
        "--gin.MIXTURE_OR_TASK_NAME='image_captioning'",
        "--gin.LABEL_SMOOTHING=0.0",
        "--gin.train.gradient_accumulation=2",
        "--gin.train.self_critical=@SelfCriticalConfig()",
        "--gin.SelfCriticalConfig.decoding=@DecodingConfig()",
        "--gin.DecodingConfig.method='sample'",
        "--gin.DecodingConfig.beam_size=3",
        "--gin.DecodingConfig.max_length=6",
    )
    assert "best_reward" in capsys.readouterr().out
    begin, tuned = (
        checkpoint(runs / name, step)["params"]["token_embedding"]["embedding"]
        for name, step in (("whole", 4), ("self_critical", 1))
    )
    assert (tuned != begin).any()


@pytest.mark.slow
def test_added_small_parts_are_tuned_and_averaged_from_a_checkpoint_without_them(
    call, runs, monkeypatch
):
    added_parts = [
        "--gin.model_config.adapter_width=2",
        "--gin.model_config.prefix_length=3",
        "--gin.model_config.freeze_batch_norm=True",
        "--gin.OptimizerConfig.trainable_groups=['adapters', 'prefixes']",
    ]
    tune(
        call,
        runs,
        "small_parts",
        *added_parts,
        "--gin.LEARNING_RATE=1e-2",
        "--gin.OptimizerConfig.ema_decay=0.5",
        "--gin.LossConfig.encouraging_end=0.75",
        "--gin.OptimizerConfig.warmup=0",
    )
    flat, tuned = flax.traverse_util.flatten_dict, checkpoint(runs / "small_parts", 1)
    before, after = flat(checkpoint(runs / "whole", 4)["params"]), flat(tuned["params"])
    added = set(after) - set(before)
    assert {"adapter" in path or "prefix" in path[-1] for path in added} == {True}
    for path, array in before.items():
        np.testing.assert_array_equal(after[path], array, err_msg="/".join(path))
    average = flat(tuned["ema_params"])
    moved = [path for path in added if (average[path] != after[path]).any()]
    assert moved and all(path in added for path in moved)
    # A checkpoint that has the small parts gives them on, too.
    seen = []
    monkeypatch.setattr(loop, "train", seen.append)
    tune(call, runs, "small_parts_again", *added_parts, begin="small_parts")
    for path, array in flat(seen[0].new_state().params).items():
        np.testing.assert_array_equal(array, after[path], err_msg="/".join(path))


MISTAKES = {
    "a gin file that is not there": (
        ["--gin_file=gin_configs/runs/pretrain_scens.gin"],
        "There is no gin file gin_configs/runs/pretrain_scens.gin",
        "Did you mean gin_configs/runs/pretrain_scenes.gin?",
    ),
    "no gin file": ([], "No gin file given: add --gin_file=FILE"),
    "a flag": ([RUN, "--gin_flie=x"], "There is no flag --gin_flie.", "Did you mean --gin_file?"),
    "a flag without a value": ([RUN, "--gin.TRAIN_STEPS"], "write --gin.TRAIN_STEPS=VALUE"),
    "a search path": ([RUN, "--gin_search_paths=nowhere"], "names nowhere, which is not a folder"),
    "a macro": (
        [RUN, "--gin.TRAIN_STPES=3"],
        "TRAIN_STPES is set (the command line) but nothing uses it.",
        "Did you mean TRAIN_STEPS?",
    ),
    "a configurable": (
        [RUN, "--gin.OptimiserConfig.beta1=0.5"],
        "Nothing named OptimiserConfig can be configured",
        "Did you mean OptimizerConfig?",
    ),
    "a parameter": (
        [RUN, "--gin.OptimizerConfig.clip_nrom=1"],
        "OptimizerConfig has no parameter clip_nrom",
        "Did you mean clip_norm?",
    ),
    "a parameter of the model": (
        [RUN, "--gin.model_config.wdith=3"],
        "model_config has no parameter wdith",
        "Did you mean width?",
    ),
    "a size": (
        [RUN, "--gin.model_config.size='bse'"],
        "model_config.size is 'bse'",
        "Did you mean base?",
    ),
    "a string without quotes": (
        [RUN, "--gin.MODEL_DIR=runs/x"],
        "cannot read `MODEL_DIR = runs/x` as gin",
        "strings need quotes",
    ),
    "a reward for several streams": (
        [RUN, "--gin.train.self_critical=@SelfCriticalConfig()"],
        "train.self_critical needs a single stream",
        "the run has 3",
    ),
    "what is required": (
        ["--gin_file=gin_configs/models/base.gin", "--gin_file=gin_configs/runs/finetune.gin"],
        "MODEL_DIR is required",
        "set it with --gin.MODEL_DIR=VALUE",
    ),
    "a mixture": (
        [RUN, "--gin.pairs/Stream.mixture_or_task_name='ofa_pretrain_pears'"],
        "No task or mixture is called 'ofa_pretrain_pears'.",
        "Did you mean ofa_pretrain_pairs?",
    ),
    "a module": (
        [RUN, "--gin.train.mixture_or_task_module='my_taks'"],
        "MIXTURE_OR_TASK_MODULE is 'my_taks', which cannot be imported",
    ),
    "a place without data": (
        [RUN, "--gin.scenes_settings.data_set=@Scenes()", "--gin.Scenes.data_dir='nowhere'"],
        "There are no scenes in nowhere/scenes",
        "build them with `python -m tools.build_scenes --data_dir=nowhere`",
    ),
    "an image of another size": (
        [RUN, "--gin.pairs/Stream.image_size=96"],
        "Stream 'pairs' expects images of (96, 96, 3)",
        "make the stream's image_size",
    ),
    "an image that is not a multiple of a patch": (
        [RUN, "--gin.pairs/Stream.image_size=100"],
        "it must be between 1 and 65536 and a multiple of 16",
    ),
    "codes that are not expected": (
        [RUN, "--gin.images/Stream.code_targets=False"],
        "set its code_targets=True",
    ),
    "codes of another grid": (
        [RUN, "--gin.model_config.code_image_size=32"],
        "model_config.code_image_size is 32",
        "64",
    ),
    "a length beyond the positions": (
        [RUN, "--gin.text/Stream.task_feature_lengths={'inputs': 2000, 'targets': 34}"],
        "Stream 'text' does not fit the model",
        "shorten the task_feature_lengths",
    ),
    "a length that is not given": (
        [RUN, "--gin.text/Stream.task_feature_lengths={'inputs': 40}"],
        "Stream 'text': task_feature_lengths is {'inputs': 40}",
    ),
    "a mesh that does not fit": (
        [RUN, "--gin.Partitioner.data=3"],
        "Partitioner(data=3, fsdp=1, tensor=1) does not fit",
    ),
    "a checkpoint": (
        [RUN, "--gin.INITIAL_CHECKPOINT_PATH='nowhere'"],
        "There is no checkpoint in nowhere",
    ),
    "a learning rate": (
        [RUN, "--gin.LEARNING_RATE=0"],
        "OptimizerConfig.learning_rate is 0; it must be positive",
    ),
    "a rate of an objective": (
        [RUN, "--gin.scenes_settings.rates={'captioning': 0}"],
        "PretrainingSettings.rates names captioning; known are",
    ),
    "a peak": (
        [RUN, "--gin.train.peak_flops=0"],
        "train.peak_flops is 0; it must be positive, or None. Give the operations per second of",
    ),
    "an empty directory": (
        [RUN, "--gin.MODEL_DIR=''"],
        "train.model_dir is ''; it must be text that is not empty",
    ),
    "a text for a list": (
        [RUN, "--gin.OptimizerConfig.frozen='encoder'"],
        "OptimizerConfig.frozen is 'encoder'; it must be a list of strings. Write ['encoder']",
    ),
    "nothing for an object": (
        [RUN, "--gin.train.optimizer=None"],
        "train.optimizer is None; it must be an object of OptimizerConfig",
    ),
    "a function for an object": (
        [RUN, "--gin.train.optimizer=@OptimizerConfig"],
        "Write @OptimizerConfig() for what it returns",
    ),
    "an infinite rate": (
        [RUN, "--gin.LEARNING_RATE=1e999"],
        "OptimizerConfig.learning_rate is inf; it must be a finite number",
    ),
    "ids beyond the vocabulary": (
        [RUN, "--gin.LossConfig.constraint_range=(4, 10000000)"],
        "LossConfig.constraint_range (4, 10000000) exceeds the vocabulary of",
    ),
    "an absurd width": (
        [RUN, "--gin.model_config.width=1000000000"],
        "EiB of memory on this machine (the optimizer",
        "set train.check_memory = False",
    ),
    "an absurd batch": (
        [RUN, "--gin.pairs/Stream.batch_size=2000000000"],
        "TiB of memory on this machine (batches of 'pairs'",
    ),
    "absurdly many workers": (
        [RUN, "--gin.train.num_workers=100000"],
        "train.num_workers is 100000; it must be between 0 and 1024",
    ),
    "a macro that needs itself": (
        [RUN, "--gin.TRAIN_STEPS=%TRAIN_STEPS"],
        "%TRAIN_STEPS needs itself",
    ),
    "an open bracket": ([RUN, "--gin.TRAIN_STEPS=(1"], "the bracket `(` is never closed"),
    "a missing parameter": (
        [RUN, "--gin.train.loss=@LossConfig()", "--gin.train.settings=@PretrainingSettings()"],
        "PretrainingSettings needs data_set, vocabulary: set PretrainingSettings.data_set and",
    ),
    "a type": (
        [RUN, "--gin.TRAIN_STEPS='many'"],
        "OptimizerConfig.total_steps is 'many'; it must be a whole number.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_user_error_is_one_sentence_and_exit_code_2_before_compilation(
    mistake, call, tmp_path, capsys, monkeypatch
):
    arguments, *parts = MISTAKES[mistake]
    if arguments and "MODEL_DIR" not in str(arguments) and "finetune" not in str(arguments):
        arguments = [*arguments, model_dir(tmp_path)]
    compiled = []
    monkeypatch.setattr(loop, "train", lambda run: compiled.append(run))
    with pytest.raises(SystemExit) as ended:
        call(*arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    for part in parts:
        assert part in error, error
    assert not compiled


OTHER_RUNS = {
    "another seed": (["--gin.SEED=1"], "was started with seed = 0, but now it is 1"),
    "another width": (["--gin.model_config.width=32"], "width is 16 there and 32 here"),
    "another batch": (["--gin.text/Stream.batch_size=4"], "was started with streams = "),
    "another rate": (
        ["--gin.scenes_settings.rates={'visual_grounding': 3}"],
        "was started with rates = ",
    ),
    "another optimizer": (["--gin.OptimizerConfig.ema_decay=0.5"], "of another model or optimiser"),
    "other data": (
        ["--gin.train.train_split='validation'"],
        "was started with num_records = ",
    ),
}


@pytest.mark.parametrize("other", OTHER_RUNS)
def test_another_run_in_the_same_place_is_refused_and_changes_nothing(other, call, runs, capsys):
    options, sentence = OTHER_RUNS[other]
    before = snapshot(runs / "whole")
    with pytest.raises(SystemExit) as ended:
        call(RUN, *SMALL, model_dir(runs / "whole"), *options, "--gin.TRAIN_STEPS=6")
    assert ended.value.code == 2
    output, error = capsys.readouterr()
    assert sentence in error and error.strip().count("\n") == 0
    assert "Compiling" not in output
    assert snapshot(runs / "whole") == before
