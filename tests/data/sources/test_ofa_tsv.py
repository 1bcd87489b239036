"""Tests the official files as a DataSet: TSV -> record -> example gives the golden numbers."""

import itertools
import json
import logging
import pickle
import subprocess
import sys

import numpy as np
import pytest
from golden_examples import MAIN, assert_matches_golden
from official_files import encoded, write_official_files

from ofa_jax.data.features import Stream
from ofa_jax.data.loader import Loader
from ofa_jax.data.sampling import WeightedTask
from ofa_jax.data.sources.ofa_tsv import FILE_OF_KIND, OfaTsv, read_negatives
from ofa_jax.data.sources.tsv_file import InvalidLineError
from ofa_jax.data.sources.tsv_records import TsvRecords
from ofa_jax.preprocessing import images, objectives
from ofa_jax.preprocessing.records import RECORD_FIELDS, InvalidRecordError
from ofa_jax.utils import bad_input

KIND = {"caption": "captions", "qa": "questions", "visual_grounding": "regions"}
# The first draw of matching determines whether the target is yes.
POSITIVE_SEED = next(
    seed for seed in itertools.count() if np.random.default_rng(seed).random() >= 0.5
)


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    return write_official_files(golden, tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="module")
def data_set(folder):
    return OfaTsv(
        vision_language="vision_language_examples.tsv",
        text="text_examples.tsv",
        images="image_examples.tsv",
        detection="detection_examples.tsv",
        negative_samples="negative_sample",
        data_dir=str(folder),
    )


def all_records(source):
    return [source[index] for index in range(len(source))]


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert type(a[name]) is type(b[name]), name


def rng():
    return np.random.default_rng(0)


# --------------------------------------------------------------------- golden records and examples


def test_each_kind_of_record_has_exactly_the_rows_of_its_type(data_set, fixed, to_record):
    rows = [item["row"] for item in fixed["image_text"]]
    for row_type, kind in KIND.items():
        found = all_records(data_set.records(kind, "train"))
        expected = [to_record(row) for row in rows if row["type"] == row_type]
        assert len(found) == len(expected) > 3
        for record, other in zip(found, expected, strict=True):
            if "answer_confidences" in other:
                # Rounded to float32, as in the loss and in converted records.
                other["answer_confidences"] = np.float32(other["answer_confidences"]).tolist()
            assert_equal(record, other)
    pairs = all_records(data_set.records("pairs", "train"))
    assert [record["id"] for record in pairs] == [
        row["uniq_id"] for row in rows if row["type"] != "visual_grounding"
    ]


def test_every_kind_of_record_has_its_fields(data_set):
    assert set(FILE_OF_KIND) == set(RECORD_FIELDS)
    for kind, fields in RECORD_FIELDS.items():
        for record in all_records(data_set.records(kind, "train")):
            # The objectives ignore fields that are not listed for the kind.
            assert {"id"} <= set(record)
            assert set(fields) - set(record) <= {
                "negative_captions",
                "answer_types",
                "captions",
                "questions",
                "answers",
                "answer_confidences",
                "label",
                "true_phrases",
                "true_phrase_boxes",
            }


def test_pairs_give_the_golden_examples(data_set, fixed, pixels, config):
    for row_type, kind in KIND.items():
        items = [item for item in fixed["image_text"] if item["row"]["type"] == row_type]
        records = data_set.records(kind, "train")
        for record, item in zip(all_records(records), items, strict=True):
            main, second = item["examples"]
            example = objectives.OBJECTIVES[MAIN[row_type]](record, rng(), config)
            assert_matches_golden(example, main, config.vocabulary)
            if "patch_image_array" in main:
                np.testing.assert_array_equal(example["image"], pixels[main["patch_image_array"]])
            if row_type == "visual_grounding":
                captioning = objectives.grounded_captioning(record, rng(), config)
                assert_matches_golden(captioning, second, config.vocabulary)


