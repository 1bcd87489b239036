"""Tests Scenes end to end: a small build, read with and without TFDS."""

import dataclasses
import json
import os
import pathlib
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from shown_progress import assert_shown, every_line

from ofa_jax.data.sources.scenes import SPLITS, VERSION, Scenes
from ofa_jax.preprocessing import prompts
from tools import build_scenes, output_folders
from tools.build_scenes import BuildOptions

# More than 100 training scenes: the parquet writer of TFDS loses rows from there on.
OPTIONS = BuildOptions(
    num_train=150, num_validation=6, num_test=6, vocab_size=800, num_codes=32, seed=1
)
KINDS = {
    "captions": {"captions", "object_labels"},
    "pairs": {
        "captions",
        "negative_captions",
        "questions",
        "answers",
        "answer_types",
        "answer_confidences",
        "object_labels",
    },
    "questions": {"questions", "answers", "answer_types", "answer_confidences"},
    "regions": {"phrases", "phrase_boxes", "true_phrases", "true_phrase_boxes"},
    "objects": {"object_labels", "object_boxes"},
    "images": set(),
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with every_line() as shown:
        build_scenes.build(folder, OPTIONS, num_workers=2)
    assert_shown(shown, "composing scenes", "168 images")
    assert re.search(r"learning the vocabulary: [\d,]+ texts, [\d,]+ texts/s\n", shown.getvalue())
    assert re.search(r"learning the patch codebook: 150 images, ", shown.getvalue())
    assert re.search(r"writing texts: ([\d,]+)/\1 texts, ", shown.getvalue())
    assert re.search(r"computing checksums: (\d+)/\1 files, ", shown.getvalue())
    return folder


@pytest.fixture(scope="module")
def scenes(data_dir):
    return Scenes(str(data_dir))


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_records_do_not_depend_on_the_process_that_composes_them(scenes):
    """Compares a build by two processes with scenes composed one by one in this process."""
    from ofa_jax.scenes.records import make_record

    for split, count in OPTIONS.counts.items():
        sources = {kind: scenes.records(kind, split) for kind in KINDS}
        assert {len(source) for source in sources.values()} == {count}
        for index in {0, count // 2, count - 1}:
            expected = make_record(OPTIONS.scenes, split, index)
            for kind, fields in KINDS.items():
                record = sources[kind][index]
                assert record.keys() == fields | {"id", "image"}
                assert equal(record, {name: expected[name] for name in record})


def test_field_types(scenes):
    record = scenes.records("pairs", "train")[0]
    assert isinstance(record["image"], bytes) and isinstance(record["id"], str)
    assert all(isinstance(text, str) for text in record["captions"])
    assert record["answer_confidences"] == [1.0] * len(record["questions"])
    boxes = scenes.records("regions", "train")[0]["phrase_boxes"]
    assert boxes.dtype == np.float32 and boxes.ndim == 2 and boxes.shape[1] == 4


def test_tfds_reads_the_same_records(scenes):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(scenes.directory / "images" / VERSION))
    for split in SPLITS:
        source = builder.as_data_source(split)
        ours = scenes.records("regions", split)
        assert len(source) == len(ours) == OPTIONS.counts[split]
        for index in (0, len(ours) - 1):
            theirs, record = source[index], ours[index]
            assert theirs["id"].decode() == record["id"]
            assert [text.decode() for text in theirs["phrases"]] == record["phrases"]
            np.testing.assert_array_equal(theirs["phrase_boxes"], record["phrase_boxes"])
            assert theirs["image"].shape == (128, 128, 3)
    text = tfds.builder_from_directory(str(scenes.directory / "text" / VERSION))
    ours = scenes.records("text", "train")
    source = text.as_data_source("train")
    assert len(source) == len(ours) > 10_000
    assert source[len(ours) - 1]["text"].decode() == ours[len(ours) - 1]["text"]


def test_text_records_are_the_corpus(scenes):
    from ofa_jax.scenes import corpus

    for split in SPLITS:
        source = scenes.records("text", split)
        assert tuple(source[i]["text"] for i in range(len(source))) == corpus.load_sentences(split)


def test_sources_pickle_and_reject_unknown_names(scenes):
    source = pickle.loads(pickle.dumps(scenes.records("regions", "test")))
    assert equal(source[5], scenes.records("regions", "test")[5])
    with pytest.raises(IndexError, match="6 records"):
        source[6]
    with pytest.raises(ValueError, match="choose one of captions"):
        scenes.records("caption", "test")
    with pytest.raises(ValueError, match="test_shifted"):
        scenes.records("captions", "tset")


def test_vocabulary_and_codebook_are_learned_from_training_data(scenes):
    tokenizer = scenes.image_tokenizer()
    assert tokenizer.num_codes == OPTIONS.num_codes
    vocabulary = scenes.vocabulary(num_bins=100)
    assert vocabulary.num_codes == OPTIONS.num_codes
    text = " a picture of two butterflies on grass"
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    # Nearly all words of captions and instructions are single tokens; yes and no are.
    assert len(ids) <= 2 * len(text.split())
    assert len(vocabulary.encode(prompts.IMAGE_CAPTIONING)) <= 7
    assert len(vocabulary.encode(prompts.YES)) == len(vocabulary.encode(prompts.NO)) == 1


def test_negatives_are_the_training_captions_names_and_answers(scenes):
    pool = scenes.negatives()
    record = scenes.records("pairs", "train")[3]
    assert set(record["captions"]) <= set(pool.captions)
    assert set(record["object_labels"]) <= set(pool.object_names)
    assert set(pool.answers_by_type["existence"]) == {"yes", "no"}
    assert set(pool.answers_by_type["corner"]) <= {
        "top left",
        "top right",
        "bottom left",
        "bottom right",
    }


def test_reading_scenes_imports_no_tensorflow(data_dir):
    code = (
        "import sys; from ofa_jax.data.sources.scenes import Scenes; "
        f"Scenes({str(data_dir)!r}).records('captions', 'train')[0]; "
        "assert 'tensorflow' not in sys.modules and 'seqio' not in sys.modules"
    )
    root = pathlib.Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_a_second_build_does_nothing(data_dir, capsys):
    marker = data_dir / "scenes" / "scenes.json"
    before = marker.stat().st_mtime_ns
    build_scenes.build(data_dir, OPTIONS)
    assert "nothing to do" in capsys.readouterr().out
    assert marker.stat().st_mtime_ns == before
    assert json.loads(marker.read_text())["counts"]["images"]["train"] == 150


def test_other_options_raise_an_error_that_names_them(data_dir, capsys):
    code = build_scenes.main(
        [
            "--data_dir",
            str(data_dir),
            "--num_train=150",
            "--num_test=6",
            "--num_validation=6",
            "--vocab_size=800",
            "--num_codes=32",
            "--seed=2",
        ]
    )
    message = capsys.readouterr().err
    assert code == 2
    assert "seed 1 instead of 2" in message and "--overwrite" in message
    assert "nouns" not in message


def test_a_folder_built_under_the_former_names_is_read_and_complete(scenes, tmp_path, capsys):
    """Tests a folder with the images in `pictures/` and the option `picture_size`."""
    shutil.copytree(scenes.directory, tmp_path / "scenes")
    (tmp_path / "scenes" / "images").rename(tmp_path / "scenes" / "pictures")
    marker = tmp_path / "scenes" / "scenes.json"
    description = json.loads(marker.read_text())
    description["options"]["picture_size"] = description["options"].pop("image_size")
    description["counts"]["pictures"] = description["counts"].pop("images")
    marker.write_text(json.dumps(description))
    written = marker.read_bytes()
    former = Scenes(str(tmp_path))
    assert former.description == scenes.description
    assert equal(former.records("pairs", "train")[7], scenes.records("pairs", "train")[7])
    assert former.negatives() == scenes.negatives()
    build_scenes.build(tmp_path, OPTIONS)
    assert "nothing to do" in capsys.readouterr().out
    assert marker.read_bytes() == written
    with pytest.raises(ValueError, match="image_size 128 instead of 64"):
        build_scenes.build(tmp_path, dataclasses.replace(OPTIONS, image_size=64))


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    options = BuildOptions(num_train=4, num_validation=1, num_test=1, num_codes=8, vocab_size=400)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(build_scenes, "_learn_codebook", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_scenes.build(tmp_path, options)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="python -m tools.build_scenes --data_dir="):
        Scenes(str(tmp_path)).records("images", "train")


def test_the_remains_of_a_killed_build_are_removed(tmp_path):
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    dead = tmp_path / f".scenes-unfinished-{finished.pid}"
    alive = tmp_path / f".scenes-unfinished-{os.getpid()}"
    dead.mkdir()
    alive.mkdir()
    output_folders.remove_stale(tmp_path, ".scenes-unfinished-")
    assert alive.exists() and not dead.exists()


def test_a_foreign_folder_is_not_overwritten(tmp_path):
    (tmp_path / "scenes").mkdir()
    with pytest.raises(ValueError, match="not written by this command"):
        build_scenes.build(tmp_path, OPTIONS)
