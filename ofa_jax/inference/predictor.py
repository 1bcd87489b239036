"""Inference with a trained model in Python.

    import ofa_jax

    predictor = ofa_jax.Predictor("runs/pretrain_scenes")
    prediction = predictor.predict(
        "room.jpg", 'which region does the text "a red apple" describe?'
    )
    prediction.boxes                   # float32 [1, 4], pixels of room.jpg

Nothing is compiled before the first call, and then once for each shape (length of instructions, one
request or a batch, with an image or without) and decoding configuration.
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
from ofa_jax.evaluation.postprocess import BoxTransform
from ofa_jax.inference import presets, requests
from ofa_jax.inference.loading import LoadedModel, load_model
from ofa_jax.inference.predictions import Prediction, parse_prediction
from ofa_jax.inference.presets import DecodePreset
from ofa_jax.inference.requests import Box, Request
from ofa_jax.preprocessing import instructions as wordings
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers import ImageTokenizer
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils import renamed

SOURCE_LENGTHS = (32, 64, 128, 256, 512)
"""In tokens. An instruction is padded to the next length; beyond the last one it is truncated."""
_MAX_DECODERS = 32


class Predictor:
    """A model for inference.

    Attributes:
      loaded: the model, its parameters and its processor.
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
        weights: str | None = None,
        partitioner: Partitioner | None = None,
        beam_size: int = 5,
        batch_size: int = 8,
        source_lengths: Sequence[int] = SOURCE_LENGTHS,
        seed: int = 0,
    ):
        """Loads a checkpoint; compiles nothing.

        Args:
          checkpoint: a run directory, a folder `checkpoints/<step>`, or an official checkpoint
            (`.pt`, or a folder with `pytorch_model.bin`).
          vocabulary: for checkpoints that do not store theirs, see `loading.load_model`.
          image_tokenizer: decodes image codes, if the run does not store one.
          image_size: size of the model's images in pixels a side; the run's when None.
          max_image_size: pixels that the last location bin stands for; the run's when None.
          dtype: "float32" or "bfloat16"; the run's when None.
          weights: "model" or "ema" (averaged) parameters, see `loading.load_model`.
          partitioner: the mesh; one device when None.
          beam_size: of beam search.
          batch_size: requests that `predict_batch` decodes at once.
          source_lengths: lengths to which instructions are padded, in tokens.
          seed: seed of sampling.

        Raises:
          FileNotFoundError, ValueError: the checkpoint or an argument cannot be used.
        """
        if not isinstance(checkpoint, LoadedModel):
            partitioner = partitioner or Partitioner(devices=tuple(jax.local_devices()[:1]))
            checkpoint = load_model(
                checkpoint,
                partitioner,
                vocabulary,
                dtype,
                weights,
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
        # Each data shard of the mesh has the same number of rows.
        self._num_shards = checkpoint.partitioner.num_data_shards
        self._batch_size = -(-batch_size // self._num_shards) * self._num_shards
        limit = checkpoint.model.config.max_source_positions
        self._lengths = sorted({min(length, limit) for length in source_lengths})
        self._decoders: collections.OrderedDict[Any, BatchDecoder] = collections.OrderedDict()
        self._num_batches = 0

    @renamed.accept_former_keywords
    def predict(
        self,
        image: Any,
        instruction: str,
        *,
        task: str | None = None,
        region: Box | None = None,
        candidates: Sequence[str] | None = None,
        score_all: bool = False,
        decoding: DecodingConfig | None = None,
    ) -> Prediction:
        """Predicts the output for one image and instruction.

        Args:
          image: a path, encoded bytes, a PIL image, an array uint8 [H, W, 3], or None.
          instruction: an instruction of training or any other, in plain spelling:
            `what color is the car in the region? region: {region}`.
          task: selects the decode preset, a key of `presets.PRESETS`, e.g. "visual_grounding"; the
            task of a known instruction when None.
          region: x0, y0, x1, y1 in pixels of the image: the box that replaces `{region}`, or is
            appended to the instruction.
          candidates: the only outputs allowed, e.g. ["yes", "no"].
          score_all: whether to score every candidate instead of searching among them.
          decoding: settings of the decoder; those of the preset when None.

        Raises:
          FileNotFoundError, ValueError: image, instruction, region or task cannot be used.
        """
        request = Request(instruction, requests.open_image(image), region)
        (prediction,) = self._predict(
            [request], self._num_shards, task, candidates, score_all, decoding
        )
        return prediction

    @renamed.accept_former_keywords
    def predict_batch(
        self,
        images: Sequence[Any],
        instructions: str | Sequence[str],
        *,
        task: str | None = None,
        regions: Sequence[Box | None] | None = None,
        candidates: Sequence[str] | None = None,
        score_all: bool = False,
        decoding: DecodingConfig | None = None,
    ) -> list[Prediction]:
        """Predicts the outputs for many images and instructions, `batch_size` at once.

        Args:
          images: see `predict`.
          instructions: one for all images, or one for each.
          task: for all images, see `predict`.
          regions: one for each image, or None.
          candidates: for all images, see `predict`.
          score_all: for all images, see `predict`.
          decoding: for all images, see `predict`.

        Returns:
          The predictions in the order of the images.
        """
        if isinstance(instructions, str):
            instructions = [instructions] * len(images)
        boxes = [None] * len(images) if regions is None else regions
        if not len(images) == len(instructions) == len(boxes):
            raise ValueError(
                f"{len(images)} images, {len(instructions)} instructions and {len(boxes)} regions: "
                "give the same number of each."
            )
        batch = [
            Request(instruction, requests.open_image(image), box)
            for image, instruction, box in zip(images, instructions, boxes, strict=True)
        ]
        return self._predict(batch, self._batch_size, task, candidates, score_all, decoding)

    # --------------------------------------------------------------------------------- batches

    def _predict(
        self,
        batch: Sequence[Request],
        batch_size: int,
        task: str | None,
        candidates: Sequence[str] | None,
        score_all: bool,
        decoding: DecodingConfig | None,
    ) -> list[Prediction]:
        """Groups requests by shape and preset, and decodes each group in batches."""
        allowed = None if candidates is None else tuple(presets.format_candidates(candidates))
        if decoding is None and allowed is not None:
            vocabulary = self.loaded.processor.vocabulary
            decoding = presets.candidate_decoding(allowed, vocabulary, self._beam_size)
        encoded: list[tuple[Example, BoxTransform | None]] = []
        groups = collections.defaultdict(list)
        for index, request in enumerate(batch):
            preset = self._find_preset(request.instruction, task, decoding)
            encoded.append(requests.encode_request(request, self.loaded.processor, preset))
            length = self._padded_length(encoded[-1][0])
            groups[preset, length, request.image is None].append(index)
        predictions: dict[int, Prediction] = {}
        for (preset, length, no_image), indices in groups.items():
            decoder = self._decoder(preset.decoding, allowed, score_all)
            stream = _make_stream(preset, length, no_image, batch_size)
            for chunk in _chunks(indices, batch_size):
                features = _make_batch([encoded[index][0] for index in chunk], stream)
                decoded = decoder(self.loaded.variables, features, self._num_batches)
                self._num_batches += 1
                for row, index in enumerate(chunk):
                    predictions[index] = parse_prediction(
                        *decoded.best(row), self.loaded.processor, encoded[index][1]
                    )
        return [predictions[index] for index in range(len(batch))]

    def _find_preset(
        self, instruction: str, task: str | None, decoding: DecodingConfig | None
    ) -> DecodePreset:
        """Returns the preset of a request, with other decoding settings if they are given."""
        preset = presets.find_preset(
            task or wordings.recognise_task(instruction),
            self.loaded.processor,
            self.loaded.model.config,
            self._beam_size,
        )
        return preset if decoding is None else dataclasses.replace(preset, decoding=decoding)

    def _padded_length(self, example: Example) -> int:
        """Returns the length to which the instruction is padded."""
        tokens = len(example["inputs"])
        longest = self._lengths[-1]
        if tokens > longest:
            logging.warning("An instruction of %d tokens is truncated to %d.", tokens, longest)
        return next((length for length in self._lengths if length >= tokens), longest)

    def _decoder(
        self, decoding: DecodingConfig, candidates: tuple[str, ...] | None, score_all: bool
    ) -> BatchDecoder:
        """Returns the decoder of these settings; the most recently used ones are kept."""
        key = decoding, candidates, score_all
        if key not in self._decoders:
            self._decoders[key] = BatchDecoder(
                self.loaded.model,
                presets.inference_spec(decoding, candidates, score_all),
                self.loaded.processor.vocabulary,
                self.loaded.partitioner,
                seed=self._seed,
            )
        self._decoders.move_to_end(key)
        if len(self._decoders) > _MAX_DECODERS:
            self._decoders.popitem(last=False)
        return self._decoders[key]


def _make_stream(preset: DecodePreset, length: int, no_image: bool, batch_size: int) -> Stream:
    """Returns the shapes of a group of requests."""
    return Stream(
        "requests",
        "predict",
        batch_size,
        {"inputs": length, "targets": 1},
        image_size=None if no_image else preset.image_size,
        code_targets=preset.code_grid > 0,
    )


def _chunks(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yields the indices in chunks of at most `size`."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def _make_batch(examples: Sequence[Example], stream: Stream) -> dict[str, np.ndarray]:
    """Returns the features of examples; empty rows fill up the batch."""
    rng = np.random.default_rng(0)  # inference samples no patches, so nothing is drawn
    rows = [to_features(example, stream, 0, rng) for example in examples]
    rows += [empty_features(stream, 0)] * (stream.batch_size - len(rows))
    return stack(rows)
