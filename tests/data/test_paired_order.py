"""`Stream.shared_images`: two examples of a record, with one image, in an order of their own."""

import collections
import dataclasses
import functools
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from ofa_jax.data.features import Stream, stack
from ofa_jax.data.loader import Loader
from ofa_jax.data.paired_order import find_units
from ofa_jax.data.sampling import StreamSampler, WeightedTask
from ofa_jax.data.sources.memory import InMemoryRecords
from ofa_jax.preprocessing import images, objectives
from ofa_jax.preprocessing.negatives import NegativePool
from ofa_jax.preprocessing.objectives import COUNTERPARTS, OBJECTIVES, PAIR_RATES

LENGTHS = {"inputs": 32, "targets": 16}
STREAM = Stream(
    "pairs", "ofa_pretrain_pairs", 12, LENGTHS, image_size=32, num_sampled_patches=2,
    shared_images=True,
)  # fmt: skip
COUNTS = {"captions": 7, "questions": 5, "pairs": 12, "regions": 6}


def jpeg(number):
    """Returns a JPEG of 64 x 48 pixels that only this number gives."""
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def record(kind, number):
    """Returns a record of a kind; the image says which."""
    first = sorted(COUNTS).index(kind) * 100
    fields = {"id": f"{kind} {number}", "image": jpeg(first + number), "object_labels": ["cat"]}
    if kind in ("captions", "pairs"):
        fields["captions"] = [f"a cat of kind {number}", f"one more cat of kind {number}"]
    if kind == "questions":
        fields |= {"questions": ["how many cats?"], "answers": [str(number)],
                   "answer_confidences": [1.0]}  # fmt: skip
    if kind == "regions":
        boxes = np.array([[2, 3, 30, 40], [20, 10, 60, 44]], np.float32)
        fields |= {"phrases": ["the left cat", "the right cat"], "phrase_boxes": boxes}
    return fields


@pytest.fixture(scope="module")
def tasks(config):
    """Returns the tasks of the published stream over a few small images."""
    answers = {"other": ["1", "2", "three"]}
    small = dataclasses.replace(
        config,
        negatives=NegativePool(["a dog", "some birds"], ["cat", "dog"], answers),
        image_size=32,
        resize_range=(32, 40),
        resize_max_size=64,
        max_image_size=256,
        randaugment=True,
    )
    sources = {
        kind: InMemoryRecords([record(kind, number) for number in range(count)])
        for kind, count in COUNTS.items()
    }
    return [
        WeightedTask(
            name,
            rate,
            sources[objectives.RECORD_KIND[name]],
            functools.partial(OBJECTIVES[name], config=small),
        )
        for name, rate in sorted(PAIR_RATES.items())
    ]


def sampler(tasks, stream=STREAM, seed=3):
    return StreamSampler(stream, tuple(tasks), tuple(range(len(tasks))), seed)


def batches(tasks, count=4, start=0, stream=STREAM, **options):
    loader = Loader([stream], {"pairs": tasks}, seed=3, **options)
    found = [batch["pairs"] for batch in itertools.islice(loader.batches(start), count)]
    assert not loader.findings
    return found


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture
def decoded(monkeypatch):
    """Counts what is decoded and what is resized."""
    counts = collections.Counter()
    decode, crop = images.decode, images.LazyResize.crop

    def counting_decode(*arguments):
        counts["decoded"] += 1
        return decode(*arguments)

    def counting_crop(self, window):
        counts["resized"] += 1
        return crop(self, window)

    monkeypatch.setattr(images, "decode", counting_decode)
    monkeypatch.setattr(images.LazyResize, "crop", counting_crop)
    return counts


def test_pairs_of_rows_are_two_examples_of_one_image(tasks):
    rows = sampler(tasks)
    names = [task.name for task in tasks]
    seen = collections.Counter()
    for pair in range(60):
        first, second = rows.place(2 * pair), rows.place(2 * pair + 1)
        assert COUNTERPARTS[names[first.task]] == names[second.task]
        assert first.source == first.task == second.source and first.record == second.record
        assert rows.locate(2 * pair + 1) == (first.source, first.record)
        (a, none), (b, also_none) = rows[2 * pair], rows[2 * pair + 1]
        assert not none and not also_none
        np.testing.assert_array_equal(a["encoder_images"], b["encoder_images"])
        assert a["encoder_images"].any()
        assert (a["task_ids"], b["task_ids"]) == (first.task, second.task)
        assert not np.array_equal(a["encoder_input_tokens"], b["encoder_input_tokens"])
        seen.update([names[first.task], names[second.task]])
    assert seen == {name: 20 * rate for name, rate in PAIR_RATES.items()}


def test_a_region_has_the_same_box_in_both_examples(tasks):
    rows, names = sampler(tasks), [task.name for task in tasks]
    pairs = [p for p in range(30) if names[rows.place(2 * p).task] == "visual_grounding"]
    assert len(pairs) == 10
    for pair in pairs:
        box = rows[2 * pair][0]["decoder_target_tokens"][:4].tolist()
        inputs = rows[2 * pair + 1][0]["encoder_input_tokens"].tolist()
        assert any(inputs[start : start + 4] == box for start in range(len(inputs)))


