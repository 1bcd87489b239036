"""The endpoint: fields in and out, sentences for bad input, limits, other hosts."""

import base64
import http.client
import io
import json
import re
import socket
import time

import numpy as np
import pytest
from PIL import Image, ImageFile
from stub_server import StubPredictor, send

import ofa_jax
from ofa_jax.inference.predictions import to_png
from ofa_jax.serving.limits import Limits
from ofa_jax.serving.prediction_queue import PredictionQueue

pytest.importorskip("fastapi", reason="needs the extra demo")

GROUNDING = 'which region does the text "a red apple" describe?'


def base64_of(image):
    return base64.b64encode(to_png(image)).decode()


@pytest.fixture
def stub():
    return StubPredictor()


@pytest.fixture
def port(serving, stub):
    limits = Limits(max_image_bytes=1 << 20, requests_per_second=0, max_text_length=500)
    return serving(PredictionQueue(stub, limits=limits))


# ------------------------------------------------------------------------------------ bad bodies

BAD_BODIES = {
    b"": "The body is empty",
    b"{": "The body is not JSON",
    b"\xff\xfe{}": "The body is not UTF-8",
    b"[1]": "The body is a list",
    b"null": "The body is null",
    b'"text"': "The body is text",
    b"[" * 100_000: "nested too deeply",
    b'{"instruction": "a", "region": [0, 0, NaN, 1]}': "NaN is no number of JSON",
    b'{"instruction": "a", "region": [0, 0, Infinity, 1]}': "Infinity is no number",
    b'{"instruction": "a", "region": [0, 0, 1e999, 1]}': "four finite numbers",
    b'{"instruction": "a", "region": [0, 0, 1' + b"0" * 400 + b", 1]}": "four finite numbers",
    b'{"instruction": "a", "region": [0, 0, 1' + b"0" * 5000 + b", 1]}": "not JSON",
    b'{"instruction": "a", "instruction": "b"}': "given more than once",
    b"{}": "neither an instruction nor a task",
    b'{"instruction": "  "}': "instruction is empty",
    b'{"instruction": 3}': "The field instruction is a number; it must be text",
    b'{"instruction": ["a"]}': "The field instruction is a list",
    b'{"instrucion": "a"}': "Did you mean instruction?",
    b'{"instruction": "a", "zzz": 1}': "Known are image, instruction, task",
    b'{"instruction": "a", "image": 3}': "The field image is a number",
    b'{"instruction": "a", "image": ""}': "The image is empty",
    b'{"instruction": "a", "image": "/etc/passwd"}': "is not an image|cannot be decoded|not base64",
    b'{"instruction": "a", "image": "../room.jpg"}': "opens no files of its own",
    b'{"instruction": "a", "image": "http://10.0.0.1/a.png"}': "is a URL, and the server fetches",
    b'{"instruction": "a", "image": "file:///etc/passwd"}': "is a URL",
    b'{"instruction": "a", "image": "data:image/png,abc"}': "data URL without base64",
    b'{"instruction": "a", "image": "aGVsbG8gd29ybGQ="}': "is not a JPEG, PNG",
    b'{"instruction": "a", "image": "\\ud83d"}': "not base64",
    b'{"instruction": "a", "region": "0 0 1 1"}': "The field region is text",
    b'{"instruction": "a", "region": [1, 2, 3]}': "must be four finite numbers",
    b'{"instruction": "a", "region": [1, 2, 3, true]}': "must be four finite numbers",
    b'{"instruction": "a", "region": [1, 2, 3, "4"]}': "must be four finite numbers",
    b'{"instruction": "a", "candidates": "yes"}': "The field candidates is text",
    b'{"instruction": "a", "candidates": ["yes", 1]}': "has a number among its texts",
    b'{"instruction": "a", "score_all": 1}': "The field score_all is a number",
    b'{"instruction": "a", "num_candidates": 0}': "from 1 to 64",
    b'{"instruction": "a", "num_candidates": 2.5}': "is 2.5; it must be a whole number",
    b'{"instruction": "a", "num_candidates": true}': "it must be a whole number",
    b'{"instruction": "a", "id": {}}': "The field id is an object",
    b'{"task": "image_captionin"}': "Did you mean image_captioning?",
    b'{"task": "visual_grounding"}': "needs an instruction, such as",
    b'{"instruction": "invalid"}': "The instruction is invalid.",
}


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda body: body[:40].decode("latin-1"))
def test_a_bad_body_is_answered_by_a_sentence(shared_port, body):
    status, _, answer = send(shared_port, body)
    assert status == 400, answer
    assert list(answer) == ["error"]
    assert re.search(BAD_BODIES[body], answer["error"]), answer
    assert answer["error"][0].isupper() and answer["error"][-1] in ".?"
    assert len(answer["error"]) < 500 and "\n" not in answer["error"]


