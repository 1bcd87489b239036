"""The queue: batches, limits, errors of one request, cancelled requests, draining."""

import concurrent.futures
import dataclasses
import threading

import numpy as np
import pytest
from PIL import Image
from stub_server import StubPredictor

import ofa_jax
from ofa_jax.inference.predictions import to_png
from ofa_jax.serving import prediction_queue
from ofa_jax.serving.limits import Limits, TooLargeError
from ofa_jax.serving.prediction_queue import (
    DrainingError,
    PredictionQueue,
    PredictionRequest,
    QueueFullError,
    UnexpectedError,
)

SECONDS = 30
GROUNDING = 'which region does the text "a red apple" describe?'


def ask(text, task=None):
    return PredictionRequest(text, task=task)


@pytest.fixture
def held():
    """Returns a stub whose first batch waits until `may_decode` is set, and its queue."""
    stub = StubPredictor(batch_size=4)
    stub.may_decode.clear()
    queue = PredictionQueue(stub, max_waiting=12, max_delay_s=0)
    yield stub, queue
    stub.may_decode.set()
    assert queue.drain(SECONDS)


def wait_for_worker(queue):
    """Waits until the worker has taken the first request."""
    first = queue.submit(ask("first"))
    for _ in range(1000):
        if first.running():
            return first
        threading.Event().wait(0.005)
    raise AssertionError("the worker has not begun")


def test_requests_of_many_threads_get_their_own_predictions():
    stub = StubPredictor(batch_size=8)
    queue = PredictionQueue(stub, max_waiting=400)
    with concurrent.futures.ThreadPoolExecutor(50) as threads:
        texts = [f"number {index}" for index in range(300)]
        futures = list(threads.map(lambda text: queue.submit(ask(text)), texts))
    assert [future.result(SECONDS).text for future in futures] == texts
    assert queue.drain(SECONDS)
    assert queue.counts == prediction_queue.Counts(
        accepted=300, answered=300, batches=len(stub.batches)
    )
    assert len(stub.batches) < 300  # they shared batches


def test_batches_hold_requests_of_one_group_the_oldest_first(held):
    stub, queue = held
    wait_for_worker(queue)
    tasks = ["a", "b", "a", "a", "b", "a", "a"]
    futures = [queue.submit(ask(f"{task}{i}", task)) for i, task in enumerate(tasks)]
    stub.may_decode.set()
    concurrent.futures.wait(futures, SECONDS)
    assert stub.batches == [["first"], ["a0", "a2", "a3", "a5"], ["b1", "b4"], ["a6"]]


def test_a_request_waits_for_others_for_a_moment_only():
    stub = StubPredictor(batch_size=4)
    queue = PredictionQueue(stub, max_delay_s=SECONDS)
    futures = [queue.submit(ask(str(index))) for index in range(4)]
    concurrent.futures.wait(futures, SECONDS / 2)  # a full batch waits for nothing
    assert stub.batches == [["0", "1", "2", "3"]]
    alone = queue.submit(ask("4"))
    assert queue.drain(SECONDS / 2)  # draining ends the wait
    assert alone.result(0).text == "4"


def test_an_error_of_one_request_leaves_the_others_of_its_batch(held):
    stub, queue = held
    wait_for_worker(queue)
    futures = [queue.submit(ask(text)) for text in ("a", "fail", "b")]
    stub.may_decode.set()
    assert [futures[i].result(SECONDS).text for i in (0, 2)] == ["a", "b"]
    with pytest.raises(ValueError, match="no output for 'fail'"):
        futures[1].result(SECONDS)
    assert queue.counts.failed == 1 and queue.counts.answered == 3
    assert stub.batches[1] == ["a", "fail", "b"]


def test_a_batch_that_fails_as_a_whole_is_decoded_one_by_one(held):
    stub, queue = held
    wait_for_worker(queue)
    futures = [queue.submit(ask(text)) for text in ("a", "break", "b")]
    stub.may_decode.set()
    assert [futures[i].result(SECONDS).text for i in (0, 2)] == ["a", "b"]
    with pytest.raises(UnexpectedError, match="RuntimeError"):
        futures[1].result(SECONDS)
    assert queue.submit(ask("later")).result(SECONDS).text == "later"


def test_a_cancelled_request_is_never_decoded(held):
    stub, queue = held
    wait_for_worker(queue)
    futures = [queue.submit(ask(text)) for text in ("a", "b", "c")]
    assert futures[1].cancel()
    stub.may_decode.set()
    assert futures[2].result(SECONDS).text == "c"
    assert queue.drain(SECONDS)
    assert queue.counts.cancelled == 1 and queue.counts.waiting == 0
    assert not any("b" in batch for batch in stub.batches)


def test_a_full_queue_refuses_and_recovers(held):
    stub, queue = held
    futures = [wait_for_worker(queue), *(queue.submit(ask(str(i))) for i in range(11))]
    with pytest.raises(QueueFullError, match="12 requests wait already") as refused:
        queue.submit(ask("one too many"))
    assert refused.value.retry_after >= 1
    stub.may_decode.set()
    assert not concurrent.futures.wait(futures, SECONDS).not_done
    assert queue.submit(ask("again")).result(SECONDS).text == "again"
    assert queue.counts.refused == 1 and queue.counts.accepted == 13


