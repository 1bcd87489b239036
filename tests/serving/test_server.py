"""The server as a process of its own: many clients, memory, SIGTERM."""

import base64
import collections
import concurrent.futures
import io
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from stub_server import send

pytest.importorskip("fastapi", reason="needs the extra demo")

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLIENTS = 200


class Server:
    """A server with a stub in a process of its own."""

    def __init__(self, *arguments, program="tests/helpers/stub_server.py"):
        path = os.pathsep.join(
            [str(ROOT), str(ROOT / "tests/helpers"), os.environ.get("PYTHONPATH", "")]
        )
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / program), *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline()
        found = re.fullmatch(r"Serving at http://127\.0\.0\.1:(\d+)\n", line)
        assert found, line + self.process.stderr.read()
        self.port = int(found[1])

    def health(self):
        return send(self.port, None, "GET", "/health")[2]

    def memory(self, name="VmRSS"):
        """Returns the resident memory in bytes; VmHWM is its peak."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) << 10

    def wait_until(self, condition):
        """Waits until the health of the server meets a condition; returns it."""
        end = time.monotonic() + 30
        while not condition(health := self.health()):
            assert time.monotonic() < end, health
            time.sleep(0.02)
        return health

    def stop(self, number=signal.SIGTERM):
        """Stops it; returns its exit code, the counts and what it wrote to standard error."""
        self.process.send_signal(number)
        output, errors = self.process.communicate(timeout=60)
        return self.process.returncode, json.loads(output.splitlines()[-1]), errors

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def at_once(number, function):
    """Calls a function in as many threads as there are numbers."""
    with concurrent.futures.ThreadPoolExecutor(number) as threads:
        return list(threads.map(function, range(number)))


def noise(side, seed=0):
    """Returns a PNG file of three bytes per pixel, in base64."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return base64.b64encode(buffer.getvalue()).decode()


def test_200_clients_at_once_and_no_growth_of_memory():
    """Of 200 clients everyone gets its own answer, again and again, in the same memory.

    Four rounds after the first two would add four times what a request leaves behind. A copy of
    each body, the smallest thing worth noticing, would be four rounds of bodies: one is allowed.
    """
    image = noise(96)
    body = {"instruction": "", "image": image}

    def client(number):
        status, _, answer = send(server.port, body | {"instruction": f"client {number}"})
        return status, answer.get("answer")

    with Server(0.005, 256) as server:
        expected = [(200, f"client {number}") for number in range(CLIENTS)]
        for _ in range(2):
            assert at_once(CLIENTS, client) == expected
        before = server.memory()
        for _ in range(4):
            assert at_once(CLIENTS, client) == expected
        grown = server.memory() - before
        assert grown < CLIENTS * len(image)
        code, counts, errors = server.stop()
    assert code == 0 and counts["answered"] == counts["accepted"] == 6 * CLIENTS, errors
    assert counts["batches"] < 6 * CLIENTS and "Traceback" not in errors


def test_more_clients_than_places_are_answered_or_told_to_come_back():
    def client(number):
        status, headers, answer = send(server.port, {"instruction": f"client {number}"})
        return status, answer.get("answer") == f"client {number}", "Retry-After" in headers

    with Server(0.05, 16) as server:
        found = collections.Counter(at_once(CLIENTS, client))
        answered = found[200, True, False]
        assert answered >= 16 and answered + found[503, False, True] == CLIENTS
        code, counts, _ = server.stop()
    assert code == 0 and counts["answered"] == counts["accepted"] == answered


def test_images_of_100_megapixels_take_no_memory():
    """Decoding one would take a byte for each pixel at the least."""
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    body = {"instruction": "a", "image": base64.b64encode(buffer.getvalue()).decode()}
    with Server(0, 64) as server:
        assert send(server.port, {"instruction": "a", "image": noise(96)})[0] == 200
        before = server.memory("VmHWM")
        found = at_once(20, lambda _: send(server.port, body))
        assert {status for status, _, _ in found} == {413}
        assert server.memory("VmHWM") - before < 10_000 * 10_000
        assert send(server.port, {"instruction": "a"})[0] == 200


