"""Batch jobs over what people bring: lines of several kinds, hostile lines, damage, changes."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ofa_jax
from ofa_jax.inference import shards
from ofa_jax.inference.build import build_job
from ofa_jax.inference.kinds import KindOptions, Kinds
from ofa_jax.inference.loading import LoadedModel
from ofa_jax.inference.request_batches import RequestBatches
from ofa_jax.inference.sources import ImageFolder, JsonLines, Tsv
from ofa_jax.model import OFA
from ofa_jax.utils.locks import LockedError

CAPTION = "what does the image describe?"
GROUNDING = 'which region does the text "a red apple" describe?'
INFILLING = "what is the image in the middle part?"


@pytest.fixture
def folder(tmp_path, image):
    image.save(tmp_path / "a.png")
    return tmp_path


def write(folder, *lines):
    path = folder / "q.jsonl"
    with path.open("w") as file:
        for number, line in enumerate(lines):
            line = {"instruction": line} if isinstance(line, str) else line
            file.write(json.dumps({"id": str(number), "image": "a.png"} | line) + "\n")
    return str(path)


def build(run_directory, folder, inputs, out="out", **options):
    options = {"batch_size": 2, "shard_size": 4, "source_length": 32, "num_threads": 1} | options
    if isinstance(inputs, str):
        inputs = JsonLines(inputs, index_dir=str(folder))
    return build_job(str(run_directory), str(folder / out), inputs, **options)


def answers(folder, out="out"):
    paths = sorted((folder / out).glob("answers-*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "order",
    [
        (CAPTION, GROUNDING, INFILLING, CAPTION, GROUNDING, GROUNDING, CAPTION),
        (INFILLING, CAPTION, CAPTION, CAPTION, INFILLING, INFILLING),
    ],
)
def test_each_line_is_decoded_by_its_own_kind(run_directory, folder, image, order):
    summary = build(run_directory, folder, write(folder, *order)).run()
    assert (summary.lines, summary.errors) == (len(order), 0)
    predictor = ofa_jax.Predictor(str(run_directory), source_lengths=[32])
    lines = answers(folder)
    assert [line["id"] for line in lines] == [str(number) for number in range(len(order))]
    for line, instruction in zip(lines, order, strict=True):
        found = predictor.predict(image, instruction)
        assert line["answer"] == found.text
        assert line["score"] == pytest.approx(found.score, rel=1e-5)
        assert ("box" in line) == (instruction == GROUNDING)
        assert ("codes" in line) == (instruction == INFILLING)


def test_a_line_may_name_its_task(run_directory, folder):
    path = write(
        folder,
        {"instruction": "where is it?", "task": "visual_grounding"},
        {"instruction": "where is it?"},
        {"instruction": "where is it?", "task": "visual_groundin"},
        {"instruction": "where is it?", "task": 7},
    )
    build(run_directory, folder, path).run()
    first, second, third, fourth = answers(folder)
    assert "box" in first and "box" not in second
    assert "Did you mean visual_grounding?" in third["error"]
    assert fourth["error"] == "Its task must be text, not a number"


def test_mixed_lines_are_the_same_after_a_restart_and_on_two_hosts(run_directory, folder):
    order = (
        CAPTION,
        GROUNDING,
        "?",
        CAPTION,
        GROUNDING,
        CAPTION,
        "what is it?",
        GROUNDING,
        CAPTION,
    )
    path = write(folder, *order)
    build(run_directory, folder, path).run()
    expected = answers(folder)
    (folder / "out" / "answers-00001-of-00003.jsonl").unlink()
    build(run_directory, folder, path).run()
    for host in range(2):
        build(run_directory, folder, path, "two", host=host, num_hosts=2).run()
    assert answers(folder) == answers(folder, "two") == expected


def test_one_input_never_ends_a_job(run_directory, folder):
    shutil.copyfile(folder / "a.png", folder / b"caf\xe9.png".decode("utf-8", "surrogateescape"))
    os.mkfifo(folder / "fifo.png")
    (folder / "pointer.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (folder.parent / "outside.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    wrong = {
        "fifo.png": "fifo",
        "/dev/zero": "outside the folder",
        "/proc/self/environ": "outside the folder",
        "../outside.png": "outside the folder",
        "link.png": "outside the folder",
        "pointer.png": "Git LFS",
        "https://example.org/a.png": "is a URL",
        "cats/0001": "neither a file nor base64",
        ".": "folder",
    }
    lines = [{"instruction": CAPTION, "image": name} for name in wrong]
    lines += [
        {"instruction": "what is \ud83d this?"},
        {"instruction": CAPTION, "id": "\ud83d"},
        {"instruction": "..."},
        {"instruction": 'which region does the text "' + " " * 20_000},
        {"instruction": CAPTION, "imgae": "a.png", "image": None},
    ]
    summary = build(run_directory, folder, write(folder, *lines)).run()
    found = answers(folder)
    assert summary.lines == len(lines) and summary.errors == len(wrong) + 1
    for line, (name, problem) in zip(found, wrong.items(), strict=False):
        assert problem in line["error"], (name, line)
    replaced, escaped, empty, blanks, typo = found[len(wrong) :]
    assert replaced["instruction"] == "what is \ufffd this?" and "answer" in replaced
    assert "U+FFFD" in replaced["warnings"][0] and escaped["id"] == "\\ud83d"
    assert "empty once it is cleaned" in empty["error"] and "answer" in blanks
    assert "imgae" in typo["warnings"][0]
    assert summary.reasons["image outside the input's folder"] == 4
    names = [line["id"] for line in answers(folder_job(run_directory, folder), "names")]
    assert "caf\\xe9.png" in names


def folder_job(run_directory, folder):
    """Runs a job over the folder of images, whose names may be no text."""
    inputs = ImageFolder(str(folder), CAPTION, suffixes=["png"])
    summary = build(run_directory, folder, inputs, "names").run()
    assert summary.errors == 3  # the fifo, the link and the pointer
    return folder


def test_a_job_on_changed_inputs_is_refused_and_nothing_is_changed(run_directory, folder):
    path = write(folder, CAPTION, CAPTION)
    build(run_directory, folder, path).run()
    before = snapshot(folder / "out")
    os.utime(path)  # the content counts
    assert build(run_directory, folder, path).pipeline is None
    write(folder, CAPTION, "what is it?")
    with pytest.raises(ValueError, match=r"q.jsonl has changed since .* choose another OUTPUT_DIR"):
        build(run_directory, folder, path)
    images = folder / "images"
    images.mkdir()
    shutil.copyfile(folder / "a.png", images / "a.png")
    build(run_directory, folder, ImageFolder(str(images), CAPTION), "folder").run()
    shutil.copyfile(folder / "a.png", images / "b.png")
    with pytest.raises(ValueError, match=r"The input b.png is new since the job"):
        build(run_directory, folder, ImageFolder(str(images), CAPTION), "folder")
    (images / "b.png").unlink()
    (images / "a.png").rename(images / "c.png")
    with pytest.raises(ValueError, match=r"The input a.png is no longer there"):
        build(run_directory, folder, ImageFolder(str(images), CAPTION), "folder")
    assert snapshot(folder / "out") == before


def snapshot(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_job_of_the_earlier_version_goes_on_only_where_all_lines_are_alike(run_directory, folder):
    path = write(folder, *[GROUNDING] * 6)
    for task in (None, "visual_grounding"):
        build(run_directory, folder, path, str(task), task=task).run()
        out = folder / str(task)
        record = json.loads((out / "job.json").read_text())
        for name in ("version", "files", "model", "decode_options"):
            del record[name]
        (out / "job.json").write_text(json.dumps(record))
        shutil.rmtree(out / ".checks")
        assert build(run_directory, folder, path, str(task), task=task).pipeline is None
        (out / "answers-00001-of-00002.jsonl").unlink()
    with pytest.raises(ValueError, match="an earlier version, which decoded every line as the fir"):
        build(run_directory, folder, path, "None")
    job = build(run_directory, folder, path, "visual_grounding", task="visual_grounding")
    assert "cannot be checked" in job.message
    assert job.run().lines == 6


@pytest.mark.parametrize("damage", [b"", b'{"version"', b"\xff\xfe\x00", b"[1]", b"[" * 5000, None])
def test_a_damaged_job_file_is_written_again_if_the_answers_are_of_the_job(
    run_directory, folder, damage
):
    path = write(folder, *[CAPTION] * 5)
    build(run_directory, folder, path).run()
    out = folder / "out"
    expected, record = answers(folder), (out / "job.json").read_text()
    (out / "answers-00001-of-00002.jsonl").unlink()
    (out / "job.json").unlink()
    if damage is not None:
        (out / "job.json").write_bytes(damage)
    with pytest.raises(ValueError, match="not known to be of this job"):
        build(run_directory, folder, path, seed=1)
    job = build(run_directory, folder, path)
    assert ("is missing" if damage is None else "is damaged") in job.message
    job.run()
    assert answers(folder) == expected and (out / "job.json").read_text() == record


@settings(max_examples=15)
@given(st.data())
def test_a_damaged_output_file_is_found_and_written_again(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("shards")
    outputs = shards.Shards(folder, 8, 4, "job")
    lines = [{"id": str(number), "answer": "a"} for number in range(4)]
    for shard in range(2):
        outputs.write(shard, lines)
    assert outputs.damaged(range(2)) == {}
    content = bytearray(outputs.path(1).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[place:]
    outputs.path(1).write_bytes(bytes(content))
    assert list(outputs.damaged(range(2))) == [1]


def test_a_second_process_is_refused_and_hosts_of_one_job_are_not(run_directory, folder):
    path = write(folder, *[CAPTION] * 9)
    job = build(run_directory, folder, path)
    (folder / "out").mkdir()
    descriptor = os.open(folder / "out", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(LockedError, match="Another process is writing to"):
        job.run()
    assert not list((folder / "out").glob("*"))
    fcntl.flock(descriptor, fcntl.LOCK_SH)  # as another host of the job has it
    build(run_directory, folder, path, host=0, num_hosts=2).run()
    with pytest.raises(LockedError):
        build(run_directory, folder, path)
    os.close(descriptor)


def test_a_writer_leaves_the_unfinished_file_of_another_one_alone(tmp_path, monkeypatch):
    """Another writer of the same shard dies while this one flushes its file."""
    outputs = shards.Shards(tmp_path, 4, 4)
    lines = [{"id": str(number), "answer": "x" * 5000} for number in range(4)]
    fsync = os.fsync

    def die_in_between(descriptor):
        monkeypatch.setattr(os, "fsync", fsync)
        fsync(descriptor)
        monkeypatch.setattr(os, "fsync", lambda _: 1 / 0)
        with contextlib.suppress(ZeroDivisionError):
            outputs.write(0, [*lines[:3], {"id": "other"}])
        monkeypatch.setattr(os, "fsync", fsync)

    monkeypatch.setattr(os, "fsync", die_in_between)
    outputs.write(0, lines)
    assert [json.loads(line) for line in outputs.path(0).read_text().splitlines()] == lines
    (tmp_path / f".{outputs.path(0).name}.host-1-0.tmp").write_text("{")  # of a killed process
    outputs.delete_temporary(range(1))
    assert [path.name for path in tmp_path.glob("*")] == [outputs.path(0).name]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_header_without_a_needed_column_is_refused(tmp_path, mark):
    path = tmp_path / "q.tsv"
    path.write_bytes(mark + b"id\tphoto\tinstruction\r\n1\ta.png\twhat?\r\n")
    source = Tsv(str(path), header=True, index_dir=str(tmp_path / "index"))
    with pytest.raises(ValueError, match="no column image; its header has id, photo, instruction"):
        len(source)
    assert not (tmp_path / "index").exists()
    columns = {"image": "photo", "instruction": "instruction", "id": "id"}
    source = Tsv(str(path), header=True, columns=columns)
    assert (source[0].id, source[0].image) == ("1", "a.png")
    path.write_bytes(b"image\tinstruction\na.png\ta\tb\n")
    with pytest.raises(ValueError, match="it has 3 columns, but the header 2"):
        Tsv(str(path), header=True)[0]


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["id", "instruction", "image", "region", "task", "x"]), json_values
        )
        | json_values,
        min_size=1,
        max_size=4,
    )
)
def test_any_lines_become_rows_that_can_be_written(tmp_path_factory, processor, config, values):
    folder = tmp_path_factory.mktemp("lines")
    path = pathlib.Path(folder) / "q.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    kinds = Kinds(LoadedModel("", OFA(config), None, processor, None), KindOptions())
    batches = RequestBatches(JsonLines(str(path)), processor, kinds, 2, 32)
    assert batches.num_examples == len(values)
    for index in range(len(values)):
        example = batches.make_row(index).example
        json.dumps([example.id, example.instruction, example.error]).encode()
        assert example.id and "0x" not in (example.error or "")[:200]


def test_a_full_disk_is_one_sentence(run_directory, folder, monkeypatch):
    job = build(run_directory, folder, write(folder, CAPTION))

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        job.run()
    assert not list((folder / "out").glob("answers*"))
    assert not list((folder / "out").glob(".*.tmp"))