def test_draining_finishes_what_was_accepted_and_refuses_the_rest(held):
    stub, queue = held
    futures = [wait_for_worker(queue), *(queue.submit(ask(str(i))) for i in range(9))]
    assert not queue.drain(timeout=0)  # it fails what still waits
    with pytest.raises(DrainingError, match="stopping"):
        queue.submit(ask("too late"))
    stub.may_decode.set()
    assert futures[0].result(SECONDS).text == "first"
    for future in futures[1:]:
        with pytest.raises(DrainingError):
            future.result(SECONDS)
    assert queue.counts.waiting == 0


def test_draining_without_a_timeout_answers_everything():
    stub = StubPredictor(seconds=0.01, batch_size=2)
    queue = PredictionQueue(stub)
    futures = [queue.submit(ask(str(index))) for index in range(20)]
    assert queue.drain()
    assert [future.result(0).text for future in futures] == list(map(str, range(20)))


def test_an_invalid_request_takes_no_place():
    queue = PredictionQueue(StubPredictor(), max_waiting=1)
    for _ in range(3):
        with pytest.raises(ValueError, match="invalid"):
            queue.submit(ask("invalid"))
    assert queue.submit(ask("good")).result(SECONDS).text == "good"
    assert queue.counts.invalid == 3 and queue.counts.accepted == 1


@pytest.mark.parametrize("path", ["/etc/passwd", "room.jpg", b"", 3])
def test_no_path_is_ever_opened(path):
    queue = PredictionQueue(StubPredictor())
    with pytest.raises(ValueError, match="image"):
        queue.submit(PredictionRequest("what?", image=path))


def test_long_texts_and_lists_are_refused():
    queue = PredictionQueue(StubPredictor(), limits=Limits(max_text_length=10, max_candidates=2))
    for request in (
        PredictionRequest("a" * 11),
        PredictionRequest("a", candidates=["a", "b", "c"]),
        PredictionRequest("a", Image.new("L", (6000, 5000))),
        PredictionRequest("a", np.broadcast_to(np.uint8(0), (6000, 5000, 3))),
        PredictionRequest("a", candidates=["a" * 1000]),
    ):
        with pytest.raises(TooLargeError, match="the limit is"):
            queue.submit(request)


# ------------------------------------------------------------------------------ with a real model


@pytest.fixture(scope="module")
def predictor(run_directory):
    return ofa_jax.Predictor(run_directory, batch_size=3, source_lengths=(32, 64), beam_size=3)


def same(found, expected):
    assert (found.text, found.symbols) == (expected.text, expected.symbols)
    np.testing.assert_allclose(found.boxes, expected.boxes, rtol=1e-6)
    assert found.score == pytest.approx(expected.score, rel=1e-5)


def test_predictions_equal_those_of_the_predictor(predictor, image):
    queue = PredictionQueue(predictor)
    flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    requests = [
        PredictionRequest(GROUNDING, to_png(image)),
        PredictionRequest("what does the image describe?", image),
        PredictionRequest(GROUNDING, np.asarray(flipped)),
        PredictionRequest(GROUNDING, flipped),
        PredictionRequest(
            "what color is the car in the region? region: {region}", image, (5, 5, 40, 40)
        ),
        PredictionRequest("is it red?", image, candidates=["yes", "no"], score_all=True),
    ]
    futures = [queue.submit(request) for request in requests]
    for request, future in zip(requests, futures, strict=True):
        fields = {
            field.name: getattr(request, field.name)
            for field in dataclasses.fields(request)
            if field.name not in ("image", "instruction")
        }
        same(
            future.result(SECONDS),
            predictor.predict(request.image, request.instruction, **fields),
        )
    assert queue.drain(SECONDS)


def test_alternatives_are_the_other_hypotheses_the_best_first(predictor, image):
    found = predictor.predict(image, "what does the image describe?")
    scores = [found.score, *(other.score for other in found.alternatives)]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    assert len({found.symbols, *(other.symbols for other in found.alternatives)}) == 3
    assert all(other.alternatives == () for other in found.alternatives)


def test_scored_candidates_are_all_among_the_alternatives(predictor, image):
    candidates = ["yes", "no", "a red apple", "green"]
    found = predictor.predict(image, "is it red?", candidates=candidates, score_all=True)
    hypotheses = [found, *found.alternatives]
    assert {hypothesis.text for hypothesis in hypotheses} == set(candidates)
    scores = [hypothesis.score for hypothesis in hypotheses]
    assert scores == sorted(scores, reverse=True)
    # Only the candidates have probability.
    assert np.exp(scores).sum() == pytest.approx(1, abs=1e-4)


def test_a_truncated_instruction_is_a_warning(predictor, image):
    queue = PredictionQueue(predictor)
    future = queue.submit(PredictionRequest("what is this? " + "a red apple and " * 40, image))
    (warning,) = future.result(SECONDS).warnings
    assert "truncated to 64" in warning


def test_many_lists_of_candidates_do_not_keep_their_programs(predictor, image, monkeypatch):
    monkeypatch.setattr(prediction_queue, "_MAX_CANDIDATE_LISTS", 2)
    dropped = []
    monkeypatch.setattr(prediction_queue.jax, "clear_caches", lambda: dropped.append(1))
    queue = PredictionQueue(predictor)
    for words in (["yes"], ["no"], ["red"], ["yes"]):
        queue.submit(PredictionRequest("is it?", image, candidates=words)).result(SECONDS)
    assert len(dropped) == 1
