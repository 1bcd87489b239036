"""`python -m tools.convert_tsv`: converted files have the same records."""

import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from official_files import write_faulty_files
from shown_progress import assert_shown, every_line

from ofa_jax.data.sources import array_record_writer, tsv_conversion
from ofa_jax.data.sources.array_records import OfaArrayRecords
from ofa_jax.data.sources.ofa_tsv import FILE_OF_KIND, OfaTsv
from ofa_jax.data.sources.tsv_file import InvalidLineError
from tools import convert_tsv

NAMES = {
    "vision_language": "vision_language",
    "text": "text",
    "images": "image",
    "detection": "detection",
}
FAULTY = {
    "vision_language": ["wrong number of columns", "unknown type", "image of another format"],
    "text": ["empty text"],
}


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    """Returns official files with some invalid lines."""
    folder = write_faulty_files(golden, tmp_path_factory.mktemp("original"))
    with open(folder / "text_examples.tsv", "a") as texts:
        texts.write("t9\t \n")
    return folder


def arguments(folder, output_dir, *others, kinds=NAMES):
    files = [f"--{kind}={folder / NAMES[kind]}_examples.tsv" for kind in kinds]
    return [f"--output_dir={output_dir}", *files, "--num_workers=0", *others]


@pytest.fixture(scope="module")
def converted(folder, tmp_path_factory):
    """Returns the folder after conversion by two processes into several shards."""
    output = tmp_path_factory.mktemp("data") / "ofa"
    negatives = f"--negative_samples={folder / 'negative_sample'}"
    # A megabyte is more than the files have: the tests make smaller shards.
    patched = pytest.MonkeyPatch()
    patched.setattr(convert_tsv, "_MEGABYTE", 40_000)
    code = convert_tsv.main(
        [*arguments(folder, output, negatives, "--shard_megabytes=1"), "--num_workers=2"]
    )
    patched.undo()
    assert code == 0
    return output


@pytest.fixture(scope="module")
def tsv(folder):
    return OfaTsv(
        **{kind: f"{name}_examples.tsv" for kind, name in NAMES.items()},
        negative_samples="negative_sample",
        data_dir=str(folder),
    )


def good(source):
    """Returns the records that can be read."""
    found = []
    for index in range(len(source)):
        try:
            found.append(source[index])
        except InvalidLineError:
            pass
    return found


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert type(a[name]) is type(b[name]), name


@pytest.mark.parametrize("kind", FILE_OF_KIND)
def test_both_forms_have_the_same_records_in_the_same_order(tsv, converted, kind):
    expected = good(tsv.records(kind, "train"))
    if FILE_OF_KIND[kind] == "vision_language":
        # The image that cannot be opened, which only conversion looks at.
        expected = [record for record in expected if record["image"] != b"hello"]
    found = good(OfaArrayRecords(str(converted)).records(kind, "train"))
    assert len(found) == len(expected) > 0
    for record, other in zip(found, expected, strict=True):
        same(record, other)


def test_both_forms_have_the_same_negatives(tsv, converted):
    pool, other = OfaArrayRecords(str(converted)).negatives(), tsv.negatives()
    assert list(pool.captions) == list(other.captions)
    assert pool.object_names == other.object_names
    assert pool.answers_by_type == other.answers_by_type


def test_skipped_lines_are_counted_by_reason_and_listed(folder, converted):
    data = OfaArrayRecords(str(converted))
    assert data.splits == ("train",)
    for kind in NAMES:
        description = data.description(kind, "train")
        assert description["skipped"] == {reason: 1 for reason in sorted(FAULTY.get(kind, ()))}
        assert len(description["skipped_lines"]) == len(FAULTY.get(kind, ()))
    description = data.description("vision_language", "train")
    assert description["records"] == 25
    assert description["types"] == {"caption": 9, "qa": 12, "visual_grounding": 4}
    place = folder / "vision_language_examples.tsv"
    assert description["skipped_lines"][0].startswith(f"{place}, line 5: it has 6 columns")


def test_workers_and_shards_change_nothing_but_the_names_of_files(folder, converted, tmp_path):
    assert len(list((converted / "vision_language" / "train").glob("*.array_record-*"))) > 3
    with every_line() as shown:
        assert convert_tsv.main(arguments(folder, tmp_path, kinds=["vision_language"])) == 0
    one, several = (
        OfaArrayRecords(str(place)).records("pairs", "train") for place in (tmp_path, converted)
    )
    assert len(list((tmp_path / "vision_language" / "train").glob("*.array_record-*"))) == 1
    for record, other in zip(good(one), good(several), strict=True):
        same(record, other)
    num_lines = len((folder / "vision_language_examples.tsv").read_text().splitlines())
    assert_shown(shown, "converting vision_language train", f"{num_lines} lines")


