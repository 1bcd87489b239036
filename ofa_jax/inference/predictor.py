"""A trained model asked in Python.

    import ofa_jax

    predictor = ofa_jax.Predictor("runs/pretrain_scenes")
    answer = predictor.predict("room.jpg", 'which region does the text "a red apple" describe?')
    answer.boxes                       # float32 [1, 4], pixels of room.jpg

Nothing is compiled before the first question; then once for each shape (a length of instructions,
one question or a batch of them, with an image or without) and way of decoding.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from ofa_jax.data.features import Example, Stream, empty_features, stack, to_features
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation.batch_decoder import BatchDecoder
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.postprocess import BoxTransform
from ofa_jax.inference import requests
from ofa_jax.inference.loading import LoadedModel, load
from ofa_jax.inference.requests import Box, Prediction, Request
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers import ImageTokenizer
from ofa_jax.tokenizers.vocabulary import OFAVocabulary

SOURCE_LENGTHS = (32, 64, 128, 256, 512)
"""In tokens. An instruction is padded to the next one; a longer one than the last is cut."""
_MOST_ANSWERERS = 32


class Predictor:
    """A checkpoint that answers.

    Attributes:
      loaded: its model, parameters and interface.
    """

    def __init__(
        self,
        checkpoint: str | LoadedModel,
        *,
        vocabulary: OFAVocabulary | str | None = None,
        image_tokenizer: ImageTokenizer | None = None,
        image_size: int | None = None,
        max_image_size: int | None = None,
        dtype: str | None = None,
        partitioner: Partitioner | None = None,
        beam_size: int = 5,
        batch_size: int = 8,
        source_lengths: Sequence[int] = SOURCE_LENGTHS,
        seed: int = 0,
    ):
        """Reads a checkpoint; compiles nothing.

        Args:
          checkpoint: a run directory, a folder `checkpoints/<step>`, or a checkpoint of the
            original (`.pt`, or a folder with `pytorch_model.bin`).
          vocabulary: where the checkpoint does not say it, see `loading.load`.
          image_tokenizer: that makes images of codes, where the run does not keep one.
          image_size: of the images that the model sees, in pixels a side; the run's when None.
          max_image_size: pixels that the last location bin stands for; the run's when None.
          dtype: "float32" or "bfloat16"; the run's when None.
          partitioner: the mesh; one device when None.
          beam_size: of beam search.
          batch_size: questions that `predict_batch` asks at once.
          source_lengths: to which instructions are padded, in tokens.
          seed: of answers that are drawn.

        Raises:
          FileNotFoundError, ValueError: with a sentence.
        """
        if not isinstance(checkpoint, LoadedModel):
            partitioner = partitioner or Partitioner(devices=tuple(jax.local_devices()[:1]))
            checkpoint = load(
                checkpoint,
                partitioner,
                vocabulary,
                dtype,
                image_tokenizer=image_tokenizer,
                image_size=image_size,
                max_image_size=max_image_size,
            )
        if batch_size < 1 or beam_size < 1 or not source_lengths or min(source_lengths) < 2:
            raise ValueError(
                f"batch_size is {batch_size}, beam_size {beam_size}, source_lengths "
                f"{tuple(source_lengths)}: give at least 1, 1, and lengths of at least 2 tokens."
            )
        self.loaded = checkpoint
        self._beam_size, self._seed = beam_size, seed
        # Every part of the mesh has a row, or several.
        self._parts = checkpoint.partitioner.num_data_shards
        self._batch_size = -(-batch_size // self._parts) * self._parts
        limit = checkpoint.model.config.max_source_positions
        self._lengths = sorted({min(length, limit) for length in source_lengths})
        self._answerers: collections.OrderedDict[Any, BatchDecoder] = collections.OrderedDict()
        self._batches = 0

    def predict(
        self,
        image: Any,
        instruction: str,
        *,
        region: Box | None = None,
        answers: Sequence[str] | None = None,
        score_all: bool = False,
        decoding: DecodingConfig | None = None,
    ) -> Prediction:
        """Asks one question.

        Args:
          image: a path, encoded bytes, a PIL image, an array uint8 [H, W, 3], or None.
          instruction: one of those that the model was trained on, or any other, as a person writes
            it: `what color is the car in the region? region: {region}`.
          region: x0, y0, x1, y1 in pixels of the image: the box that takes the place of
            `{region}`, or stands at the end of the instruction.
          answers: the only ones allowed, e.g. ["yes", "no"].
          score_all: score each of the answers, instead of searching among them.
          decoding: how the answer is searched; what is usual for the instruction when None.

        Raises:
          FileNotFoundError, ValueError: image, instruction or region cannot be used.
        """
        request = Request(instruction, requests.open_image(image), region)
        (prediction,) = self._ask([request], self._parts, answers, score_all, decoding)
        return prediction

    def predict_batch(
        self,
        images: Sequence[Any],
        instructions: str | Sequence[str],
        *,
        regions: Sequence[Box | None] | None = None,
        answers: Sequence[str] | None = None,
        score_all: bool = False,
        decoding: DecodingConfig | None = None,
    ) -> list[Prediction]:
        """Asks many questions, `batch_size` at once.

        Args:
          images: see `predict`.
          instructions: one for all, or one for each image.
          regions: one for each image, or None.
          answers, score_all, decoding: for all, see `predict`.

        Returns:
          The answers in the order of the questions.
        """
        wordings = [instructions] * len(images) if isinstance(instructions, str) else instructions
        boxes = [None] * len(images) if regions is None else regions
        if not len(images) == len(wordings) == len(boxes):
            raise ValueError(
                f"{len(images)} images, {len(wordings)} instructions and {len(boxes)} regions: "
                "give one of each for every question."
            )
        asked = [
            Request(wording, requests.open_image(image), box)
            for image, wording, box in zip(images, wordings, boxes, strict=True)
        ]
        return self._ask(asked, self._batch_size, answers, score_all, decoding)

    # --------------------------------------------------------------------------------- batches

    def _ask(
        self,
        asked: list[Request],
        size: int,
        allowed: Sequence[str] | None,
        score_all: bool,
        decoding: DecodingConfig | None,
    ) -> list[Prediction]:
        interface = self.loaded.interface
        made: list[tuple[Example, BoxTransform | None]] = []
        groups = collections.defaultdict(list)
        if decoding is None and allowed is not None:
            decoding = self._search_for(allowed)
        for place, request in enumerate(asked):
            how = requests.manner(
                request.instruction, interface, self.loaded.model.config, self._beam_size
            )
            if decoding is not None:
                how = dataclasses.replace(how, decoding=decoding)
            made.append(requests.make(request, interface, how))
            groups[how, self._length(made[-1][0]), request.image is None].append(place)
        found: list[Prediction | None] = [None] * len(asked)
        for (how, length, no_image), places in groups.items():
            answerer = self._answerer(how.decoding, allowed, score_all)
            stream = Stream(
                "questions",
                "predict",
                size,
                {"inputs": length, "targets": 1},
                image_size=None if no_image else how.image_size,
                code_targets=how.code_grid > 0,
            )
            for some in _chunks(places, size):
                written = answerer(
                    self.loaded.variables,
                    _batch([made[place][0] for place in some], stream),
                    self._batches,
                )
                self._batches += 1
                for row, place in enumerate(some):
                    found[place] = requests.read(*written.best(row), interface, made[place][1])
        return found

    def _search_for(self, allowed: Sequence[str]) -> DecodingConfig:
        """Among allowed answers. The trie knows where each ends."""
        if not allowed:
            raise ValueError("The list of allowed answers is empty.")
        encode = self.loaded.interface.vocabulary.encode
        longest = max(len(encode(text)) for text in _spaced(allowed))
        return DecodingConfig(beam_size=self._beam_size, max_length=longest)

    def _length(self, example: Example) -> int:
        """The length that the instruction is padded to."""
        tokens = len(example["inputs"])
        if tokens > self._lengths[-1]:
            logging.warning("An instruction of %d tokens is cut to %d.", tokens, self._lengths[-1])
        return next((length for length in self._lengths if length >= tokens), self._lengths[-1])

    def _answerer(
        self, decoding: DecodingConfig, allowed: Sequence[str] | None, score_all: bool
    ) -> BatchDecoder:
        """The compiled program of a way of asking; the latest ones are kept."""
        key = decoding, None if allowed is None else tuple(allowed), score_all
        if key not in self._answerers:
            judging = EvalSpec(
                "predict",
                "text",
                references=lambda record: None,
                metrics=(),
                decoding=decoding,
                candidates=None if allowed is None else lambda: _spaced(allowed),
                score_all=score_all,
            )
            self._answerers[key] = BatchDecoder(
                self.loaded.model,
                judging,
                self.loaded.interface.vocabulary,
                self.loaded.partitioner,
                seed=self._seed,
            )
        self._answerers.move_to_end(key)
        if len(self._answerers) > _MOST_ANSWERERS:
            self._answerers.popitem(last=False)
        return self._answerers[key]


def _spaced(allowed: Sequence[str]) -> list[str]:
    """As answers are written in training."""
    return [f" {answer.strip()}" for answer in allowed]


def _chunks(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]


def _batch(examples: Sequence[Example], stream: Stream) -> dict[str, np.ndarray]:
    """Rows of examples; empty ones fill up the batch."""
    rng = np.random.default_rng(0)  # nothing is drawn: all patches are seen
    rows = [to_features(example, stream, 0, rng) for example in examples]
    rows += [empty_features(stream, 0)] * (stream.batch_size - len(rows))
    return stack(rows)
