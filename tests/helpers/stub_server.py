"""A predictor that repeats the instruction, and a server with it.

    python tests/helpers/stub_server.py SECONDS_PER_BATCH MAX_WAITING [RATE]
    python tests/helpers/stub_server.py RUN_DIRECTORY MAX_WAITING [RATE]

With a run directory it is the server of a real predictor. It prints the line with its address, and
at the end the counts of its queue as JSON.
"""

import dataclasses
import http.client
import json
import pathlib
import sys
import threading
import time

import numpy as np

import ofa_jax
from ofa_jax.inference.predictions import Prediction


@dataclasses.dataclass(frozen=True, eq=False)
class StubRequest:
    """A prepared request; the group is the task."""

    text: str
    group: str | None
    pixels: np.ndarray | None


def make_prediction(text, score=-1.0):
    return Prediction(text, np.zeros((0, 4), np.float32), (), None, None, score, text)


class StubPredictor:
    """Answers with the instruction. `fail` and `break` in it are errors of a row and of a batch.

    Attributes:
      batches: the texts of each batch.
      may_decode: batches wait for it.
    """

    def __init__(self, seconds=0.0, batch_size=8):
        self.batch_size, self.seconds = batch_size, seconds
        self.batches: list[list[str]] = []
        self.may_decode = threading.Event()
        self.may_decode.set()

    def prepare(self, image, instruction, *, task=None, **options):
        if instruction == "invalid":
            raise ValueError("The instruction is invalid.")
        pixels = None if image is None else np.asarray(image.resize((48, 48)))
        return StubRequest(instruction, task, pixels)

    def decode(self, batch):
        assert len({request.group for request in batch}) == 1
        assert len(batch) <= self.batch_size
        self.may_decode.wait(60)
        time.sleep(self.seconds)
        texts = [request.text for request in batch]
        self.batches.append(texts)
        if any("break" in text for text in texts):
            raise RuntimeError("the device is on fire")
        return [
            ValueError(f"no output for {text!r}") if "fail" in text else make_prediction(text)
            for text in texts
        ]


def send(port, fields, method="POST", path="/predict", headers=None, timeout=60):
    """Sends a request; returns status, headers and the parsed body of the response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        body = fields if isinstance(fields, bytes | None) else json.dumps(fields).encode()
        given = {"Content-Type": "application/json"} if headers is None else headers
        connection.request(method, path, body, given)
        response = connection.getresponse()
        content = response.read()
        is_json = response.headers.get_content_type() == "application/json"
        return (
            response.status,
            response.headers,
            json.loads(content) if is_json and content else content,
        )
    finally:
        connection.close()


def main():
    from ofa_jax.serving.http_app import make_app
    from ofa_jax.serving.limits import Limits
    from ofa_jax.serving.prediction_queue import PredictionQueue
    from ofa_jax.serving.server import serve

    source, max_waiting = sys.argv[1], int(sys.argv[2])
    if pathlib.Path(source).is_dir():
        predictor = ofa_jax.Predictor(source, batch_size=8, source_lengths=(32,), beam_size=3)
    else:
        predictor = StubPredictor(float(source))
    rate = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    limits = Limits(requests_per_second=rate)
    queue = PredictionQueue(predictor, limits=limits, max_waiting=max_waiting)
    drained = serve(make_app(queue), queue, port=0, announce=lambda line: print(line, flush=True))
    print(json.dumps(dataclasses.asdict(queue.counts) | {"drained": drained}), flush=True)


if __name__ == "__main__":
    main()
