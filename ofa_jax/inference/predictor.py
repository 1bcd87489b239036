"""Inference with a trained model in Python.

    import ofa_jax

    predictor = ofa_jax.Predictor("runs/pretrain_scenes")
    prediction = predictor.predict(
        "room.jpg", 'which region does the text "a red apple" describe?'
    )
    prediction.boxes                   # float32 [1, 4], pixels of room.jpg

The first call compiles, and so does a later one whose shape (length of the instruction, one request
or a batch, with an image or without) or decoding configuration is new.
"""

import collections
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import jax

from ofa_jax.data.features import PATCH_SIZE
from ofa_jax.decoding import DecodingConfig
from ofa_jax.inference import requests
from ofa_jax.inference.entries import clean_instruction
from ofa_jax.inference.image_generation import (
    ImageGeneration,
    instructions_of,
    with_images,
)
from ofa_jax.inference.loading import LoadedModel, load_model
from ofa_jax.inference.predictions import Prediction
from ofa_jax.inference.predictor_arguments import (
    check_arguments,
    list_images,
    list_of,
    naming_request,
    refuse_unused,
)
from ofa_jax.inference.prepared import CallOptions, PreparedRequest
from ofa_jax.inference.request_decoder import RequestDecoder
from ofa_jax.inference.requests import Box, Request
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers import ImageTokenizer
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils import options, renamed
from ofa_jax.utils.excerpts import excerpt
from ofa_jax.utils.option_checks import checked

SOURCE_LENGTHS = (32, 64, 128, 256, 512)
"""In tokens. An instruction is padded to the next length; beyond the last one it is truncated."""

ImageSize = Annotated[
    int, options.AtLeast(PATCH_SIZE), options.AtMost(2**16), options.MultipleOf(PATCH_SIZE)
]
"""The side of the images that a model reads: a whole number of patches."""
SourceLengths = Annotated[
    Sequence[Annotated[int, options.AtLeast(2), options.AtMost(options.LARGEST)]],
    options.NotEmpty(),
]
"""See `SOURCE_LENGTHS`."""
Seed = Annotated[int, options.AtLeast(-(2**31)), options.AtMost(2**32 - 1)]
"""Of sampling."""


