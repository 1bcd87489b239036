"""Sources: what a line or a file says, and what is wrong with it, by its place."""

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
    """An image's bytes; it stands as a.png in the folder, too."""
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
    assert [entry.encoded() for entry in entries] == [png, png, png, None]
    assert entries[1].region == [0, 1, 2, 3]


def test_an_instruction_for_all_lines_takes_what_they_have(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", ['{"phrase": "a dog"}', '{"word": "a dog"}'])
    source = JsonLines(path, 'which region does the text " {phrase} " describe? {region}')
    assert source[0].instruction == 'which region does the text " a dog " describe? {region}'
    with pytest.raises(InvalidRecordError, match="it has no phrase, which the instruction wants"):
        source[1]


def test_what_is_wrong_with_a_line_is_said(tmp_path):
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
    for index, sentence in enumerate(
        ["it is no JSON", "no JSON object but a list", "it has no instruction", "must be text"]
    ):
        with pytest.raises(InvalidRecordError, match=sentence):
            source[index]
        assert source.location(index) == f"q.jsonl:{index + 1}"
    with pytest.raises(InvalidRecordError, match="'missing.png' is neither a file nor base64"):
        source[4].encoded()
    with pytest.raises(InvalidRecordError) as raised:
        source[5]
    assert raised.value.id == "5" and str(raised.value).startswith("it has no instruction")


def test_base64_may_be_longer_or_shorter_than_the_name_of_a_file(tmp_path):
    for number in range(8):
        content = bytes(range(256)) * 2**number
        encoded = base64.b64encode(content[: 300 * 2**number]).decode()
        assert (
            Entry("x", "?", encoded, folder=str(tmp_path)).encoded() == content[: 300 * 2**number]
        )


def test_several_files_are_one_source_in_the_order_of_their_names(tmp_path):
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


def test_tsv_columns_are_chosen_by_place_by_layout_and_by_header(tmp_path, png):
    encoded = base64.urlsafe_b64encode(png).decode()
    # The original's RefCOCO: id, image id, phrase, box, image.
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
        assert entry.id == "5" and entry.encoded() == png
        assert entry.instruction == 'which region does the text " a Red dog " describe?'
    assert [float(number) for number in sources[2][0].region] == [1, 2, 3, 4]
    assert sources[0][0].region is None  # a layout's box is the answer, not a question
    assert sources[2].location(0) == "h.tsv:2"


def test_a_tsv_that_does_not_fit_is_said(tmp_path):
    path = write_lines(tmp_path / "t.tsv", ["1\ttext", "2"])
    source = Tsv(path, columns={"id": 0, "instruction": 1})
    assert source[0].instruction == "text"
    with pytest.raises(
        InvalidRecordError, match="it has 1 columns, and instruction is to be in column 1"
    ):
        source[1]
    with pytest.raises(ValueError, match="Tsv needs to know its columns"):
        Tsv(path)
    with pytest.raises(ValueError, match="Tsv.layout is 'refcco'; choose from"):
        Tsv(path, layout="refcco")
    with pytest.raises(ValueError, match="takes id from 'nr', which is no column: there are id, i"):
        Tsv(path, layout="refcoco", columns={"id": "nr"})


def test_a_folder_gives_its_images_in_the_order_of_their_names(tmp_path, png):
    (tmp_path / "deep").mkdir()
    for name in ("b.PNG", "deep/c.jpeg", "notes.txt"):
        (tmp_path / name).write_bytes(png)
    source = ImageFolder(str(tmp_path), "what is it?")
    assert [source[i].id for i in range(len(source))] == ["a.png", "b.PNG", "deep/c.jpeg"]
    assert source[2].encoded() == png and source.location(2) == "deep/c.jpeg"
    assert len(ImageFolder(str(tmp_path), "?", suffixes=["txt"])) == 1
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        ImageFolder(str(tmp_path / "nowhere"), "?")
