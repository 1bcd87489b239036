"""The order of examples follows from (seed, step): on any number of hosts, after any stop."""

import collections
import itertools
import logging

import numpy as np
import pytest
from loader_tasks import (
    LENGTHS,
    PAIRS,
    TEXT,
    EncodeNumber,
    note_a_dropped_part,
    numbered,
    tasks,
    tensorflow_is_loaded,
)

from ofa_jax.data.features import Stream
from ofa_jax.data.loader import Loader
from ofa_jax.data.sampling import RateInterleaving, WeightedTask
from ofa_jax.utils import bad_input

STREAMS = (PAIRS, TEXT)


def take(count, start=0, seed=7, bad=(), **options):
    loader = Loader(STREAMS, tasks(bad), seed, **options)
    return list(itertools.islice(loader.batches(start), count))


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for stream in a:
            assert a[stream].keys() == b[stream].keys()
            for name in a[stream]:
                np.testing.assert_array_equal(a[stream][name], b[stream][name], err_msg=name)


def seen(batches, stream="pairs"):
    """Returns (task id, number of the record) of every row."""
    return [
        (int(task), int(number) - 1000)
        for batch in batches
        for task, number in zip(
            batch[stream]["task_ids"], batch[stream]["decoder_target_tokens"][:, 0], strict=True
        )
    ]


@pytest.fixture(scope="module")
def uninterrupted():
    return take(9)