def test_one_batch_takes_half_of_the_decodes(tasks, decoded):
    rows = sampler(tasks)
    alone = stack(features for features, _ in (rows[row] for row in range(STREAM.batch_size)))
    assert decoded == {"decoded": 12, "resized": 12}
    decoded.clear()
    loader = Loader([STREAM], {"pairs": tasks}, seed=3)
    together = loader._steps[0]["pairs"]
    assert decoded == {"decoded": 6, "resized": 6}
    assert_same([together], [alone])


def test_batches_are_bitwise_those_without_sharing(tasks):
    rows, size = sampler(tasks), STREAM.batch_size
    expected = [
        stack(features for features, _ in (rows[step * size + row] for row in range(size)))
        for step in range(4)
    ]
    assert_same(batches(tasks, num_threads=2), expected)
    assert_same(batches(tasks, 2, start=2), expected[2:])
    for hosts in (2, 3):
        parts = [
            batches(tasks, num_data_shards=hosts, data_shards=(host,)) for host in range(hosts)
        ]
        joined = [
            {name: np.concatenate([part[name] for part in step]) for name in step[0]}
            for step in zip(*parts, strict=True)
        ]
        assert_same(joined, expected)


def test_every_epoch_has_every_record_once(tasks):
    rows, names = sampler(tasks), [task.name for task in tasks]
    drawn = collections.defaultdict(list)
    for pair in range(60):
        place = rows.place(2 * pair)
        drawn[names[place.task]].append(place.record)
    assert {name: len(indices) for name, indices in drawn.items()} == dict.fromkeys(
        COUNTERPARTS, 20
    )
    for name, indices in drawn.items():
        count = COUNTS[objectives.RECORD_KIND[name]]
        for start in range(0, 20 - count, count):
            assert sorted(indices[start : start + count]) == list(range(count)), name


def test_another_seed_and_another_pair_have_other_draws(tasks):
    first, other = sampler(tasks, seed=3), sampler(tasks, seed=4)
    assert [first.place(r) for r in range(40)] != [other.place(r) for r in range(40)]
    # The only question of a data set of one record has another crop or augmentation every time.
    one = [dataclasses.replace(t, records=InMemoryRecords(t.records.records[:1])) for t in tasks]
    rows = sampler(one)
    same = [r for r in range(0, 36, 2) if tasks[rows.place(r).task].name == "image_captioning"]
    images_of = {rows[row][0]["encoder_images"].tobytes() for row in same}
    assert len(images_of) > len(same) / 2


def test_an_invalid_record_is_skipped_in_both_rows(tasks):
    damaged = {"id": "x", "image": b"no image", "phrases": ["a"], "object_labels": [],
               "phrase_boxes": np.array([[0, 0, 9, 9]], np.float32)}  # fmt: skip
    broken = [
        dataclasses.replace(t, records=InMemoryRecords([damaged] * 3)) if "ground" in t.name else t
        for t in tasks
    ]
    loader = Loader([STREAM], {"pairs": broken}, seed=3)
    (batch,) = itertools.islice(loader.batches(), 1)
    empty = ~batch["pairs"]["encoder_image_mask"]
    assert empty.sum() == 4 and (empty[0::2] == empty[1::2]).all()
    assert loader.skipped_records == {"visual_grounding": 2, "grounded_captioning": 2}


def test_a_task_without_a_counterpart_takes_two_records(tasks):
    more = [*tasks, dataclasses.replace(tasks[0], name="mine", rate=2.0)]
    rows = sampler(more)
    drawn = [rows.place(row) for row in range(80)]
    own = [place for place in drawn if place.task == len(tasks)]
    assert len(own) == 20 and all(place.source == place.task for place in own)
    count = len(more[-1].records)
    assert sorted(place.record for place in own[:count]) == list(range(count))


@pytest.mark.parametrize(
    ("rates", "sentence"),
    [
        ({"object_detection": 1.0}, "and it has none: leave it out"),
        ({"visual_grounding": 1.0}, "and it has none"),
        (PAIR_RATES | {"image_text_matching": 3.0}, "its rate must be 2, not 3: change the rates"),
        ({"image_captioning": 1, "image_text_matching": 2}, "its rate must be 1, not 2"),
    ],
)
def test_streams_that_cannot_share_are_refused(rates, sentence):
    with pytest.raises(ValueError, match=sentence):
        find_units("pairs", rates)


def test_an_odd_share_of_rows_is_refused(tasks):
    with pytest.raises(ValueError, match="gives it 3: choose a multiple of 8"):
        Loader([STREAM], {"pairs": tasks}, seed=3, num_data_shards=4)
    with pytest.raises(ValueError, match="order of their own, so shared_images is of no use"):
        Loader([STREAM], {}, seed=3, sequential={"pairs": lambda start: iter([])})


def test_the_fingerprint_of_earlier_runs_stays():
    plain = dataclasses.replace(STREAM, shared_images=False)
    assert "shared_images" not in plain.fingerprint()
    assert STREAM.fingerprint() == plain.fingerprint() | {"shared_images": True}