def test_matching_gives_the_golden_positives(data_set, fixed, config):
    """Compares positives only: negatives are random (see test_objectives)."""
    items = [item for item in fixed["image_text"] if item["row"]["type"] != "visual_grounding"]
    records = all_records(data_set.records("pairs", "train"))
    compared = 0
    for record, item in zip(records, items, strict=True):
        expected = item["examples"][1]
        if expected["target_text"] != " yes":
            continue
        example = objectives.image_text_matching(
            record, np.random.default_rng(POSITIVE_SEED), config
        )
        assert_matches_golden(example, expected, config.vocabulary)
        compared += 1
    assert compared > 5


def test_detection_gives_the_golden_examples(data_set, fixed, pixels, config):
    records = all_records(data_set.records("objects", "train"))
    for record, item in zip(records, fixed["detection"], strict=True):
        image, boxes = images.decode(record["image"]), record["object_boxes"]
        if item["hflip"]:
            image, boxes = images.horizontal_flip(image, boxes)
        draw = item["all_torch_rand"]
        image, boxes = images.large_scale_jitter(image, boxes, 256, draw, (draw, draw))
        example = objectives.detection_example(
            images.to_array(image), boxes, record["object_labels"], config
        )
        (expected,) = item["examples"]
        assert_matches_golden(example, expected, config.vocabulary)
        np.testing.assert_array_equal(example["image"], pixels[expected["patch_image_array"]])


def test_infilling_gives_the_golden_examples(data_set, fixed, config):
    (record,) = all_records(data_set.records("images", "train"))
    (item,) = fixed["image_infilling"]
    example = objectives.image_infilling(record, rng(), config)
    assert_matches_golden(example, item["examples"][0], config.vocabulary)
    texts = all_records(data_set.records("text", "train"))
    expected = [target for item in fixed["text_infilling"] for target in item["examples"]]
    for record, target in zip(texts, expected, strict=True):
        example = objectives.text_infilling(record, rng(), config)
        assert example["targets"].tolist() == target["target"]
        assert example["loss_weight"] == target["conf"][0]


def test_negative_samples_are_read_unchanged(data_set):
    pool = data_set.negatives()
    assert list(pool.captions) == ["a cat on a mat", "a red bus", "two birds"]
    assert pool.object_names == ("cat", "dog", "bus")
    assert pool.answers_by_type["how many"] == ("1", "2")
    assert pool.type_by_answer["no"] == "yes/no"
    again = pickle.loads(pickle.dumps(pool))
    assert again.captions[2] == "two birds"


def test_negative_samples_may_have_a_byte_order_mark_and_other_separators(golden, tmp_path):
    folder = write_official_files(golden, tmp_path) / "negative_sample"
    (folder / "all_captions.txt").write_bytes("\ufeffa cat\r\nrock\u2028roll\r\n".encode())
    (folder / "object.txt").write_bytes("\ufeffcat\r\ntraffic\u0085light\r\n".encode())
    (folder / "type2ans.json").write_bytes(b"\xef\xbb\xbf" + b'{"other": ["a \\ud83d"]}')
    pool = read_negatives(folder)
    assert list(pool.captions) == ["a cat", "rock\u2028roll"]
    assert pool.object_names == ("cat", "traffic\u0085light")
    assert pool.answers_by_type == {"other": ("a \ufffd",)}
    (folder / "all_captions.txt").write_bytes(b"a caf\xe9\n")
    with bad_input.collect() as notes:
        assert list(read_negatives(folder).captions) == ["a caf\ufffd"]
    assert [note.reason.name for note in notes] == ["line is not UTF-8"]
    assert notes[0].detail.startswith(f"{folder / 'all_captions.txt'}, line 1: ")


# -------------------------------------------------------------------------------- invalid lines


def line(golden, **changes):
    columns = {
        "id": "x",
        "image": encoded(golden, "images/im2_300x300.png"),
        "caption": "a thing",
        "question": "what?",
        "refs": "1|!+a thing",
        "objects": "",
        "data_set": "coco",
        "type": "caption",
    } | changes
    return "\t".join(columns.values())


