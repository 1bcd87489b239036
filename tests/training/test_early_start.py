"""What a thread does while the state is being restored, and what fails there."""

import threading

import pytest

from ofa_jax.training.early_start import EarlyStart


def test_the_first_batch_is_fetched_and_prepared_in_a_thread_and_comes_first():
    seen = []

    def prepare(batch):
        seen.append((batch, threading.current_thread() is threading.main_thread()))

    batches = EarlyStart(iter([1, 2, 3]), prepare)
    batches.wait()
    assert seen == [(1, False)]
    assert list(batches) == [1, 2, 3]
    batches.close()


def test_nothing_begins_without_something_to_prepare():
    asked = []

    def count():
        for number in range(2):
            asked.append(number)
            yield number

    batches = EarlyStart(count(), None)
    batches.wait()
    assert not asked
    assert list(batches) == [0, 1] == asked


def test_a_failure_is_raised_where_the_batch_is_asked_for():
    def torn():
        raise ValueError("the file is torn")
        yield

    batches = EarlyStart(torn(), lambda batch: None)
    batches.wait()
    with pytest.raises(ValueError, match="the file is torn"):
        next(batches)
    batches = EarlyStart(iter(()), lambda batch: None)
    with pytest.raises(StopIteration):
        next(batches)


def test_a_failure_to_prepare_is_left_to_the_loop():
    batches = EarlyStart(iter([1, 2]), lambda batch: 1 / 0)
    batches.wait()
    assert list(batches) == [1, 2]


def test_closing_ends_the_batches():
    ended = []

    def endless():
        try:
            while True:
                yield 1
        finally:
            ended.append(True)

    batches = EarlyStart(endless(), lambda batch: None)
    next(batches)
    batches.close()
    assert ended == [True]