@pytest.mark.slow
def test_waiting_requests_hold_no_images():
    """Sixty images of 1.9 MB wait as arrays of 48 x 48 pixels, behind a batch of a second.

    Measured once all are accepted, so that no body is on its way. Their pixels alone would take
    three quarters of their bodies; half of these is left to what the allocator keeps.
    """
    body = {"instruction": "a", "image": noise(800)}
    size = len(body["image"])
    with Server(1, 256) as server:
        assert send(server.port, body)[0] == 200
        before = server.memory()
        with concurrent.futures.ThreadPoolExecutor(60) as threads:
            futures = [threads.submit(send, server.port, body) for _ in range(60)]
            # No body is on its way any more; at most three batches of eight have left the queue.
            health = server.wait_until(lambda health: health["accepted"] >= 61)
            assert health["waiting"] >= 60 - 8 * 3
            grown = server.memory() - before
            server.process.kill()
            concurrent.futures.wait(futures)
    assert grown < 60 * size / 2


def test_clients_that_are_killed_in_the_middle_leave_nothing_behind():
    body = json.dumps({"instruction": "a", "image": noise(200)}).encode()
    head = (
        "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()

    def client(number):
        with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
            part = len(body) if number % 2 else number * len(body) // CLIENTS
            connection.sendall(head + body[:part])
            # The connection is reset, as if the process was killed.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with Server(0.02, 256) as server:
        at_once(CLIENTS, client)
        before = server.memory()
        for _ in range(3):
            at_once(CLIENTS, client)
        assert send(server.port, {"instruction": "alive"})[2]["answer"] == "alive"
        assert server.memory() - before < CLIENTS * len(body)
        code, counts, errors = server.stop()
    assert code == 0 and counts["waiting"] == 0
    assert counts["accepted"] == counts["answered"] + counts["cancelled"]
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_finishes_what_was_accepted(number):
    with Server(0.4, 256) as server, concurrent.futures.ThreadPoolExecutor(30) as threads:
        texts = [f"client {index}" for index in range(30)]
        futures = [threads.submit(send, server.port, {"instruction": text}) for text in texts]
        waiting = server.wait_until(lambda health: health["accepted"] == 30)["waiting"]
        idle = socket.create_connection(("127.0.0.1", server.port), 30)
        code, counts, errors = server.stop(number)
        found = [future.result() for future in futures]
        idle.close()
        assert [(status, answer["answer"]) for status, _, answer in found] == [
            (200, text) for text in texts
        ]
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", server.port), 1)
    assert waiting > 8 and code == 0 and counts["drained"], errors
    assert counts["accepted"] == counts["answered"] == 30


def test_a_port_that_is_taken_is_a_sentence():
    from ofa_jax.serving.server import open_listener

    with open_listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} cannot be used .*: give another port"):
            open_listener("127.0.0.1", port)
    with pytest.raises(OSError, match="cannot be used"):
        open_listener("192.0.2.1", 8000)


@pytest.mark.slow
def test_200_clients_share_a_real_model_in_the_same_memory(run_directory, image):
    """Mixes tasks, images and bad requests; every accepted one is answered, as often as asked.

    At first everything is compiled. A round answers 125 requests, so three more rounds that kept
    220 KiB of each would exceed the bound of 80 MiB.
    """
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    kinds = [
        {"instruction": 'which region does the text "a red apple" describe?', "image": encoded},
        {"task": "image_captioning", "image": encoded},
        {"instruction": "is it red?", "image": encoded, "candidates": ["yes", "no"]},
        {"instruction": 'what is the complete text of "the <mask>"?'},
        {"task": "image_infilling", "image": encoded},
        {"instruction": "what?", "image": base64.b64encode(b"text").decode()},
        {"instruction": "what?", "image": encoded, "region": [0, 0, 5000, 1]},
        {"instruction": ""},
    ]

    def client(number):
        return send(server.port, kinds[number % len(kinds)], timeout=300)

    with Server(run_directory, 256) as server:
        for kind in range(len(kinds)):  # alone, and then in batches
            client(kind)
        for _ in range(2):
            at_once(CLIENTS, client)
        before = server.memory()
        for _ in range(3):
            found = at_once(CLIENTS, client)
            for number, (status, _, answer) in enumerate(found):
                assert status == (200 if number % len(kinds) < 5 else 400), answer
            for kind in range(5):  # the same request, the same answer, in whatever batch
                texts = {found[n][2]["answer"] for n in range(kind, CLIENTS, len(kinds))}
                assert len(texts) == 1
        assert server.memory() - before < (80 << 20)
        code, counts, errors = server.stop()
    assert code == 0 and counts["answered"] == counts["accepted"], errors
    assert counts["accepted"] == 5 + 5 * CLIENTS * 5 // 8
    assert counts["failed"] == counts["refused"] == 0