FAULTS = {
    "wrong number of columns": (lambda g: line(g).rpartition("\t")[0], "7 columns instead of 8"),
    "bad base64": (lambda g: line(g, image="/9j/4AA*"), "its image is not base64"),
    "unknown type": (lambda g: line(g, type="video"), "its type is 'video' instead of caption, qa"),
    "bad answers": (lambda g: line(g, type="qa", refs="blue"), "'blue' is not confidence|!+answer"),
    "bad answers ": (lambda g: line(g, type="qa", refs=""), "its refs have no answer"),
    "bad answers  ": (lambda g: line(g, type="qa", refs="nan|!+b"), "'nan|!+b' is not confidence"),
    "empty text": (lambda g: line(g, caption=" "), "its caption is empty"),
    "bad box": (
        lambda g: line(g, type="visual_grounding", refs="1,2,3"),
        "1,2,3 are not four numbers",
    ),
    "bad box ": (
        lambda g: line(g, type="visual_grounding", refs="1,2,x,4"),
        "1,2,x,4 are not four numbers",
    ),
    "bad box  ": (
        lambda g: line(g, type="visual_grounding", refs="1,2,inf,4"),
        "are not four numbers",
    ),
    "bad text": (lambda g: line(g, caption="\udcff"), "its caption is not UTF-8"),
}


@pytest.fixture(scope="module")
def faulty_file(golden, tmp_path_factory):
    """Writes a file in which every second line has one of the faults."""
    path = tmp_path_factory.mktemp("faulty") / "pairs.tsv"
    good = itertools.cycle(["caption", "qa", "visual_grounding"])
    lines = []
    for make, _ in FAULTS.values():
        kind = next(good)
        refs = "10,20,200,250" if kind == "visual_grounding" else "0.5|!+yes"
        lines += [line(golden, type=kind, refs=refs), make(golden)]
    path.write_text("\n".join(lines) + "\n", errors="surrogateescape")
    return path


@pytest.mark.parametrize("fault", FAULTS)
def test_an_invalid_line_error_has_file_line_and_reason(faulty_file, fault):
    number = 2 * list(FAULTS).index(fault) + 1
    whole = TsvRecords.open(str(faulty_file), "vision_language")
    assert len(whole) == 2 * len(FAULTS)
    with pytest.raises(InvalidLineError) as raised:
        whole[number]
    assert raised.value.reason.name == fault.strip()
    assert str(raised.value).startswith(f"{faulty_file}, line {number + 1}: ")
    assert FAULTS[fault][1] in str(raised.value)


def test_lines_without_a_type_are_among_the_pairs_only(faulty_file, folder):
    data = OfaTsv(
        vision_language=str(faulty_file), negative_samples=str(folder / "negative_sample")
    )
    reasons = {}
    for kind in ("captions", "questions", "regions", "pairs"):
        source = data.records(kind, "train")
        reasons[kind] = set()
        for index in range(len(source)):
            try:
                record = source[index]
            except InvalidLineError as error:
                reasons[kind].add(error.reason.name)
            else:
                names = {"captions": "captions", "questions": "questions", "regions": "phrases"}
                assert kind == "pairs" or names[kind] in record
    assert reasons["regions"] == {"bad box"}
    assert reasons["questions"] == {"bad answers"}
    assert reasons["captions"] == {"bad base64", "empty text", "bad text"}
    assert reasons["pairs"] == reasons["captions"] | reasons["questions"] | {
        "wrong number of columns",
        "unknown type",
    }


def test_opening_a_file_logs_its_types_once(golden, tmp_path, caplog):
    path = tmp_path / "pairs.tsv"
    path.write_text("\n".join([line(golden)] * 3 + [line(golden, type="video"), "malformed"]))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            OfaTsv(vision_language=str(path)).records("captions", "train")
    assert caplog.messages == [
        f"{path} has 3 'caption', 1 'video', 1 'malformed' of 5 lines; malformed lines and "
        "unknown types will be skipped."
    ]


TEXT_LENGTHS = {"inputs": 32, "targets": 8}


class EncodeId:
    """Returns an example that identifies its record; decodes the image as every objective does."""

    def __call__(self, record, rng):
        try:
            images.decode(record["image"])
        except InvalidRecordError as error:
            raise InvalidRecordError(f"record {record['id']}: {error}") from error
        number = sum(record["id"].encode())
        return {
            "inputs": np.array([0, number, 2], np.int32),
            "targets": np.array([number, 2], np.int32),
        }