@checked
class Predictor:
    """A model for inference.

    Attributes:
      loaded: the model, its parameters and its processor.
    """

    def __init__(
        self,
        checkpoint: options.Path | os.PathLike | LoadedModel,
        *,
        vocabulary: OFAVocabulary | options.Path | os.PathLike | None = None,
        image_tokenizer: ImageTokenizer | None = None,
        image_size: ImageSize | None = None,
        max_image_size: options.Count | None = None,
        dtype: options.Dtype | None = None,
        weights: options.Name | None = None,
        partitioner: Partitioner | None = None,
        beam_size: options.Count = 5,
        batch_size: options.Count = 8,
        source_lengths: SourceLengths = SOURCE_LENGTHS,
        seed: Seed = 0,
        image_generation: ImageGeneration | None = None,
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
          seed: seed of sampling; samples follow from it and the number of the request.
          image_generation: how images are generated from captions, where a call says nothing else;
            one sample of the 256 most probable codes when None.

        Raises:
          FileNotFoundError, ValueError: the checkpoint or an argument cannot be used.
        """
        if isinstance(checkpoint, LoadedModel):
            refuse_unused(
                vocabulary=vocabulary,
                image_tokenizer=image_tokenizer,
                image_size=image_size,
                max_image_size=max_image_size,
                dtype=dtype,
                weights=weights,
                partitioner=partitioner,
            )
        else:
            partitioner = partitioner or Partitioner(devices=tuple(jax.local_devices()[:1]))
            checkpoint = load_model(
                os.fspath(checkpoint),
                partitioner,
                os.fspath(vocabulary) if isinstance(vocabulary, os.PathLike) else vocabulary,
                dtype,
                weights,
                image_tokenizer=image_tokenizer,
                image_size=image_size,
                max_image_size=max_image_size,
            )
        self.loaded = checkpoint
        self._decoder = RequestDecoder(
            checkpoint, beam_size, source_lengths, seed, image_generation
        )
        # Each data shard of the mesh has the same number of rows.
        self._num_shards = checkpoint.partitioner.num_data_shards
        self._batch_size = -(-batch_size // self._num_shards) * self._num_shards

    @renamed.accept_former_keywords
    def predict(
        self,
        image: Any,
        instruction: str,
        *,
        task: str | None = None,
        region: Box | None = None,
        candidates: Iterable[str] | None = None,
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
          FileNotFoundError, ValueError: image, instruction, region or another argument cannot be
            used, or there is no output that the constraints allow.
        """
        call = check_arguments(self.loaded, task, candidates, score_all, decoding)
        (prediction,) = self._predict(
            [self._make_request(image, instruction, region)], self._num_shards, call
        )
        return prediction

    @renamed.accept_former_keywords
    def predict_batch(
        self,
        images: Iterable[Any],
        instructions: str | Iterable[str],
        *,
        task: str | None = None,
        regions: Iterable[Box | None] | None = None,
        candidates: Iterable[str] | None = None,
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
          The predictions in the order of the images; an empty list for no images.

        Raises:
          FileNotFoundError, ValueError: see `predict`; the message names the number of the request.
        """
        call = check_arguments(self.loaded, task, candidates, score_all, decoding)
        pixels = list_images(images)
        texts = (
            [instructions] * len(pixels)
            if isinstance(instructions, str)
            else list_of("instructions", instructions)
        )
        boxes = [None] * len(pixels) if regions is None else list_of("regions", regions)
        if not len(pixels) == len(texts) == len(boxes):
            raise ValueError(
                f"{len(pixels)} images, {len(texts)} instructions and {len(boxes)} regions: "
                "give the same number of each."
            )
        batch = []
        for number, request in enumerate(zip(pixels, texts, boxes, strict=True)):
            with naming_request(number):
                batch.append(self._make_request(*request))
        return self._predict(batch, self._batch_size, call, is_batch=True)

    def generate_images(
        self, captions: str | Iterable[str], generation: ImageGeneration | None = None
    ) -> list[Prediction]:
        """Generates images from captions, several candidates for each.

            generation = ImageGeneration(guidance_scale=3.0, reranker="matching")
            (prediction,) = predictor.generate_images("a red apple", generation)
            prediction.image.save("apple.png")

        Args:
          captions: one, or several.
          generation: how; when None, that of the Predictor, else 24 candidates as published.

        Returns:
          The best candidate for each caption, with the others as its alternatives, all with images.

        Raises:
          ValueError: a caption is blank, or the model cannot generate or rank images.
        """
        texts = [captions] if isinstance(captions, str) else list_of("captions", captions)
        if not isinstance(generation, ImageGeneration | None):
            raise ValueError(
                f"generation is {excerpt(repr(generation))}; give an ImageGeneration, as in "
                "ImageGeneration(num_candidates=24)."
            )
        generation = generation or self._decoder.image_generation or ImageGeneration()
        generation.check(self.loaded.processor)
        call = CallOptions("text_to_image", None, False, None, generation)
        batch = [self._make_request(None, text, None) for text in instructions_of(texts)]
        predictions = self._predict(batch, self._batch_size, call, is_batch=True)
        return with_images(predictions, self.loaded.processor)

    def _make_request(self, image: Any, instruction: Any, region: Any) -> Request:
        """Opens the image of a request and checks its instruction."""
        if not isinstance(instruction, str):
            raise ValueError(
                f"The instruction is {excerpt(instruction)} of the type "
                f"{type(instruction).__name__}; it must be text."
            )
        opened = requests.open_image(image, self.loaded.processor.decode_options)
        return Request(clean_instruction(instruction), opened, region)

    # --------------------------------------------------------------------------------- batches

    def prepare(
        self,
        image: Any,
        instruction: str,
        *,
        task: str | None = None,
        region: Box | None = None,
        candidates: Iterable[str] | None = None,
        score_all: bool = False,
        decoding: DecodingConfig | None = None,
    ) -> PreparedRequest:
        """Prepares a request for `decode`; several threads may do so at once.

        Args:
          image: see `predict`.
          instruction: see `predict`.
          task: see `predict`.
          region: see `predict`.
          candidates: see `predict`.
          score_all: see `predict`.
          decoding: see `predict`.

        Raises:
          FileNotFoundError, ValueError: see `predict`.
        """
        call = check_arguments(self.loaded, task, candidates, score_all, decoding)
        prepared = self._decoder.prepare(self._make_request(image, instruction, region), call)
        self._decoder.check_decodable(prepared)
        return prepared

    def decode(self, batch: Sequence[PreparedRequest]) -> list[Prediction | ValueError]:
        """Decodes requests of one group; one thread at a time.

        Two programs are compiled for a group: for one request, and for `batch_size` of them.

        Args:
          batch: at most `batch_size` requests whose `group` is the same.

        Returns:
          For each request its prediction, or the error for which it has none.
        """
        is_single = len(batch) <= self._num_shards
        return self._decoder.decode(batch, self._num_shards if is_single else self._batch_size)

    @property
    def batch_size(self) -> int:
        """The requests that are decoded at once."""
        return self._batch_size

    def _predict(
        self,
        batch: Sequence[Request],
        batch_size: int,
        call: CallOptions,
        is_batch: bool = False,
    ) -> list[Prediction]:
        """Groups requests by shape and preset, and decodes each group in batches."""
        prepared: list[PreparedRequest] = []
        groups = collections.defaultdict(list)
        for index, request in enumerate(batch):
            with naming_request(index if is_batch else None):
                prepared.append(self._decoder.prepare(request, call))
            groups[prepared[-1].group].append(index)
        for indices in groups.values():
            self._decoder.check_decodable(prepared[indices[0]])
        predictions: dict[int, Prediction] = {}
        for indices in groups.values():
            for chunk in _chunks(indices, batch_size):
                found = self._decoder.decode([prepared[index] for index in chunk], batch_size)
                for index, prediction in zip(chunk, found, strict=True):
                    with naming_request(index if is_batch else None):
                        if isinstance(prediction, ValueError):
                            raise prediction
                    predictions[index] = prediction
        return [predictions[index] for index in range(len(batch))]


def _chunks(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yields the indices in chunks of at most `size`."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