def test_sources_pickle_and_threads_share_them(converted):
    source = OfaArrayRecords(str(converted)).records("pairs", "train")
    assert len(source) == 21
    again = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(again.__getitem__, list(range(21)) * 10))
    for number, record in enumerate(read):
        same(record, source[number % 21])
    with pytest.raises(IndexError, match="There is no record 21"):
        source[21]
    assert source.location(20) == f"{converted / 'vision_language' / 'train'}, record 20"


def test_tfds_reads_the_same(converted):
    import tensorflow_datasets as tfds

    ours = OfaArrayRecords(str(converted)).records("objects", "train")
    builder = tfds.builder_from_directory(str(converted / "detection" / "train"))
    theirs = builder.as_data_source("train")
    assert len(theirs) == len(ours) == 3
    for index in range(3):
        record, other = ours[index], theirs[index]
        assert other["id"].decode() == record["id"]
        assert [name.decode() for name in other["object_labels"]] == record["object_labels"]
        np.testing.assert_array_equal(other["object_boxes"], record["object_boxes"])
        assert other["image"].ndim == 3
    pairs = tfds.builder_from_directory(str(converted / "vision_language" / "train"))
    assert pairs.info.splits["train"].num_examples == 25
    assert pairs.as_data_source("train")[9]["answers"][0].decode() == "2"


def test_a_second_call_does_nothing_and_other_files_are_refused(
    folder, converted, tmp_path, capsys
):
    small = arguments(folder, tmp_path / "out", kinds=["text"])
    assert convert_tsv.main(small) == 0
    capsys.readouterr()
    assert convert_tsv.main(small) == 0
    assert "is complete: nothing to do." in capsys.readouterr().out
    assert convert_tsv.main([*small, "--no_image_check"]) == 2
    assert "was converted with other check_images: add --overwrite" in capsys.readouterr().err
    assert convert_tsv.main([*small, "--no_image_check", "--overwrite"]) == 0
    validation = [*small, "--split=validation"]
    assert convert_tsv.main(validation) == 0
    assert OfaArrayRecords(str(tmp_path / "out")).splits == ("train", "validation")


def test_a_failed_conversion_leaves_no_folder_that_looks_complete(
    folder, tmp_path, monkeypatch, capsys
):
    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(array_record_writer, "write_tfds_metadata", full_disk)
    assert convert_tsv.main(arguments(folder, tmp_path, kinds=["text"])) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(FileNotFoundError, match="convert them with `python -m tools.convert_tsv"):
        OfaArrayRecords(str(tmp_path)).records("text", "train")


def test_unusable_arguments_are_reported_in_one_sentence(folder, tmp_path, capsys):
    (tmp_path / "bad.tsv").write_text("t0\t \n" * 9)
    (tmp_path / "theirs" / "text" / "train").mkdir(parents=True)
    for given, sentence in (
        (["--text", str(tmp_path / "gone.tsv")], "There is no file"),
        (["--text", str(tmp_path / "bad.tsv")], "None of the first 8 lines can be used as text"),
        (
            ["--text", str(folder / "text_examples.tsv"), "--text_cols=0,5"],
            "have 2 columns, but column 5 is selected",
        ),
        ([f"--negative_samples={tmp_path}"], "There is no all_captions.txt"),
        (
            ["--text", str(folder / "text_examples.tsv"), f"--output_dir={tmp_path / 'theirs'}"],
            "exists but was not written by this command",
        ),
        (
            [
                *("--text", str(folder / "text_examples.tsv"), "--overwrite"),
                f"--output_dir={tmp_path / 'theirs'}",
            ],
            "exists but was not written by this command",
        ),
        (
            ["--text", str(folder / "text_examples.tsv"), "--split=../../elsewhere"],
            "the name of a split has letters, digits and underscores",
        ),
        (
            ["--text", str(folder / "text_examples.tsv"), f"--output_dir={tmp_path / 'bad.tsv'}"],
            "bad.tsv/text cannot be created (Not a directory): choose another --output_dir",
        ),
    ):
        options = [f"--output_dir={tmp_path / 'out'}", "--num_workers=0", *given]
        assert convert_tsv.main(options) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and sentence in error and "\n" not in error
    with pytest.raises(SystemExit):
        convert_tsv.main([f"--output_dir={tmp_path}"])
    assert "nothing to convert" in capsys.readouterr().err