def test_the_loader_skips_counts_and_logs_invalid_lines(golden, tmp_path, caplog):
    """Tests a malformed line and an image that cannot be decoded."""
    path = tmp_path / "pairs.tsv"
    lines = [line(golden) for _ in range(8)]
    lines[2] = line(golden, image="aGVsbG8=")
    lines[5] = lines[5].rpartition("\t")[0]
    path.write_text("\n".join(lines))
    records = TsvRecords.open(str(path), "vision_language", types=("caption",), with_malformed=True)
    stream = Stream("s", "m", 8, TEXT_LENGTHS)
    loader = Loader([stream], {"s": [WeightedTask("matching", 1.0, records, EncodeId())]}, 0)
    with caplog.at_level(logging.WARNING):
        batch = next(loader.batches())["s"]
    assert (batch["decoder_loss_weights"].sum(1) > 0).sum() == 6
    assert loader.skipped_records == {"matching": 2}
    assert (
        f"Skipped matching, record 5: {path}, line 6: it has 7 columns instead of 8" in caplog.text
    )
    assert (
        f"Skipped matching, record 2: {path}, line 3: record x: its image cannot be decoded"
        in caplog.text
    )


@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_the_shares_of_the_hosts_together_are_the_same_batches(data_set, num_hosts):
    stream = Stream("s", "m", 8, TEXT_LENGTHS)
    weighted = [
        WeightedTask("matching", 2.0, data_set.records("pairs", "train"), EncodeId()),
        WeightedTask("grounding", 1.0, data_set.records("regions", "train"), EncodeId()),
    ]

    def steps(num_shards, shards):
        # Pickled as for data workers, which open the files themselves.
        tasks = pickle.loads(pickle.dumps({"s": weighted}))
        loader = Loader([stream], tasks, 3, num_shards, shards)
        return [batch["s"] for batch in itertools.islice(loader.batches(), 6)]

    whole = steps(1, (0,))
    parts = [steps(num_hosts, (host,)) for host in range(num_hosts)]
    for number, step in enumerate(whole):
        for name, array in step.items():
            joined = np.concatenate([part[number][name] for part in parts])
            np.testing.assert_array_equal(joined, array)
    seen = {int(n) for step in whole for n in step["decoder_target_tokens"][:, 0]}
    records = [record for task in weighted for record in all_records(task.records)]
    assert seen == {sum(record["id"].encode()) for record in records}, "more than an epoch"


# ------------------------------------------------------------------- options and their errors


def test_files_may_be_lists_patterns_and_splits(golden, tmp_path):
    for name in ("b-2", "b-1", "a", "v"):
        (tmp_path / f"{name}.tsv").write_text(f"{name}\tthe text of {name}\n{name}x\tmore\n")
    data = OfaTsv(
        text={"train": ["a.tsv", "b-*.tsv"], "validation": "v.tsv"}, data_dir=str(tmp_path)
    )
    assert data.splits == ("train", "validation")
    source = data.records("text", "train")
    ids = [record["id"] for record in all_records(source)]
    assert ids == ["a", "ax", "b-1", "b-1x", "b-2", "b-2x"]
    assert source.location(3) == f"{tmp_path / 'b-1.tsv'}, line 2"
    assert [r["id"] for r in all_records(data.records("text", "validation"))] == ["v", "vx"]
    with pytest.raises(IndexError, match="There is no record 6"):
        source[6]


def test_columns_are_selected_by_index(tmp_path):
    (tmp_path / "text.tsv").write_text("what it says\tnote\tt0\n")
    data = OfaTsv(text=str(tmp_path / "text.tsv"), selected_cols={"text": "2,0"})
    assert data.records("text", "train")[0] == {"id": "t0", "text": "what it says"}


def data_set_in(folder, **files):
    return OfaTsv(negative_samples="negative_sample", data_dir=str(folder), **files)


