"""Tests a mixture of several data sets: shares of an epoch, kinds that some lack, negatives."""

import collections
import pickle

import pytest
from absl import logging
from table_files import write_images, write_lines

from ofa_jax.data.features import Stream
from ofa_jax.data.sampling import StreamSampler, WeightedTask
from ofa_jax.data.sources.json_lines import JsonData
from ofa_jax.data.sources.mixed import MixedData
from ofa_jax.data.sources.ofa_tsv import OfaTsv
from ofa_jax.utils.decode_options import AS_SEEN
from ofa_jax.utils.text_files import DamagedFileError


@pytest.fixture
def sources(tmp_path):
    """Returns two sources: ten captions, and three captions with a text."""
    write_images(tmp_path, 1)
    found = {}
    for name, count in (("large", 10), ("small", 3)):
        rows = [
            {"image": "images/0.png", "captions": [f"{name} {number}"]} for number in range(count)
        ]
        if name == "small":
            rows.append({"text": "words"})
        found[name] = JsonData(str(write_lines(tmp_path / f"{name}.jsonl", rows)))
    return found


def shares(records):
    """Returns how often each source and each record is in an epoch."""
    texts = [records[index]["captions"][0] for index in range(len(records))]
    return collections.Counter(text.split()[0] for text in texts), collections.Counter(texts)


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({}, {"large": 10, "small": 3}),
        ({"large": 1, "small": 1}, {"large": 10, "small": 10}),
        ({"large": 1, "small": 3}, {"large": 10, "small": 30}),
        ({"large": 10, "small": 1}, {"large": 30, "small": 3}),
        ({"large": 0, "small": 2}, {"small": 3}),
    ],
)
def test_an_epoch_has_the_shares_of_the_rates(sources, rates, expected):
    records = pickle.loads(pickle.dumps(MixedData(sources, rates).records("captions", "train")))
    by_source, by_record = shares(records)
    assert by_source == expected
    for name in expected:
        counts = [count for text, count in by_record.items() if text.startswith(name)]
        assert max(counts) - min(counts) <= 1  # all of a source, equally often


def test_rows_of_a_run_have_the_shares_too(sources):
    records = MixedData(sources, {"large": 1, "small": 3}).records("captions", "train")
    task = WeightedTask("captions", 1.0, records, lambda record, rng: record)
    stream = Stream("s", "captions", 4, {"inputs": 4, "targets": 4})
    sampler = StreamSampler(stream, (task,), (0,), seed=0)
    found = [records[sampler.locate(row)[1]]["id"].split("/")[0] for row in range(80)]
    assert collections.Counter(found) == {"large": 20, "small": 60}


def test_a_kind_that_one_source_has_comes_from_it_alone(sources):
    data = MixedData(sources, {"large": 1, "small": 1}, {"pairs": {"large": 1, "small": 0}})
    texts = data.records("text", "train")
    assert [texts[n]["text"] for n in range(len(texts))] == ["words"]
    assert texts.location(0).startswith("small: ") and texts.location(0).endswith("line 4")
    assert len(data.records("pairs", "train")) == 10
    assert data.splits == ("train",)
    with pytest.raises(ValueError, match="PretrainingSettings.rates = {'object_detection': 0}"):
        data.records("objects", "train")
    assert len(data.negatives().captions) == 13
    assert data.negatives().captions[12] == "small 2"


def test_what_cannot_be_meant_is_refused(sources, tmp_path):
    with pytest.raises(ValueError, match=r"MixedData\.rates names smal; known are large, small"):
        MixedData(sources, {"smal": 1, "large": 1})
    with pytest.raises(ValueError, match=r"MixedData\.rates has no rate for small"):
        MixedData(sources, {"large": 1})
    official = {"tsv": OfaTsv(text="text.tsv")} | sources
    with pytest.raises(ValueError, match=r"set MixedData\.decode_options"):
        MixedData(official)
    assert MixedData(official, decode_options=AS_SEEN).decode_options == AS_SEEN
    (tmp_path / "bad.jsonl").write_text("not json\n")
    damaged = MixedData(sources | {"bad": JsonData(str(tmp_path / "bad.jsonl"))})
    with pytest.raises(DamagedFileError, match=r"bad\.jsonl is not JSON lines"):
        damaged.records("captions", "train")


def test_a_source_at_rate_0_need_not_be_there(sources):
    data = MixedData(
        sources | {"gone": JsonData("gone.jsonl")}, {"large": 1, "small": 1, "gone": 0}
    )
    assert len(data.records("captions", "train")) == 20
    assert len(data.negatives().captions) == 13 and data.splits == ("train",)
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl"):
        MixedData(data.sources).records("captions", "train")


def test_a_wrong_option_of_a_source_is_not_taken_for_missing_records(sources, tmp_path):
    rows = [{"image": "images/0.png", "caption": "x"}]
    path = str(write_lines(tmp_path / "typo.jsonl", rows))
    typo = MixedData(sources | {"typo": JsonData(path, fields={"captions": "capton"})})
    with pytest.raises(ValueError, match="captions is 'capton', but no record"):
        typo.records("captions", "train")
    with pytest.raises(ValueError, match="captions is 'capton', but no record"):
        typo.negatives()


def test_rates_that_read_nothing_are_refused(sources):
    with pytest.raises(ValueError, match="gives every source the rate 0"):
        MixedData(sources, {"large": 0, "small": 0})
    with pytest.raises(
        ValueError, match=r"MixedData\.kind_rates names caption; known are captions"
    ):
        MixedData(sources, kind_rates={"caption": {"large": 1, "small": 1}})
    data = MixedData(sources, kind_rates={"text": {"large": 0, "small": 0}})
    with pytest.raises(ValueError, match="No source of MixedData with a rate above 0 .*text_infil"):
        data.records("text", "train")


def test_a_source_that_is_left_out_of_a_kind_is_named(sources, monkeypatch):
    found = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: found.append(text % values))
    MixedData(sources).records("text", "train")
    assert len(found) == 1 and found[0].startswith("MixedData leaves large out of text: No record")