@pytest.fixture(scope="module")
def shared_port():
    """Returns the port of a server that lives as long as the module."""
    import contextlib
    import threading

    from ofa_jax.serving.http_app import make_app
    from ofa_jax.serving.server import DrainingServer, open_listener

    queue = PredictionQueue(StubPredictor(), limits=Limits(requests_per_second=0))
    started = threading.Event()
    server = DrainingServer(make_app(queue), queue, started.set)
    with contextlib.closing(open_listener("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        assert started.wait(30)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(30)
    assert queue.counts.accepted == 0 or queue.counts.waiting == 0


def test_a_bad_body_ends_nothing(shared_port):
    for body in BAD_BODIES:
        send(shared_port, body)
    assert send(shared_port, {"instruction": "still here"})[2]["answer"] == "still here"


def test_an_image_of_100_megapixels_is_refused_by_its_header(port, stub, monkeypatch):
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    image = base64.b64encode(buffer.getvalue()).decode()
    status, _, answer = send(port, {"instruction": "a", "image": image})
    assert status == 413 and "10000 x 10000 pixels; the limit is 25,000,000" in answer["error"]
    assert stub.batches == []


def test_large_bodies_images_and_texts_are_refused(port, stub):
    too_long = {"instruction": "a" * 501}
    assert send(port, too_long)[0] == 413
    image = {"instruction": "a", "image": base64.b64encode(bytes(1_060_000)).decode()}
    status, _, answer = send(port, image)
    assert status == 413 and "the limit is 1,048,576" in answer["error"]
    status, _, answer = send(port, b" " * 3_000_000)
    assert status == 413 and "The body has 3,000,000 bytes" in answer["error"]
    assert send(port, {"instruction": "a", "candidates": ["a"] * 65})[0] == 413
    assert stub.batches == []


def test_a_chunked_body_is_counted_while_it_arrives(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(
        "POST",
        "/predict",
        iter([b" " * 65536] * 100),
        {"Content-Type": "application/json"},
        encode_chunked=True,
    )
    response = connection.getresponse()
    assert response.status == 413 and "or more; the limit is" in response.read().decode()
    connection.close()


def test_a_body_that_does_not_arrive_is_given_up(serving):
    queue = PredictionQueue(StubPredictor(), limits=Limits(body_timeout_s=0.2))
    with socket.create_connection(("127.0.0.1", serving(queue)), 30) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        # The client still has not sent it, so nobody waits for the rest for long.
        assert b" 408 " in connection.recv(4096)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
    ],
)
def test_only_json_is_taken(port, kind, status):
    found, _, answer = send(port, {"instruction": "a"}, headers={"Content-Type": kind})
    assert found == status
    assert status == 200 or "as application/json" in answer["error"]


def test_other_methods_and_paths_are_sentences(port):
    status, headers, answer = send(port, None, "GET")
    assert status == 405 and headers["Allow"] == "POST" and "but POST" in answer["error"]
    status, _, answer = send(port, {}, path="/predictions")
    assert status == 404 and "POST /predict" in answer["error"]


def test_too_many_requests_of_a_client_are_refused(serving):
    limits = Limits(requests_per_second=0.5, burst=3)
    port = serving(PredictionQueue(StubPredictor(), limits=limits))
    found = [send(port, {"instruction": "a"}) for _ in range(4)]
    assert [status for status, _, _ in found] == [200, 200, 200, 429]
    assert 1 <= int(found[3][1]["Retry-After"]) <= 3
    assert "wait" in found[3][2]["error"]


def test_a_full_queue_says_when_to_try_again(serving, stub):
    stub.may_decode.clear()
    queue = PredictionQueue(stub, max_waiting=1)
    port = serving(queue)
    waiting = queue.submit(ofa_jax.serving.prediction_queue.PredictionRequest("first"))
    status, headers, answer = send(port, {"instruction": "second"})
    assert status == 503 and int(headers["Retry-After"]) >= 1 and "wait already" in answer["error"]
    stub.may_decode.set()
    assert waiting.result(30).text == "first"


def test_a_request_without_output_and_one_on_which_the_server_fails(port):
    status, _, answer = send(port, {"instruction": "fail"})
    assert status == 422 and answer["error"] == "No output for 'fail'."
    status, _, answer = send(port, {"instruction": "break"})
    assert status == 500 and "RuntimeError" in answer["error"] and "fire" not in answer["error"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost"}, 200),
        ({"Host": "127.0.0.1:99"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "LOCALHOST.:80"}, 200),
        ({"Host": "rebind.example"}, 403),
        ({"Host": "localhost.rebind.example"}, 403),
        ({"Host": "127.0.0.1.rebind.example:8000"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
        ({"Host": "localhost:1", "Origin": "http://rebind.example"}, 403),
        ({"Host": "localhost:1", "Origin": "null"}, 403),
    ],
    ids=str,
)
def test_names_and_pages_of_others_are_refused(shared_port, headers, status):
    for path, method, fields in (("/health", "GET", None), ("/predict", "POST", b"{}")):
        given = headers | {"Content-Type": "application/json"}
        found, _, answer = send(shared_port, fields, method, path, given)
        assert found == status or (path == "/predict" and found == 400 and status == 200)
        assert status == 200 or "server" in answer["error"]


def test_a_name_of_the_server_can_be_allowed(serving, stub):
    port = serving(PredictionQueue(stub), allowed_hosts=["demo.example"])
    assert send(port, None, "GET", "/health", {"Host": "demo.example:80"})[0] == 200
    assert send(port, None, "GET", "/health", {"Host": "other.example"})[0] == 403
    origin = {"Host": "127.0.0.1:80", "Origin": "https://demo.example"}  # behind a proxy
    assert send(port, None, "GET", "/health", origin)[0] == 200


# ------------------------------------------------------------------------- clients that go away


def post(port, body, length=None):
    """Opens a connection and sends a request, or a part of it."""
    connection = socket.create_connection(("127.0.0.1", port), 30)
    head = (
        "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_request_whose_client_has_gone_is_not_decoded(serving, stub):
    stub.may_decode.clear()
    queue = PredictionQueue(stub, max_delay_s=0)
    port = serving(queue)
    first = queue.submit(ofa_jax.serving.prediction_queue.PredictionRequest("first"))
    until(first.running)
    connection = post(port, b'{"instruction": "nobody waits"}')
    until(lambda: queue.counts.accepted == 2)
    # A reset, as of a killed process.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()
    until(lambda: any(waiting.future.cancelled() for waiting in queue._waiting))
    stub.may_decode.set()
    assert send(port, {"instruction": "next"})[2]["answer"] == "next"
    assert stub.batches == [["first"], ["next"]]
    assert queue.counts.cancelled == 1


def test_a_client_that_dies_in_the_middle_of_its_body_is_forgotten(serving, stub):
    queue = PredictionQueue(stub)
    port = serving(queue)
    for _ in range(20):
        post(port, b'{"instruction": "ha', length=100_000).close()
    assert send(port, {"instruction": "next"})[2]["answer"] == "next"
    assert queue.counts.accepted == 1 and queue.num_open == 0


# -------------------------------------------------------------------------------- descriptions


def test_health_says_what_became_of_the_requests(port):
    send(port, {"instruction": "a"})
    send(port, {"instruction": "fail"})
    status, _, answer = send(port, None, "GET", "/health")
    assert status == 200 and answer["status"] == "ok"
    assert (answer["accepted"], answer["answered"], answer["failed"]) == (2, 1, 1)
    assert send(port, None, "HEAD", "/health")[0] == 200


def test_health_says_that_the_server_stops(serving, stub):
    queue = PredictionQueue(stub)
    port = serving(queue)
    queue.stop_accepting()
    status, _, answer = send(port, None, "GET", "/health")
    assert status == 503 and answer["status"] == "stopping"
    status, headers, _ = send(port, {"instruction": "a"})
    assert status == 503 and "Retry-After" in headers


def test_openapi_describes_the_fields(port):
    _, _, description = send(port, None, "GET", "/openapi.json")
    operation = description["paths"]["/predict"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert {"image", "instruction", "task", "region", "candidates"} <= set(schema["properties"])
    assert {"200", "400", "413", "429", "503"} <= set(operation["responses"])
    assert set(description["paths"]) == {"/predict", "/health"}


def test_the_page_about_the_endpoint_loads_nothing(port):
    status, headers, page = send(port, None, "GET", "/docs")
    assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"]
    page = page.decode()
    loaded = re.findall(r'(?:src|href|action)="([^"]*)"', page)
    assert loaded == ["data:,", "openapi.json"]
    assert "@import" not in page and "url(" not in page
    assert "num_candidates" in page and f"127.0.0.1:{port}/predict" in page


# ------------------------------------------------------------------------------ with a real model


@pytest.fixture(scope="module")
def predictor(run_directory):
    return ofa_jax.Predictor(run_directory, batch_size=3, source_lengths=(32, 64), beam_size=3)


@pytest.fixture
def model_port(serving, predictor):
    return serving(PredictionQueue(predictor))


def test_an_answer_has_the_fields_of_a_prediction(model_port, predictor, image):
    fields = {"id": "a 1", "image": base64_of(image), "instruction": GROUNDING}
    status, _, answer = send(model_port, fields)
    expected = predictor.predict(image, GROUNDING)
    assert status == 200 and answer["id"] == "a 1" and answer["instruction"] == GROUNDING
    np.testing.assert_allclose(answer["boxes"], expected.boxes, rtol=1e-6)
    assert answer["box"] == answer["boxes"][0]
    assert answer["score"] == pytest.approx(expected.score, rel=1e-5)
    assert len(answer["candidates"]) == 3
    assert answer["candidates"][0]["boxes"] == answer["boxes"]
    scores = [candidate["score"] for candidate in answer["candidates"]]
    assert scores == sorted(scores, reverse=True)


def test_a_task_may_stand_for_its_instruction(model_port, image):
    fields = {"image": f"data:image/png;base64,{base64_of(image)}", "task": "image_captioning"}
    status, _, answer = send(model_port, fields | {"num_candidates": 1})
    assert status == 200 and answer["instruction"] == "what does the image describe?"
    assert len(answer["candidates"]) == 1


def test_a_region_must_lie_in_the_image(model_port, image):
    fields = {"image": base64_of(image), "task": "grounded_captioning", "region": [0, 0, 40, 30]}
    assert send(model_port, fields)[0] == 200
    for region in ([0, 0, 400, 300], [40, 30, 0, 0], [0, 0, 0, 0]):
        status, _, answer = send(model_port, fields | {"region": region})
        assert status == 400 and "not a box x0, y0, x1, y1 within the image" in answer["error"]


def test_candidates_are_scored(model_port, image):
    fields = {"image": base64_of(image), "instruction": "is it red?", "score_all": True}
    status, _, answer = send(model_port, fields | {"candidates": ["yes", "no", "a car"]})
    assert status == 200
    assert {found["answer"] for found in answer["candidates"]} == {"yes", "no", "a car"}
    status, _, answer = send(model_port, fields)
    assert status == 400 and "no candidates to score" in answer["error"]


def test_a_generated_image_is_a_png_file(model_port, image):
    fields = {"image": base64_of(image), "task": "image_infilling"}
    status, _, answer = send(model_port, fields)
    assert status == 200 and len(answer["codes"]) > 0
    generated = Image.open(io.BytesIO(base64.b64decode(answer["image"])))
    assert generated.format == "PNG" and generated.size[0] >= 8
    json.dumps(answer, allow_nan=False)