def take_from_hosts(hosts, count, **options):
    """Returns the global batches, put together from those of several hosts."""
    parts = [
        take(count, num_data_shards=hosts, data_shards=(host,), **options) for host in range(hosts)
    ]
    return [
        {
            stream: {
                name: np.concatenate([part[stream][name] for part in step])
                for name in step[0][stream]
            }
            for stream in step[0]
        }
        for step in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("hosts", [2, 4])
def test_several_hosts_together_make_the_batches_of_one_host(uninterrupted, hosts):
    assert_same(take_from_hosts(hosts, 9), uninterrupted)


def test_a_host_may_own_shards_that_are_not_adjacent(uninterrupted):
    part = take(9, num_data_shards=4, data_shards=(1, 3))
    rows = [2, 3, 6, 7]
    for ours, whole in zip(part, uninterrupted, strict=True):
        np.testing.assert_array_equal(
            ours["pairs"]["decoder_target_tokens"], whole["pairs"]["decoder_target_tokens"][rows]
        )


@pytest.mark.parametrize("start", [1, 4, 8])
def test_a_restart_continues_with_the_same_examples(uninterrupted, start):
    assert_same(take(9 - start, start=start), uninterrupted[start:])


@pytest.mark.parametrize("hosts", [1, 2])
def test_a_restart_on_another_number_of_hosts_continues_with_the_same_examples(
    uninterrupted, hosts
):
    part = take(3, start=6, num_data_shards=2, data_shards=tuple(range(2))[-hosts:])
    for ours, whole in zip(part, uninterrupted[6:], strict=True):
        for name, array in ours["pairs"].items():
            np.testing.assert_array_equal(array, whole["pairs"][name][8 - 4 * hosts :])


def test_every_record_comes_once_in_an_epoch_and_tasks_at_their_rates(uninterrupted):
    rows = seen(uninterrupted)
    often = [number for task, number in rows if task == 0]
    rarely = [number for task, number in rows if task == 1]
    # 72 rows at 2 to 1: exactly four epochs of 12 and of 6 records.
    assert (len(often), len(rarely)) == (48, 24)
    for numbers, size in ((often, 12), (rarely, 6)):
        epochs = [numbers[k : k + size] for k in range(0, len(numbers), size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert epochs[0] != epochs[1]
    counts = collections.Counter(seen(uninterrupted, "text"))
    # 36 rows of 5 records: seven epochs and one more.
    assert sorted(counts.values()) == [7, 7, 7, 7, 8]


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ([2, 1], [2, 1]),
        ([0.7, 0.2, 0.1], [7, 2, 1]),
        # As in pretraining; hundredths of the smallest would give 266 to 100.
        ([16 / 6, 32 / 6, 1.0, 2.0], [8, 16, 3, 6]),
        ([10_199, 10_100], [10_199, 10_100]),
    ],
)
def test_rates_are_exact_and_evenly_spread(rates, expected):
    period = sum(expected)
    interleaving = RateInterleaving(rates)
    counts = np.zeros(len(rates), int)
    for row in range(2 * period):
        task, number = interleaving[row]
        assert number == counts[task], "a task's rows come one after the other"
        counts[task] += 1
        fair = np.array(expected) * (row + 1) / period
        assert np.abs(counts - fair).max() < len(rates) - 0.5
    np.testing.assert_array_equal(counts, 2 * np.array(expected))


def test_every_row_has_its_own_random_draws():
    """The same record augments differently each time, and the same row always alike."""
    steps = take(9)
    draws = collections.defaultdict(list)
    for row, draw in zip(
        seen(steps),
        np.concatenate([s["pairs"]["decoder_target_tokens"][:, 1] for s in steps]),
        strict=True,
    ):
        draws[row].append(int(draw))
    assert all(len(set(values)) > 1 for values in draws.values())
    assert_same(steps, take(9))


def test_another_seed_is_another_order(uninterrupted):
    assert seen(take(9, seed=8)) != seen(uninterrupted)


def draws_and_numbers(name="s", seed=7, task="t", size=1):
    """Returns the random draws and the records of the first 16 rows."""
    stream = Stream(name, "m", 16, LENGTHS)
    rated = WeightedTask(task, 1.0, numbered(size), EncodeNumber(image=False))
    batch = next(Loader([stream], {name: [rated]}, seed).batches())[name]
    return batch["decoder_target_tokens"][:, 1].tolist(), seen([{name: batch}], name)


@pytest.mark.parametrize("change", [{"name": "other"}, {"seed": 8}])
def test_another_stream_or_seed_augments_the_same_record_differently(change):
    draws, numbers = draws_and_numbers()
    other_draws, same_numbers = draws_and_numbers(**change)
    assert numbers == same_numbers
    assert draws != other_draws


@pytest.mark.parametrize("change", [{"name": "other"}, {"seed": 8}, {"task": "other"}])
def test_another_stream_seed_or_task_shuffles_differently(change):
    assert draws_and_numbers(size=16)[1] != draws_and_numbers(size=16, **change)[1]


@pytest.mark.parametrize("host", [0, 1])
def test_record_ids_are_known_without_making_batches(host):
    shares = dict(num_data_shards=2, data_shards=(host,))
    loader = Loader(STREAMS, tasks(()), 7, **shares)
    for step, batch in enumerate(take(3, **shares)):
        record_ids = loader.record_ids(step)
        assert set(record_ids) == {"pairs", "text"}
        expected = [(loader.task_names[task], number) for task, number in seen([batch])]
        assert record_ids["pairs"] == expected


def test_threads_and_prefetching_change_nothing(uninterrupted):
    assert_same(take(9, num_threads=5, prefetch_steps=9), uninterrupted)


def test_worker_processes_give_the_same_batches_without_tensorflow(uninterrupted, absl_flags):
    assert_same(take(3, start=2, num_workers=1), uninterrupted[2:5])
    stream = Stream("s", "m", 2, LENGTHS)
    task = WeightedTask("t", 1.0, numbered(4), tensorflow_is_loaded)
    loader = Loader([stream], {"s": [task]}, 0, num_workers=1)
    batch = next(loader.batches())
    assert set(batch["s"]["decoder_target_tokens"][:, 0]) == {10}


def test_an_invalid_record_becomes_an_empty_row_and_is_counted_and_logged(uninterrupted, caplog):
    loader = Loader(STREAMS, tasks(bad={3}), 7)
    with caplog.at_level(logging.WARNING):
        steps = list(itertools.islice(loader.batches(), 9))
    empty = 0
    for ours, whole in zip(steps, uninterrupted, strict=True):
        bad = (whole["pairs"]["task_ids"] == 0) & (
            whole["pairs"]["decoder_target_tokens"][:, 0] == 1003
        )
        empty += bad.sum()
        for name, array in ours["pairs"].items():
            np.testing.assert_array_equal(array[~bad], whole["pairs"][name][~bad])
        assert not ours["pairs"]["decoder_loss_weights"][bad].any()
        assert not ours["pairs"]["encoder_image_mask"][bad].any()
        np.testing.assert_array_equal(ours["pairs"]["task_ids"], whole["pairs"]["task_ids"])
    assert empty == 4
    assert loader.skipped_records == {"often": 4}
    assert caplog.text.count("often, record 3: has no number") == 1


def test_each_invalid_record_is_logged_once_up_to_a_limit(caplog):
    stream = Stream("s", "m", 64, LENGTHS)
    task = WeightedTask("t", 1.0, numbered(32, bad=range(1, 26)), EncodeNumber(image=False))
    loader = Loader([stream], {"s": [task]}, 0)
    with caplog.at_level(logging.WARNING):
        next(loader.batches())
    named = [message for message in caplog.messages if message.startswith("Skipped t, record ")]
    assert len(named) == len(set(named)) == 20
    assert caplog.text.count("Further invalid records are counted, but no longer logged.") == 1
    # Two epochs.
    assert loader.skipped_records == {"t": 50}


class TornRecords:
    """Four records; the third cannot be read."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            raise OSError("short read")
        return {"number": index}


def test_a_record_that_cannot_be_read_is_invalid():
    stream = Stream("s", "m", 4, LENGTHS)
    loader = Loader(
        [stream], {"s": [WeightedTask("t", 1.0, TornRecords(), EncodeNumber(False))]}, 0
    )
    batch = next(loader.batches())["s"]
    assert sorted(batch["decoder_target_tokens"][:, 0]) == [1, 1000, 1001, 1003]
    assert loader.skipped_records == {"t": 1}


def test_a_mistake_in_a_preprocessor_ends_training_with_its_name_and_traceback(caplog):
    def mistake(record, rng):
        return record["nubmer"]

    stream = Stream("s", "m", 4, LENGTHS)
    with pytest.raises(ValueError, match="Every record of step 0 .*KeyError: 'nubmer'"):
        next(Loader([stream], {"s": [WeightedTask("t", 1.0, numbered(4), mistake)]}, 0).batches())
    assert caplog.text.count("Traceback") == 1


def test_an_unexpected_exception_for_one_record_skips_that_record():
    encode = EncodeNumber(image=False)

    def preprocess(record, rng):
        return encode({"number": None} if record["number"] == 1 else record, rng)

    stream = Stream("s", "m", 4, LENGTHS)
    loader = Loader([stream], {"s": [WeightedTask("t", 1.0, numbered(4), preprocess)]}, 0)
    next(loader.batches())
    assert loader.skipped_records == {"t": 1}
    assert loader.findings == {("t", "unexpected error"): 1}


@pytest.mark.parametrize("workers", [0, 1])
def test_dropped_parts_are_counted_by_task_and_reason(workers, absl_flags):
    stream = Stream("s", "m", 4, LENGTHS)
    task = WeightedTask("t", 1.0, numbered(4), note_a_dropped_part)
    loader = Loader([stream], {"s": [task]}, 0, num_workers=workers)
    next(loader.batches())
    assert loader.findings == {("t", "test: a dropped part"): 4}
    assert not loader.skipped_records.total()


def test_a_step_without_a_valid_record_raises():
    with pytest.raises(
        ValueError, match="Every record of step 0 in stream 'pairs' is invalid, e.g. "
    ):
        records = numbered(12, bad=set(range(12)))
        broken = [WeightedTask("often", 1.0, records, tasks()["pairs"][0].preprocess)]
        next(Loader([PAIRS], {"pairs": broken}, 0).batches())


def test_a_host_continues_if_only_its_own_records_are_all_invalid():
    """Whether a run stops must not depend on the number of hosts."""
    bad = set(range(12)) - {0, 5}
    joined = take_from_hosts(4, 9, bad=bad)
    assert_same(joined, take(9, bad=bad))
    parts = np.stack([step["pairs"]["decoder_loss_weights"].reshape(4, -1) for step in joined])
    assert (~parts.any(-1)).any(), "on no host and step was everything bad: nothing was tested"


def test_all_hosts_raise_if_a_step_has_no_valid_record():
    broken = [WeightedTask("often", 1.0, numbered(12, bad=set(range(12))), EncodeNumber(True))]
    for host in range(4):
        loader = Loader([PAIRS], {"pairs": broken}, 0, num_data_shards=4, data_shards=(host,))
        with pytest.raises(ValueError, match="Every record of step 0"):
            next(loader.batches())


def test_a_batch_of_one_invalid_record_does_not_raise():
    stream = Stream("s", "m", 1, LENGTHS)
    loader = Loader(
        [stream], {"s": [WeightedTask("t", 1.0, numbered(2, {0}), EncodeNumber(False))]}, 0
    )
    weights = [b["s"]["decoder_loss_weights"].any() for b in itertools.islice(loader.batches(), 2)]
    assert sorted(weights) == [False, True]


def test_validation_has_every_example_once_and_fills_up_with_empty_rows():
    loader = Loader(STREAMS, tasks(), 7)
    batches = list(loader.validation_batches(tasks(), num_examples=7))
    # 7 + 6 images in batches of 8, 5 texts in batches of 4.
    assert [name for name, _ in batches] == ["pairs", "pairs", "text", "text"]
    rows, draws = [], set()
    for _, batch in batches:
        for task, tokens, weights in zip(
            batch["task_ids"],
            batch["decoder_target_tokens"],
            batch["decoder_loss_weights"],
            strict=True,
        ):
            if weights.any():
                rows.append((loader.task_names[task], int(tokens[0]) - 1000))
                draws.add(int(tokens[1]))
    assert rows == [
        *(("often", k) for k in range(7)),
        *(("rarely", k) for k in range(6)),
        *(("texts", k) for k in range(5)),
    ]
    assert len(draws) > len(rows) / 2, "each row draws for itself"
    again = list(Loader(STREAMS, tasks(), 8).validation_batches(tasks(), num_examples=7))
    for (_, a), (_, b) in zip(batches, again, strict=True):
        assert_same([{"x": a}], [{"x": b}])


def test_validation_skips_and_counts_invalid_records():
    loader = Loader(STREAMS, tasks(), 7)
    batches = list(loader.validation_batches(tasks(bad={3, 9}), num_examples=7))
    good = [batch["decoder_loss_weights"].any(axis=1).sum() for _, batch in batches]
    assert good == [7, 5, 4, 1]
    assert loader.skipped_records == {"often": 1}


def test_validation_is_split_over_hosts_like_training():
    whole = list(Loader(STREAMS, tasks(), 7).validation_batches(tasks(), 7))
    loader = Loader(STREAMS, tasks(), 7, num_data_shards=2, data_shards=(1,))
    for (_, ours), (_, theirs) in zip(loader.validation_batches(tasks(), 7), whole, strict=True):
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name][len(array) :])


def test_sequential_streams_start_at_the_same_step():
    def batches(start):
        for step in itertools.count(start):
            yield {"step": np.array([step])}

    loader = Loader(STREAMS, {"pairs": tasks()["pairs"]}, 0, sequential={"text": batches})
    steps = list(itertools.islice(loader.batches(3), 2))
    assert [int(step["text"]["step"][0]) for step in steps] == [3, 4]
    assert loader.task_names == ("often", "rarely", "text_mixture")


@pytest.mark.parametrize(
    ("streams", "given", "options", "sentence"),
    [
        ((PAIRS, PAIRS), tasks(), {}, r"Two streams have one name \(pairs, pairs\)"),
        (STREAMS, tasks(), dict(num_data_shards=3), "batch_size 8 does not divide over the 3"),
        (STREAMS, tasks() | {"text": []}, {}, "text_mixture has nothing to train on"),
        (
            STREAMS,
            tasks() | {"text": [WeightedTask("texts", 1.0, numbered(0), print)]},
            {},
            "texts is empty",
        ),
        (
            STREAMS,
            tasks() | {"text": [WeightedTask("texts", 0.0, numbered(3), print)]},
            {},
            "every rate must be positive",
        ),
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_read(streams, given, options, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        Loader(streams, given, 0, **options)
    assert "\n" not in str(raised.value)


class OddExamples:
    """Returns examples that have what no example may have, for some records."""

    odd = (  # noqa: RUF012
        {"inputs": None},
        {"targets": ["a", "b"]},
        {"targets": np.zeros((2, 3))},
        {"loss_weight": "much"},
        {"image": "a path"},
        {"unscored_targets": None},
    )

    def __call__(self, record, rng):
        example = EncodeNumber(image=False)(record, rng)
        number = record["number"]
        return example | self.odd[number] if number < len(self.odd) else example


def test_an_example_of_odd_types_is_skipped():
    weighted = [WeightedTask("odd", 1.0, numbered(12), OddExamples())]
    loader = Loader([TEXT], {"text": weighted}, 0)
    batches = list(itertools.islice(loader.batches(), 12 // TEXT.batch_size))
    count = loader.findings["odd", "unexpected error"]
    assert 0 < count <= len(OddExamples.odd)
    valid = sum(int((batch["text"]["decoder_loss_weights"].sum(1) > 0).sum()) for batch in batches)
    assert valid >= 12 - len(OddExamples.odd)


def test_findings_of_sequential_streams_are_counted_by_their_task():
    reason = bad_input.declare(
        "test: a skipped record", bad_input.Treatment.SKIPPED, "Only here.", __name__
    )

    def make(start):
        while True:
            bad_input.note(reason, "one was left out")
            yield {"x": np.zeros(1)}

    stream = Stream("sequential", "its_task", 4, LENGTHS)
    loader = Loader([*STREAMS, stream], tasks(()), 7, sequential={"sequential": make})
    for _ in itertools.islice(loader.batches(), 3):
        pass
    assert loader.findings == {("its_task", "test: a skipped record"): 3}
    assert loader.skipped_records == {"its_task": 3}
