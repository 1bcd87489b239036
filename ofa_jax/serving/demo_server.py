"""What `ofa-demo` runs: a model, its queue, the page and the endpoint, on one port."""

import concurrent.futures
import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI

from ofa_jax.inference.image_generation import ImageGeneration
from ofa_jax.inference.job import print_line
from ofa_jax.inference.predictor import Predictor
from ofa_jax.interop import image_tokenizer_file
from ofa_jax.serving import schemas
from ofa_jax.serving.demo_page import add_demo_page, page_content
from ofa_jax.serving.http_app import make_app
from ofa_jax.serving.limits import Limits
from ofa_jax.serving.page_examples import find_examples
from ofa_jax.serving.prediction_queue import PredictionQueue
from ofa_jax.serving.prediction_requests import PredictionRequest
from ofa_jax.serving.server import serve

_WARM_UP_TASK = "image_captioning"


@dataclasses.dataclass(frozen=True)
class DemoServer:
    """A demo that is ready to run.

    Attributes:
      app: the page and the endpoint.
      queue: of their requests.
      host, port: the address to listen at.
    """

    app: FastAPI
    queue: PredictionQueue
    host: str
    port: int

    def run(self, announce: Callable[[str], None] = print_line) -> bool:
        """Serves until SIGTERM or Ctrl-C, and compiles the program of captions meanwhile.

        Args:
          announce: gets the lines that the user sees.

        Returns:
          Whether everything that was accepted has been answered.
        """
        warming: list[concurrent.futures.Future[Any]] = []

        def say_started(line: str) -> None:
            announce(line)
            announce(
                "Captions are being compiled now; the first question of another kind waits for "
                "its own program. Ctrl-C ends the demo."
            )
            warming.append(self.warm_up())

        drained = serve(self.app, self.queue, host=self.host, port=self.port, announce=say_started)
        # Nobody waits for the answer of the warm-up.
        only_warming = self.queue.num_open == 1 and any(not one.done() for one in warming)
        return drained or only_warming

    def warm_up(self) -> "concurrent.futures.Future[Any]":
        """Puts a question about a grey image into the queue, whose answer nobody waits for."""
        grey = np.full((64, 64, 3), 128, np.uint8)
        return self.queue.submit(
            PredictionRequest(schemas.EXAMPLE_INSTRUCTIONS[_WARM_UP_TASK], grey)
        )


def prepare(
    checkpoint: str,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    vocabulary: str | None = None,
    image_tokenizer: str | None = None,
    weights: str | None = None,
    dtype: str | None = None,
    batch_size: int = 8,
    beam_size: int = 5,
    max_image_bytes: int = 10 << 20,
    max_image_pixels: int = 25_000_000,
    max_waiting: int = 256,
    allowed_hosts: Sequence[str] = (),
    with_examples: bool = True,
    image_generation: ImageGeneration | None = None,
) -> DemoServer:
    """Loads a model and makes its page; compiles nothing.

    Args:
      checkpoint: see `Predictor`.
      host: the address to listen at.
      port: 0 for any free one.
      vocabulary: see `Predictor`.
      image_tokenizer: the file of a VQGAN, see `interop.image_tokenizer_file.read`.
      weights: see `Predictor`.
      dtype: see `Predictor`.
      batch_size: questions decoded at once.
      beam_size: of beam search.
      max_image_bytes: of an uploaded file.
      max_image_pixels: of an uploaded image.
      max_waiting: questions that may wait.
      allowed_hosts: names of this server besides localhost and addresses.
      with_examples: whether the page has examples of the run.
      image_generation: how images are generated from captions; one sample each when None.

    Raises:
      FileNotFoundError, ValueError: the checkpoint or an argument cannot be used.
      ModuleNotFoundError: Gradio is not installed.
    """
    tokenizer = None if image_tokenizer is None else image_tokenizer_file.read(image_tokenizer)
    predictor = Predictor(
        checkpoint,
        vocabulary=vocabulary,
        image_tokenizer=tokenizer,
        weights=weights,
        dtype=dtype,
        batch_size=batch_size,
        beam_size=beam_size,
        image_generation=image_generation,
    )
    limits = Limits(max_image_bytes=max_image_bytes, max_image_pixels=max_image_pixels)
    queue = PredictionQueue(predictor, limits=limits, max_waiting=max_waiting)
    app = make_app(queue, allowed_hosts=allowed_hosts)
    examples = find_examples(checkpoint) if with_examples else []
    title = os.fspath(pathlib.Path(predictor.loaded.name))
    add_demo_page(app, queue, page_content(title, predictor.loaded, examples))
    return DemoServer(app, queue, host, port)