@pytest.mark.parametrize(
    ("make", "kind", "sentence"),
    [
        (lambda d: data_set_in(d, text="gone.tsv"), "text", "There is no file .*gone.tsv"),
        (lambda d: data_set_in(d, text="gone-*.tsv"), "text", "No file fits the pattern .*gone-"),
        (
            lambda d: data_set_in(d, text="text_examples.tsv", selected_cols={"text": "0,2"}),
            "text",
            "have 2 columns, but column 2 is selected",
        ),
        (
            lambda d: data_set_in(d, text="text_examples.tsv", selected_cols={"text": "0"}),
            "text",
            "selected_cols '0' for text must be 2 column numbers",
        ),
        (
            lambda d: data_set_in(d, text="text_examples.tsv", selected_cols={"texts": "0"}),
            "text",
            "selected_cols names texts; known are vision_language",
        ),
        (
            lambda d: data_set_in(d, vision_language="detection_examples.tsv"),
            "regions",
            "have 3 columns, but column 7 is selected",
        ),
        (
            lambda d: data_set_in(
                d,
                vision_language="vision_language_examples.tsv",
                selected_cols={"vision_language": "0,1,2,3,4,5,7,6"},
            ),
            "regions",
            "column 6 should have one of caption, qa, visual_grounding, but no line does .*'coco'",
        ),
        (
            lambda d: data_set_in(d, detection="image_examples.tsv"),
            "objects",
            "None of the first 1 lines can be used as detection, e.g. .*line 1",
        ),
        (
            lambda d: data_set_in(d, text="text_examples.tsv"),
            "objects",
            "objects are in detection files, which OfaTsv has for no split: .*"
            r"rates = \{'object_detection': 0\}",
        ),
        (
            lambda d: data_set_in(d, text={"validation": "text_examples.tsv"}),
            "text",
            "which OfaTsv has only for validation",
        ),
        (
            lambda d: OfaTsv(vision_language=str(d / "vision_language_examples.tsv")),
            "pairs",
            "set OfaTsv.negative_samples to their folder",
        ),
        (
            lambda d: data_set_in(d, text="text_examples.tsv"),
            "caption",
            "There is no kind of record 'caption': choose one of captions",
        ),
        (lambda d: OfaTsv(), "text", "OfaTsv has no files: give at least one of"),
    ],
)
def test_wrong_options_raise_a_one_line_error_before_training(folder, make, kind, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence) as raised:
        make(folder).records(kind, "train")
    assert "\n" not in str(raised.value)


def test_a_file_without_lines_of_a_type_raises_an_error_with_advice(golden, tmp_path):
    (tmp_path / "pairs.tsv").write_text(line(golden) + "\n")
    data = OfaTsv(vision_language=str(tmp_path / "pairs.tsv"))
    assert len(data.records("captions", "train")) == 1
    with pytest.raises(ValueError, match="no lines of type qa: .*'visual_question_answering': 0"):
        data.records("questions", "train")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("object.txt", None, "There is no object.txt in"),
        ("type2ans.json", "[]", "must be JSON of the form"),
        ("type2ans.json", '{"other": [3]}', "must be JSON of the form"),
        ("type2ans.json", "{", "must be JSON of the form"),
        ("type2ans.json", '"other"', 'of the form .*, but it is the text "other"'),
        ("type2ans.json", '{"other": "yes"}', 'but "other" has the text "yes"'),
        ("type2ans.json", '{"other": {"yes": 3}}', 'but "other" has an object'),
        ("type2ans.json", '{"a": [], "a": ["b"]}', 'it has the key "a" twice'),
        ("object.txt", " \n", "object.txt has no names"),
        ("all_captions.txt", "\n", "has only blank lines"),
    ],
)
def test_invalid_negative_samples_are_rejected(golden, tmp_path, name, content, sentence):
    path = write_official_files(golden, tmp_path) / "negative_sample" / name
    path.unlink() if content is None else path.write_text(content)
    data = OfaTsv(text="x.tsv", negative_samples=str(path.parent))
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        data.negatives()


def test_reading_imports_no_tensorflow(folder):
    program = (
        "import sys; from ofa_jax.data.sources.ofa_tsv import OfaTsv; "
        f"print(len(OfaTsv(text={str(folder / 'text_examples.tsv')!r}).records('text', 'train'))); "
        "assert not {'tensorflow', 'seqio', 'jax'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout) == 4
