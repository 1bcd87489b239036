"""Sources of requests: valid entries, and where an invalid one is."""

import base64
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from ofa_jax.inference.sources import Entry, ImageFolder, JsonLines, Tsv
from ofa_jax.preprocessing.records import InvalidRecordError


@pytest.fixture
def png(tmp_path):
    """Returns the bytes of an image, which is also stored as a.png in the folder."""
    Image.fromarray(np.full((4, 6, 3), 7, np.uint8)).save(tmp_path / "a.png")
    return (tmp_path / "a.png").read_bytes()


def write_lines(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def test_json_lines_have_images_as_paths_and_as_base64(tmp_path, png):
    safe = base64.urlsafe_b64encode(png).decode()
    plain = base64.b64encode(png).decode()
    path = write_lines(
        tmp_path / "q.jsonl",
        map(
            json.dumps,
            [
                {"id": "x", "image": "a.png", "instruction": "what is it?"},
                {"image": safe, "instruction": "é?", "region": [0, 1, 2, 3]},
                {"id": 7, "image": f"data:image/png;base64,{plain}"},
                {"instruction": "a question without an image", "image": None},
            ],
        ),
    )
    source = pickle.loads(pickle.dumps(JsonLines(path, instruction="what is in it?")))
    assert len(source) == 4
    entries = [source[index] for index in range(4)]
    assert [entry.id for entry in entries] == ["x", "q.jsonl:2", "7", "q.jsonl:4"]
    assert [entry.instruction for entry in entries] == [
        "what is it?",
        "é?",
        "what is in it?",
        "a question without an image",
    ]
    assert [entry.read_image() for entry in entries] == [png, png, png, None]
    assert entries[1].region == [0, 1, 2, 3]


def test_fields_of_a_line_are_inserted_into_the_instruction(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", ['{"phrase": "a dog"}', '{"word": "a dog"}'])
    source = JsonLines(path, 'which region does the text " {phrase} " describe? {region}')
    assert source[0].instruction == 'which region does the text " a dog " describe? {region}'
    with pytest.raises(InvalidRecordError, match="it has no phrase, which the instruction needs"):
        source[1]


def test_an_invalid_line_is_reported(tmp_path):
    path = write_lines(
        tmp_path / "q.jsonl",
        [
            '{"instruction": ',
            "[1]",
            "{}",
            '{"instruction": 3}',
            '{"instruction": "?", "image": "missing.png"}',
            '{"id": 5, "image": "a.png"}',
        ],
    )
    source = JsonLines(path)
    for index, message in enumerate(
        ["it is not JSON", "not a JSON object but a list", "it has no instruction", "must be text"]
    ):
        with pytest.raises(InvalidRecordError, match=message):
            source[index]
        assert source.location(index) == f"q.jsonl:{index + 1}"
    with pytest.raises(InvalidRecordError, match="'missing.png' is neither a file nor base64"):
        source[4].read_image()
    with pytest.raises(InvalidRecordError) as raised:
        source[5]
    assert raised.value.id == "5" and str(raised.value).startswith("it has no instruction")


def test_base64_may_be_longer_or_shorter_than_a_file_name(tmp_path):
    for number in range(8):
        content = bytes(range(256)) * 2**number
        encoded = base64.b64encode(content[: 300 * 2**number]).decode()
        assert (
            Entry("x", "?", encoded, folder=str(tmp_path)).read_image()
            == content[: 300 * 2**number]
        )


def test_several_files_form_one_source_in_the_order_of_their_names(tmp_path):
    for name, count in (("b", 1), ("a", 2), ("c", 3)):
        lines = [json.dumps({"instruction": f"{name}{i}"}) for i in range(count)]
        write_lines(tmp_path / f"{name}.jsonl", lines)
    source = JsonLines(str(tmp_path / "*.jsonl"))
    assert [source[i].instruction for i in range(len(source))] == [
        "a0",
        "a1",
        "b0",
        "c0",
        "c1",
        "c2",
    ]
    assert source.location(5) == "c.jsonl:3"
    with pytest.raises(FileNotFoundError, match="No file matches"):
        len(JsonLines(str(tmp_path / "*.tsv")))


def test_tsv_columns_are_selected_by_position_layout_or_header(tmp_path, png):
    encoded = base64.urlsafe_b64encode(png).decode()
    # The official layout of RefCOCO: id, image id, phrase, box, image.
    row = ["5", "9", "a Red dog", "1,2,3,4", encoded]
    official = write_lines(tmp_path / "o.tsv", ["\t".join(row)] * 2)
    header = write_lines(
        tmp_path / "h.tsv",
        ["\t".join(["uniq", "other", "phrase", "corners", "image"]), "\t".join(row)],
    )
    wording = 'which region does the text " {phrase} " describe?'
    sources = [
        Tsv(official, wording, layout="refcoco"),
        Tsv(official, wording, columns={"id": 0, "phrase": 2, "image": -1}),
        Tsv(
            header,
            wording,
            header=True,
            columns={"id": "uniq", "phrase": "phrase", "image": "image", "region": "corners"},
        ),
    ]
    assert [len(source) for source in sources] == [2, 2, 1]
    for source in sources:
        entry = source[0]
        assert entry.id == "5" and entry.read_image() == png
        assert entry.instruction == 'which region does the text " a Red dog " describe?'
    assert [float(number) for number in sources[2][0].region] == [1, 2, 3, 4]
    assert sources[0][0].region is None  # a layout's box is the target, not an input
    assert sources[2].location(0) == "h.tsv:2"


def test_a_tsv_with_wrong_columns_is_reported(tmp_path):
    path = write_lines(tmp_path / "t.tsv", ["1\ttext", "2"])
    source = Tsv(path, columns={"id": 0, "instruction": 1})
    assert source[0].instruction == "text"
    with pytest.raises(
        InvalidRecordError, match="it has 1 columns, but instruction is in column 1"
    ):
        source[1]
    with pytest.raises(ValueError, match="Tsv needs to know its columns"):
        Tsv(path)
    with pytest.raises(ValueError, match="Tsv.layout is 'refcco'; .* Did you mean refcoco?"):
        Tsv(path, layout="refcco")
    with pytest.raises(ValueError, match="takes id from 'nr', which is not a column: there are id"):
        Tsv(path, layout="refcoco", columns={"id": "nr"})


def test_an_image_folder_is_read_in_the_order_of_the_names(tmp_path, png):
    (tmp_path / "deep").mkdir()
    for name in ("b.PNG", "deep/c.jpeg", "notes.txt"):
        (tmp_path / name).write_bytes(png)
    source = ImageFolder(str(tmp_path), "what is it?")
    assert [source[i].id for i in range(len(source))] == ["a.png", "b.PNG", "deep/c.jpeg"]
    assert source[2].read_image() == png and source.location(2) == "deep/c.jpeg"
    assert len(ImageFolder(str(tmp_path), "?", suffixes=["txt"])) == 1
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        ImageFolder(str(tmp_path / "nowhere"), "?")
