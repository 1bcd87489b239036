"""`python -m ofa_jax.infer`: killed and resumed jobs, invalid inputs, mistakes of the user."""

import base64
import contextlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf
from official_model import random_variables
from PIL import Image
from shown_progress import assert_shown, every_line
from small_model import SMALL

import ofa_jax
from ofa_jax import infer
from ofa_jax.checkpoints import storage
from ofa_jax.data.seqio_vocabulary import SeqioVocabulary
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.decoding import DecodingConfig
from ofa_jax.inference import build
from ofa_jax.tokenizers.processor import Processor

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUN = "--gin_file=gin_configs/runs/infer.gin"
COUNT, SHARD = 90, 6
SHAPES = ["--gin.BATCH_SIZE=3", f"--gin.SHARD_SIZE={SHARD}", "--gin.SOURCE_LENGTH=32"]


@pytest.fixture(scope="module")
def run_directory(small_scenes, tmp_path_factory):
    """Writes a run of random parameters, with vocabulary and codes of the small scenes."""
    directory = tmp_path_factory.mktemp("run")
    scenes = Scenes(str(small_scenes))
    processor = Processor(
        scenes.vocabulary(64),
        scenes.image_tokenizer(),
        image_size=64,
        max_image_size=64,
        detection_image_size=64,
        infill_image_size=64,
    )
    config = SMALL.replace(
        vocab_size=processor.vocabulary.vocab_size,
        max_source_positions=64,
        max_target_positions=64,
        code_image_size=32,
    )
    storage.save_variables(str(directory), random_variables(config), step=5)
    storage.write_model_config(str(directory), config)
    processor.save(str(directory))
    return directory


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    """Writes JSON lines with images as files or base64, without images, and invalid ones."""
    folder = tmp_path_factory.mktemp("requests")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (4, 5, 3), np.uint8).repeat(20, axis=0).repeat(20, axis=1)
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)
        fields = {
            "id": f"n{number}",
            "image": path.name,
            "instruction": f'which region does the text "{number} dogs" describe?',
        }
        if number % 7 == 0:
            fields["image"] = base64.b64encode(path.read_bytes()).decode()
        if number % 11 == 0:
            fields["region"] = [10, 10, 60, 70]
        lines.append(json.dumps(fields))
    lines[3] = '{"id": "torn", "image": '
    lines[4] = json.dumps({"id": "lost", "image": "lost.png", "instruction": "what is it?"})
    (folder / "torn.png").write_bytes((folder / "5.png").read_bytes()[:100])
    lines[5] = json.dumps({"id": "half", "image": "torn.png", "instruction": "what is it?"})
    lines[6] = json.dumps({"id": "mute", "image": "6.png"})
    lines[8] = json.dumps({"id": "long", "instruction": "what is it? " * 40})
    lines[9] = json.dumps(
        {
            "id": "out",
            "image": "9.png",
            "region": [0, 0, 1000, 9],
            "instruction": "what is in the region?",
        }
    )
    (folder / "requests.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "requests.jsonl"


def flags(run_directory, requests, output, *others):
    return [
        RUN,
        f"--gin.CHECKPOINT='{run_directory}'",
        f"--gin.OUTPUT_DIR='{output}'",
        "--gin.INPUTS=@JsonLines()",
        f"--gin.JsonLines.path='{requests}'",
        *SHAPES,
        *others,
    ]


@pytest.fixture
def call(monkeypatch):
    """Calls the command line in this process, from a clean gin; returns the exit code."""
    monkeypatch.chdir(ROOT)

    def run(*arguments):
        gin.clear_config()
        return infer.main(arguments)

    yield run
    gin.clear_config()


def read_lines(output):
    """Returns the lines of all output files."""
    paths = sorted(pathlib.Path(output).glob("answers-*.jsonl"))
    return [line for path in paths for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(run_directory, requests, tmp_path_factory):
    """Returns the output directory of an uninterrupted job, and what it printed."""
    output, printed = tmp_path_factory.mktemp("uninterrupted"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(ROOT)
        gin.clear_config()
        with every_line() as shown:
            assert infer.main(flags(run_directory, requests, output)) == 0
    assert_shown(shown, "decoding", f"{COUNT} inputs")
    return output, printed.getvalue()


def command(*arguments):
    return [sys.executable, "-m", "ofa_jax.infer", *flags(*arguments)]


def environment():
    return os.environ | {"JAX_PLATFORMS": "cpu"}


def test_every_input_has_its_line_and_invalid_ones_an_error(uninterrupted):
    output, printed = uninterrupted
    lines = [json.loads(line) for line in read_lines(output)]
    expected = [f"n{number}" for number in range(COUNT)]
    expected[3:7] = ["requests.jsonl:4", "lost", "half", "mute"]
    expected[8:10] = ["long", "out"]
    assert [line["id"] for line in lines] == expected
    errors = {line["id"]: line["error"] for line in lines if "error" in line}
    for identity, sentence in {
        "requests.jsonl:4": "It is not JSON",
        "lost": "'lost.png' is neither a file nor base64",
        "half": "image cannot be decoded",
        "mute": "It has no instruction",
        "out": "is not a box x0, y0, x1, y1 within the image of 100 x 80 pixels",
    }.items():
        assert sentence in errors.pop(identity)
    assert not errors
    good = lines[0]
    assert set(good) == {"id", "instruction", "answer", "score", "box"} and len(good["box"]) == 4
    assert len({line["score"] for line in lines if "score" in line}) == COUNT - 5
    assert f"{COUNT} inputs; writing {COUNT // SHARD} output files" in printed
    assert f"Done: {COUNT} predictions, 5 of them errors; {COUNT} decoded now in" in printed
    assert "1 instructions were longer than source_length and truncated" in printed


def test_the_predictions_equal_those_of_the_predictor(run_directory, requests, uninterrupted):
    """Scores in float32 within 1e-5 relative."""
    predictor = ofa_jax.Predictor(run_directory, source_lengths=[32])
    lines = [json.loads(line) for line in read_lines(uninterrupted[0])]
    for number in (1, 7, 20):
        found = predictor.predict(
            requests.parent / f"{number}.png",
            f'which region does the text "{number} dogs" describe?',
        )
        np.testing.assert_allclose(lines[number]["box"], found.boxes[0], rtol=1e-6)
        assert lines[number]["score"] == pytest.approx(found.score, rel=1e-5)


def test_a_killed_job_resumes_and_writes_the_same_lines(
    run_directory, requests, uninterrupted, tmp_path
):
    """Kills the job after its first file; no line is lost, doubled or changed."""
    lives = []
    for life in range(2):
        process = subprocess.Popen(
            command(run_directory, requests, tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=environment(),
        )
        before = len(list(tmp_path.glob("answers-*.jsonl")))
        while life < 1 and process.poll() is None:
            if len(list(tmp_path.glob("answers-*.jsonl"))) > before:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        printed, _ = process.communicate(timeout=300)
        lives.append((process.returncode, before))
        if process.returncode == 0:
            break
    assert lives[0][0] == -signal.SIGKILL and lives[-1][0] == 0
    assert len(lives) == 2 and lives[-1][1] < COUNT // SHARD, "it was killed in the middle"
    assert f"resuming: {lives[-1][1]} of {COUNT // SHARD} output files" in printed
    assert read_lines(tmp_path) == read_lines(uninterrupted[0])


def test_a_finished_job_does_nothing(
    call, run_directory, requests, uninterrupted, capsys, monkeypatch
):
    output, _ = uninterrupted
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    monkeypatch.setattr(build, "load_model", None)
    assert call(*flags(run_directory, requests, output)) == 0
    printed = capsys.readouterr().out
    assert f"this job is finished: {COUNT // SHARD} output files" in printed
    assert f"Done: {COUNT} predictions, 5 of them errors. They are in" in printed
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*")}


def test_two_hosts_together_write_the_files_of_one(
    call, run_directory, requests, uninterrupted, tmp_path, capsys
):
    written = []
    for host in range(2):
        assert (
            call(
                *flags(
                    run_directory,
                    requests,
                    tmp_path,
                    f"--gin.infer.host={host}",
                    "--gin.infer.num_hosts=2",
                )
            )
            == 0
        )
        assert f"Host {host} of 2: {COUNT} inputs" in capsys.readouterr().out
        written.append({path.name for path in tmp_path.glob("answers-*.jsonl")})
    assert len(written[0]) == 8 and len(written[1]) == COUNT // SHARD
    assert read_lines(tmp_path) == read_lines(uninterrupted[0])


def test_codes_of_an_image_folder_are_written_with_their_images(
    call, run_directory, requests, tmp_path, capsys
):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes((requests.parent / f"{number}.png").read_bytes())
    (folder / "2.png").write_bytes(b"no image")
    output = tmp_path / "predictions"
    assert (
        call(
            RUN,
            f"--gin.CHECKPOINT='{run_directory}'",
            f"--gin.OUTPUT_DIR='{output}'",
            "--gin.INPUTS=@ImageFolder()",
            f"--gin.ImageFolder.path='{folder}'",
            "--gin.ImageFolder.instruction='what is the image in the middle part?'",
            *SHAPES,
        )
        == 0
    )
    lines = [json.loads(line) for line in read_lines(output)]
    assert [line["id"] for line in lines] == ["0.png", "1.png", "2.png", "3.png"]
    assert "error" in lines[2] and lines[3]["image"] == "images/00000/000003.png"
    processor = Processor.load(run_directory)
    for line in (lines[0], lines[1], lines[3]):
        with Image.open(output / line["image"]) as image:
            codes = np.array(line["codes"]).reshape(1, 4, 4)
            np.testing.assert_array_equal(
                np.asarray(image), processor.image_tokenizer.decode(codes)[0]
            )
    assert "Done: 4 predictions, 1 of them errors" in capsys.readouterr().out


def test_an_official_tsv_with_candidates(call, run_directory, requests, tmp_path):
    encoded = [
        base64.urlsafe_b64encode((requests.parent / f"{n}.png").read_bytes()).decode()
        for n in range(3)
    ]
    rows = [f"{n}\t{n}\t{encoded[n]}\ta dog is here\tpremise\tentailment" for n in range(3)]
    (tmp_path / "e.tsv").write_text("\n".join(rows) + "\n")
    (tmp_path / "words.txt").write_text("yes\nno\nmaybe\n")
    for number, scored in enumerate(("False", "True")):
        assert (
            call(
                RUN,
                f"--gin.CHECKPOINT='{run_directory}'",
                f"--gin.OUTPUT_DIR='{tmp_path / str(number)}'",
                "--gin.INPUTS=@Tsv()",
                f"--gin.Tsv.path='{tmp_path / 'e.tsv'}'",
                "--gin.Tsv.layout='snli_ve'",
                "--gin.Tsv.instruction='does the image describe \" {hypothesis} \"?'",
                f"--gin.infer.candidates_file='{tmp_path / 'words.txt'}'",
                f"--gin.infer.score_all={scored}",
                *SHAPES,
            )
            == 0
        )
        lines = [json.loads(line) for line in read_lines(tmp_path / str(number))]
        assert [line["id"] for line in lines] == ["0", "1", "2"]
        assert {line["answer"] for line in lines} <= {"yes", "no", "maybe"}


def test_a_seqio_task_has_the_inputs_of_training(
    call, run_directory, small_scenes, tmp_path, monkeypatch
):
    monkeypatch.setenv("OFA_DATA_DIR", str(small_scenes))
    assert (
        call(
            RUN,
            f"--gin.CHECKPOINT='{run_directory}'",
            f"--gin.OUTPUT_DIR='{tmp_path}'",
            "--gin.INPUTS=@TaskInputs()",
            "--gin.TaskInputs.task='image_captioning'",
            "--gin.TaskInputs.split='validation'",
            "--gin.TaskInputs.num_examples=4",
            "--gin.infer.settings=@scenes_settings()",
            "--gin.scenes_settings.image_size=64",
            "--gin.scenes_settings.code_image_size=32",
            "--gin.infer.decoding=@DecodingConfig()",
            "--gin.DecodingConfig.max_length=5",
            "--gin.DecodingConfig.beam_size=2",
            *SHAPES,
        )
        == 0
    )
    lines = [json.loads(line) for line in read_lines(tmp_path)]
    assert [line["instruction"] for line in lines] == ["what does the image describe?"] * 4
    record = Scenes(str(small_scenes)).records("captions", "validation")[2]
    predictor = ofa_jax.Predictor(run_directory, source_lengths=[32])
    found = predictor.predict(
        record["image"],
        "what does the image describe?",
        decoding=DecodingConfig(max_length=5, beam_size=2),
    )
    assert lines[2]["id"] == record["id"] and lines[2]["answer"] == found.text


@pytest.fixture
def tensor_task(small_scenes):
    """Registers a task of eight examples with tf.data preprocessors; returns its name."""
    vocabulary = Scenes(str(small_scenes)).vocabulary(64)
    ids = [vocabulary.encode(f" what is {n}?", add_bos=True, add_eos=True) for n in range(8)]
    data = {
        "inputs": tf.ragged.constant([row.tolist() for row in ids], tf.int32),
        "targets": tf.fill([8, 1], 2),
    }
    feature = seqio.Feature(SeqioVocabulary(vocabulary), add_eos=False)
    seqio.TaskRegistry.add(
        "tensor_examples",
        seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(data),
            ["test"],
        ),
        preprocessors=[],
        output_features={"inputs": feature, "targets": feature},
    )
    yield "tensor_examples"
    seqio.TaskRegistry.remove("tensor_examples")


def test_a_sequential_seqio_task_resumes(call, run_directory, tmp_path, tensor_task):
    arguments = [
        RUN,
        f"--gin.CHECKPOINT='{run_directory}'",
        f"--gin.OUTPUT_DIR='{tmp_path}'",
        "--gin.INPUTS=@TaskInputs()",
        f"--gin.TaskInputs.task='{tensor_task}'",
        *SHAPES,
        "--gin.SHARD_SIZE=3",
    ]
    assert call(*arguments) == 0
    before = read_lines(tmp_path)
    assert [json.loads(line)["instruction"] for line in before] == [
        f"what is {n}?" for n in range(8)
    ]
    (tmp_path / "answers-00001-of-00003.jsonl").unlink()
    assert call(*arguments) == 0
    assert read_lines(tmp_path) == before


MISTAKES = {
    "missing inputs": (
        ["--gin.JsonLines.path='nowhere.jsonl'"],
        "There is no file nowhere.jsonl",
    ),
    "inputs that are a string": (
        ["--gin.INPUTS='requests.jsonl'"],
        "infer.inputs is 'requests.jsonl'; it must be an object of RequestSource or an object of "
        "TaskInputs. Give one of @JsonLines(), @Tsv()",
    ),
    "an empty folder": (
        [
            "--gin.INPUTS=@ImageFolder()",
            "--gin.ImageFolder.path='gin_configs'",
            "--gin.ImageFolder.instruction='what is it?'",
        ],
        "There is no image in gin_configs: check INPUTS.",
    ),
    "a checkpoint": (["--gin.CHECKPOINT='nowhere'"], "There is no checkpoint in nowhere"),
    "shards of partial batches": (
        ["--gin.BATCH_SIZE=4"],
        "infer.shard_size is 6, which is not a multiple of infer.batch_size",
    ),
    "a host": (
        ["--gin.infer.host=2", "--gin.infer.num_hosts=2"],
        "infer.host is 2 of 2: hosts are",
    ),
    "an object store": (
        ["--gin.OUTPUT_DIR='gs://bucket/x'"],
        "output files are written to a disk or a mount",
    ),
    "a source length beyond the positions": (
        ["--gin.SOURCE_LENGTH=65"],
        "infer.source_length is 65, but the model has 64 positions",
    ),
    "a target length beyond the positions": (
        ["--gin.infer.decoding=@DecodingConfig()", "--gin.DecodingConfig.max_length=64"],
        "the output with its eos is 65 tokens long, the model has 64 positions",
    ),
    "a candidates file": (["--gin.infer.candidates_file='nowhere'"], "There is no file nowhere"),
    "a task": (
        ["--gin.INPUTS=@TaskInputs()", "--gin.TaskInputs.task='image_captoning'"],
        "No task or mixture is called 'image_captoning'. Did you mean image_captioning?",
    ),
    "a macro": (["--gin.OUTPUT_DR='x'"], "Did you mean OUTPUT_DIR?"),
    "what is required": (None, "is required"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported_in_one_sentence_with_exit_code_2(
    mistake, call, run_directory, requests, tmp_path, capsys
):
    others, message = MISTAKES[mistake]
    arguments = (
        [RUN] if others is None else flags(run_directory, requests, tmp_path / "out", *others)
    )
    with pytest.raises(SystemExit) as ended:
        call(*arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    assert message in error, error
    assert not (ROOT / "gs:").exists()
    assert not (tmp_path / "out" / "job.json").exists()  # the corrected job can be started there
    assert not (tmp_path / "out").exists(), "a refused command changes nothing"


def test_a_former_parameter_name_is_read_with_a_sentence(
    call, run_directory, requests, tmp_path, capsys
):
    arguments = flags(run_directory, requests, tmp_path, "--gin.infer.answers=['yes', 'no']")
    assert call(*arguments) == 0
    assert "infer.answers is now called infer.candidates" in capsys.readouterr().err
    lines = [json.loads(line) for line in read_lines(tmp_path)]
    assert {line["answer"] for line in lines if "answer" in line} <= {"yes", "no"}


def test_another_job_in_the_same_directory_is_refused(
    call, run_directory, requests, uninterrupted, capsys
):
    with pytest.raises(SystemExit) as ended:
        call(*flags(run_directory, requests, uninterrupted[0], "--gin.SOURCE_LENGTH=40"))
    assert ended.value.code == 2
    assert "was started with source_length = 32, but now it is 40" in capsys.readouterr().err


def test_a_job_with_only_invalid_inputs_fails(call, run_directory, tmp_path, capsys):
    (tmp_path / "q.jsonl").write_text('{"instruction": "?", "image": "lost.png"}\n' * 3)
    assert call(*flags(run_directory, tmp_path / "q.jsonl", tmp_path / "out")) == 1
    assert "Done: 3 predictions, 3 of them errors" in capsys.readouterr().out
