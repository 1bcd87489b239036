"""Arguments of the Predictor: answered, or refused in a sentence before anything is compiled."""

import pathlib
import random
from typing import Any

import numpy as np
from PIL import Image

from fuzz import cases, good
from fuzz.mutations import integer, json_value, mutate_bytes, text
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation.batch_decoder import DecodedBatch
from ofa_jax.inference.loading import LoadedModel
from ofa_jax.inference.predictor import Predictor
from ofa_jax.model import OFA
from ofa_jax.sharding import Partitioner

_REFUSALS = (ValueError, TypeError, OSError)


class PythonRequests(cases.Target):
    """Calls `predict` and `predict_batch` with a decoder that draws tokens."""

    name = "requests"

    def prepare(self, folder: pathlib.Path) -> None:
        """Makes a Predictor without parameters."""
        loaded = LoadedModel(
            "none", OFA(good.model_config()), None, good.processor(), Partitioner()
        )
        self._predictor = Predictor(loaded, batch_size=2)
        size = loaded.processor.vocabulary.vocab_size

        def decoder(*_: Any) -> Any:
            def decode(variables: Any, batch: Any, *, seeds: list[int]) -> DecodedBatch:
                rows = len(batch["encoder_input_tokens"])
                generator = np.random.default_rng(seeds[0])
                tokens = generator.integers(0, size, (rows, 2, 6), np.int32)
                return DecodedBatch(tokens, generator.normal(size=(rows, 2)).astype(np.float32))

            return decode

        self._predictor._decoder._find_decoder = decoder  # type: ignore[method-assign]
        self._path = folder / "plain.png"
        self._path.write_bytes(good.image(1))

    def run(self, rng: random.Random, folder: pathlib.Path) -> str:
        """Calls the Predictor with one to three odd arguments."""
        arguments: dict[str, Any] = {
            "image": good.image(0),
            "instruction": "what does the image describe?",
            "region": None,
            "candidates": None,
            "task": None,
            "decoding": None,
        }
        for _ in range(rng.choice((1, 1, 2, 3))):
            name = rng.choice(list(arguments))
            arguments[name] = self._odd(rng, name, folder)
        keywords = {name: arguments[name] for name in ("region", "candidates", "task", "decoding")}
        if rng.random() < 0.7:
            prediction, error = cases.attempt(
                lambda: self._predictor.predict(
                    arguments["image"], arguments["instruction"], **keywords
                ),
                *_REFUSALS,
            )
            found = [prediction]
        else:
            images = rng.choice(([arguments["image"]] * 3, [], arguments["image"]))
            texts = rng.choice((arguments["instruction"], [arguments["instruction"]] * 3))
            keywords["regions"] = [keywords.pop("region")] * 3
            found, error = cases.attempt(
                lambda: self._predictor.predict_batch(images, texts, **keywords), *_REFUSALS
            )
        if error is not None:
            return cases.REFUSED
        assert found is not None
        for prediction in found:
            cases.check(isinstance(prediction.text, str), "a prediction has no text")
            cases.check(np.isfinite(prediction.score), "a prediction has no finite score")
            cases.check(np.isfinite(prediction.boxes).all(), "a box is not finite")
        self._check_letters(arguments)
        return cases.ACCEPTED

    def _check_letters(self, arguments: dict[str, Any]) -> None:
        cases.check(not isinstance(arguments["candidates"], str | bytes), "letters are candidates")
        cases.check(not isinstance(arguments["region"], str | bytes), "letters are a region")
        image = arguments["image"]
        if isinstance(image, np.ndarray | Image.Image):
            cases.check(min(np.shape(image)[:2]) > 0, "an image without pixels is answered")

    def _odd(self, rng: random.Random, name: str, folder: pathlib.Path) -> Any:
        """Returns an odd value of an argument."""
        if name == "image":
            return self._odd_image(rng, folder)
        if name == "instruction":
            return rng.choice((text(rng), f"what is {text(rng)}?", json_value(rng), b"what"))
        if name == "candidates":
            words = ["yes", "no", text(rng)]
            return rng.choice(
                (words, tuple(words), set(words), "yes", b"yes", [], [""], ["yes", "yes"],
                 (word for word in words), {"yes": 1}, [None], [7], json_value(rng),
                 np.array(["yes", "no"]), ["yes " * 300], iter([])),
            )  # fmt: skip
        if name == "task":
            return rng.choice(("visual_grounding", "image_captioning", json_value(rng)))
        if name == "decoding":
            options = {"beam_size": integer(rng), "max_length": rng.choice((1, 2, integer(rng)))}
            made, _ = cases.attempt(lambda: DecodingConfig(**options), ValueError, TypeError)
            return made or json_value(rng)
        box = [rng.choice((0, 5, -1, 1e9, float("nan"), "7", None, integer(rng))) for _ in range(4)]
        return rng.choice(
            ([1, 2, 9, 9], np.array([1, 2, 9, 9]), box, np.array(box[:2] * 2, object), box[:3],
             "1234", [[1, 2, 9, 9]], {1, 2, 9, 8}, (x for x in (1, 2, 9, 9)), json_value(rng)),
        )  # fmt: skip

    def _odd_image(self, rng: random.Random, folder: pathlib.Path) -> Any:
        shape = rng.choice(((0, 5, 3), (5, 0, 3), (5, 5, 2), (5, 5), (5,), (), (1, 5, 5, 3)))
        dtype = rng.choice((np.uint8, np.float32, np.float64, np.int64, np.uint16, bool, object))
        return rng.choice(
            (
                None, str(self._path), self._path, bytearray(good.image(0)), good.image(1)[:-9],
                mutate_bytes(rng, good.image(1)), np.zeros(shape, dtype),
                np.zeros((6, 5, 3), dtype),
                np.zeros((5, 5, 4), np.uint8)[::2, ::-1], Image.new("RGB", (9, 0)),
                Image.new("I;16", (5, 5), 300), Image.new("F", (5, 5)), Image.new("LA", (5, 5)),
                Image.new("RGB", (1, 30_000)), str(folder), "missing.png", "", "a\0b", "\udce9",
                "/dev/zero", json_value(rng), memoryview(good.image(0)), [good.image(0)],
                np.zeros((1, 60_000, 3), np.uint8),
            )
        )  # fmt: skip


TARGETS = {"requests": PythonRequests}