def test_nothing_is_written_unless_everything_is_accepted(folder, tmp_path, capsys):
    """One of several kinds is refused: the others are not converted either."""
    output = tmp_path / "out"
    (tmp_path / "bad.tsv").write_text("t0\t \n" * 9)
    negatives = f"--negative_samples={folder / 'negative_sample'}"
    options = arguments(folder, output, negatives, kinds=["vision_language", "detection"])
    assert convert_tsv.main([*options, "--text", str(tmp_path / "bad.tsv")]) == 2
    assert not output.exists()
    broken = tmp_path / "negatives"
    broken.mkdir()
    for name in ("all_captions.txt", "object.txt"):
        (broken / name).write_text("a\n")
    (broken / "type2ans.json").write_text('{"other": "yes"}')
    options = arguments(folder, output, f"--negative_samples={broken}", kinds=["text"])
    assert convert_tsv.main(options) == 2
    assert not output.exists()
    assert 'but "other" has the text "yes"' in capsys.readouterr().err


def test_other_negative_samples_are_not_replaced(folder, tmp_path, capsys):
    output = tmp_path / "out"
    options = [f"--output_dir={output}", f"--negative_samples={folder / 'negative_sample'}"]
    assert convert_tsv.main(options) == 0
    assert convert_tsv.main(options) == 0
    assert "negative_samples is complete: nothing to do." in capsys.readouterr().out
    written = output / "negative_samples" / "object.txt"
    written.write_text("mine\n")
    assert convert_tsv.main(options) == 2
    assert "has another object.txt: add --overwrite" in capsys.readouterr().err
    assert written.read_text() == "mine\n"
    assert convert_tsv.main([*options, "--overwrite"]) == 0
    assert written.read_text() == (folder / "negative_sample" / "object.txt").read_text()


def test_a_complete_folder_that_has_lost_a_shard_is_not_called_complete(folder, tmp_path, capsys):
    options = arguments(folder, tmp_path, kinds=["text"])
    assert convert_tsv.main(options) == 0
    (shard,) = (tmp_path / "text" / "train").glob("*.array_record-*")
    shard.write_bytes(b"")
    assert convert_tsv.main(options) == 2
    assert f"error: {shard} is " in capsys.readouterr().err
    assert convert_tsv.main([*options, "--overwrite"]) == 0
    description = tmp_path / "text" / "train" / "conversion.json"
    description.write_text("{")
    assert convert_tsv.main(options) == 2
    assert "conversion.json is not valid JSON" in capsys.readouterr().err


def test_one_unexpected_error_skips_its_line(folder, tmp_path, monkeypatch):
    decode = tsv_conversion.images.decode

    def fail(encoded, options):
        image = decode(encoded, options)
        if image.size == (300, 300):
            raise KeyError(f"{object()}")
        return image

    monkeypatch.setattr(tsv_conversion.images, "decode", fail)
    assert convert_tsv.main(arguments(folder, tmp_path, kinds=["vision_language"])) == 0
    description = OfaArrayRecords(str(tmp_path)).description("vision_language", "train")
    assert description["skipped"]["unexpected error"] > 0
    named = [line for line in description["skipped_lines"] if "KeyError" in line]
    assert named and all("line " in line and "0x" not in line for line in named)


def test_mistakes_and_interrupts_have_no_traceback(folder, tmp_path):
    """In new processes: no test has imported anything there."""
    root = pathlib.Path(__file__).resolve().parents[2]
    call = [sys.executable, "-m", "tools.convert_tsv", f"--output_dir={tmp_path / 'out'}"]
    done = subprocess.run(
        [*call, "--num_workers=0", f"--text={tmp_path / 'gone.tsv'}"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: There is no file {tmp_path / 'gone.tsv'}: check the path.\n"
    line = (folder / "vision_language_examples.tsv").read_text().split("\n")[0]
    (tmp_path / "many.tsv").write_text(f"{line}\n" * 40_000)
    started = subprocess.Popen(
        [*call, "--num_workers=2", "--vision_language", str(tmp_path / "many.tsv")],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    written = tmp_path / "out" / "vision_language"
    while started.poll() is None and not list(written.glob(".train*/new/shard-*")):
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does
    _, errors = started.communicate(timeout=60)
    assert (started.returncode, errors) == (130, "Stopped (Ctrl-C).\n")
    assert not list(written.iterdir())


def test_help_explains_itself(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        convert_tsv.main(["--help"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    for part in (
        "python -m tools.convert_tsv --output_dir=data/ofa",
        "pretrain_ofa_records.gin",
        "8 columns: id, image, caption",
        "--no_image_check",
    ):
        assert part in shown


def test_reading_needs_no_tensorflow(converted):
    program = (
        "import sys; from ofa_jax.data.sources.array_records import OfaArrayRecords; "
        f"records = OfaArrayRecords({str(converted)!r}).records('regions', 'train'); "
        "import json; print(json.dumps(records[0]['phrases'])); "
        "assert not {'tensorflow', 'seqio', 'jax'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout) == ["The left-most circle"]
