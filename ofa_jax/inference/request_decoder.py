"""Decodes the requests of a `Predictor`: finds their presets, pads them and keeps the decoders."""

import collections
import threading
from collections.abc import Sequence
from typing import Any

from absl import logging

from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation.batch_decoder import BatchDecoder
from ofa_jax.inference import presets, requests
from ofa_jax.inference.image_generation import ImageGeneration, Reranking
from ofa_jax.inference.loading import LoadedModel
from ofa_jax.inference.predictions import Prediction
from ofa_jax.inference.prepared import CallOptions, PreparedRequest, make_batch, read_row
from ofa_jax.inference.presets import DecodePreset
from ofa_jax.inference.requests import Request
from ofa_jax.inference.reranking import caption_of
from ofa_jax.preprocessing import instructions as wordings

_MAX_DECODERS = 32
_MAX_ALTERNATIVES = 64  # of `score_all`


class RequestDecoder:
    """Prepares requests and decodes them in batches of one group.

    A decoder is compiled for each group; the most recently used decoders are kept.

    Attributes:
      image_generation: how images are generated from captions, where a call says nothing else.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        beam_size: int,
        source_lengths: Sequence[int],
        seed: int,
        image_generation: ImageGeneration | None,
    ):
        """Checks the arguments, which are those of `Predictor`; compiles nothing.

        Args:
          loaded: the model.
          beam_size: of beam search.
          source_lengths: lengths to which instructions are padded, in tokens.
          seed: of sampling.
          image_generation: how images are generated from captions; None for the presets.

        Raises:
          ValueError: the model cannot decode with them.
        """
        DecodingConfig(beam_size=beam_size).check(loaded.model.config)
        self._loaded, self._beam_size, self._seed = loaded, beam_size, seed
        limit = loaded.model.config.max_source_positions
        self._lengths = sorted({min(length, limit) for length in source_lengths})
        self._decoders: collections.OrderedDict[Any, BatchDecoder] = collections.OrderedDict()
        self._decodable: collections.OrderedDict[Any, None] = collections.OrderedDict()
        self._num_requests = 0
        self.image_generation = image_generation
        self._rerankings: dict[ImageGeneration, Reranking] = {}
        if image_generation is not None:
            image_generation.check(loaded.processor)
        self._lock = threading.Lock()

    def prepare(self, request: Request, call: CallOptions) -> PreparedRequest:
        """Encodes a request; several threads may do so at once."""
        preset = self._find_preset(request.instruction, call)
        example, transform = requests.encode_request(request, self._loaded.processor, preset)
        length = self._padded_length(len(example["inputs"]))
        return PreparedRequest(example, transform, preset, call, length, request.instruction)

    def check_decodable(self, request: PreparedRequest) -> None:
        """Raises ValueError, before anything is compiled, for an output that is out of reach."""
        preset, call = request.preset, request.call
        key = preset.decoding, request.length, call
        if key not in self._decodable:
            presets.check_decodable(
                preset,
                call.candidates,
                call.score_all,
                request.length,
                self._loaded.processor.vocabulary,
                self._loaded.model.config,
            )
            with self._lock:
                self._decodable[key] = None
                if len(self._decodable) > _MAX_DECODERS:
                    self._decodable.popitem(last=False)

    def decode(
        self, batch: Sequence[PreparedRequest], num_rows: int
    ) -> list[Prediction | ValueError]:
        """Decodes requests of one group in a batch of `num_rows`; one thread at a time.

        Args:
          batch: requests whose `group` is the same.
          num_rows: at least as many; empty rows fill up the batch.

        Returns:
          For each request its prediction, or the error for which it has none.
        """
        preset, call = batch[0].preset, batch[0].call
        decoder = self._find_decoder(preset, call.candidates, call.score_all)
        first, padding = self._num_requests, num_rows - len(batch)
        self._num_requests += len(batch)
        seeds = [*range(first, self._num_requests), *[0] * padding]
        decoded = decoder(self._loaded.variables, make_batch(batch, num_rows), seeds=seeds)
        generation = self._generation_of(call)
        if generation is not None and preset.unconditional is not None:
            reranking = self._rerankings.setdefault(generation, Reranking(generation, self._loaded))
            decoded = reranking(decoded, [caption_of(request.instruction) for request in batch])
        found: list[Prediction | ValueError] = []
        for row, request in enumerate(batch):
            try:
                found.append(read_row(decoded, row, self._loaded.processor, request.transform))
            except ValueError as error:
                found.append(error)
        return found

    def _generation_of(self, call: CallOptions) -> ImageGeneration | None:
        """Returns how a call generates images; None for the decoder's settings alone."""
        if call.image_generation is not None or call.decoding is not None:
            return call.image_generation
        return self.image_generation

    def _find_preset(self, instruction: str, call: CallOptions) -> DecodePreset:
        """Returns the preset of a request, with other decoding settings if they are given."""
        processor = self._loaded.processor
        preset = presets.find_preset(
            call.task or wordings.recognise_task(instruction),
            processor,
            self._loaded.model.config,
            self._beam_size,
        )
        generation = self._generation_of(call)
        if generation is not None:
            preset = generation.apply(preset, processor.vocabulary.num_codes)
        return presets.apply_options(
            preset, call.decoding, call.candidates, processor.vocabulary, self._beam_size
        )

    def _padded_length(self, tokens: int) -> int:
        """Returns the length to which an instruction is padded."""
        longest = self._lengths[-1]
        if tokens > longest:
            logging.warning("An instruction of %d tokens is truncated to %d.", tokens, longest)
        return next((length for length in self._lengths if length >= tokens), longest)

    def _find_decoder(
        self, preset: DecodePreset, candidates: tuple[str, ...] | None, score_all: bool
    ) -> BatchDecoder:
        """Returns the decoder of these settings; the most recently used ones are kept."""
        key = preset.decoding, preset.unconditional, candidates, score_all
        if key not in self._decoders:
            self._decoders[key] = BatchDecoder(
                self._loaded.model,
                presets.inference_spec(
                    preset.decoding, candidates, score_all, preset.unconditional
                ),
                self._loaded.processor.vocabulary,
                self._loaded.partitioner,
                seed=self._seed,
                num_best=_MAX_ALTERNATIVES,
            )
        self._decoders.move_to_end(key)
        if len(self._decoders) > _MAX_DECODERS:
            self._decoders.popitem(last=False)
        return self._decoders[key]
