"""The kinds of requests in a job: how each is decoded, found from its task or its instruction."""

import dataclasses
import threading
from collections.abc import Callable, Sequence

from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation.batch_decoder import BatchDecoder, DecodedBatch
from ofa_jax.inference import presets
from ofa_jax.inference.image_generation import ImageGeneration, Reranking
from ofa_jax.inference.loading import LoadedModel
from ofa_jax.inference.presets import DecodePreset
from ofa_jax.inference.reranking import caption_of
from ofa_jax.preprocessing import instructions as wordings
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.utils.bad_input import Treatment, declare

UNDECODABLE = declare(
    "task cannot be decoded",
    Treatment.SKIPPED,
    "The task of a request is not known, or the model cannot generate its output: it has no image "
    "codes, no location bins or too few positions.",
    __name__,
)


@dataclasses.dataclass(frozen=True)
class KindOptions:
    """What a user sets for all requests of a job.

    Attributes:
      task: of requests that name none themselves; None for that of the instruction.
      decoding: settings of the decoder; None for those of the preset.
      candidates: the only outputs allowed, see `presets.format_candidates`.
      score_all: whether to score every candidate instead of searching among them.
      image_size: side of the model's image in pixels; None for that of the preset.
      source_length: tokens to which instructions are padded.
      seed: seed of sampling.
      image_generation: how images are generated from captions; None for the preset.
    """

    task: str | None = None
    decoding: DecodingConfig | None = None
    candidates: Sequence[str] | None = None
    score_all: bool = False
    image_size: int | None = None
    source_length: int = 128
    seed: int = 0
    image_generation: ImageGeneration | None = None


class Kinds:
    """The presets and decoders of a job's requests; made when the first request needs them.

    Requests of one kind share a preset. All threads may use it at the same time.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        options: KindOptions,
        check_decoding: Callable[[DecodingConfig], None] = lambda decoding: None,
    ):
        """Checks the options; compiles nothing.

        Args:
          loaded: the model.
          options: for all requests.
          check_decoding: raises ValueError for settings of a decoder that need too much memory.

        Raises:
          ValueError: the model cannot decode with them.
        """
        self._loaded, self._options = loaded, options
        self._check_decoding = check_decoding
        self._lock = threading.Lock()
        self._presets: dict[str | None, DecodePreset | str] = {}
        self._decoders: dict[tuple[DecodingConfig, str | None], BatchDecoder] = {}
        self._reranking = None
        if options.image_generation is not None:
            options.image_generation.check(loaded.processor)
            self._reranking = Reranking(options.image_generation, loaded)
        self._make_preset(options.task)

    def find(self, instruction: str, task: str | None = None) -> DecodePreset:
        """Returns the preset of a request.

        Args:
          instruction: of the request.
          task: that the request names, which counts first.

        Raises:
          InvalidRecordError: its task is not known, or the model cannot decode it.
        """
        task = task or self._options.task or wordings.recognise_task(instruction)
        with self._lock:
            if task not in self._presets:
                try:
                    self._presets[task] = self._make_preset(task)
                except ValueError as error:
                    if task not in presets.PRESETS:  # of any number
                        raise InvalidRecordError(str(error), UNDECODABLE) from None
                    self._presets[task] = str(error)
            found = self._presets[task]
        if isinstance(found, str):
            raise InvalidRecordError(f"{task} cannot be decoded: {found}", UNDECODABLE)
        return found

    def _make_preset(self, task: str | None) -> DecodePreset:
        """Returns the preset of a task with the user's options, and makes its decoder."""
        processor, model = self._loaded.processor, self._loaded.model
        options, vocabulary = self._options, processor.vocabulary
        preset = presets.find_preset(task, processor, model.config)
        if options.image_generation is not None:
            preset = options.image_generation.apply(preset, vocabulary.num_codes)
        preset = presets.apply_options(preset, options.decoding, options.candidates, vocabulary)
        if options.image_size is not None:
            preset = dataclasses.replace(preset, image_size=options.image_size)
        presets.check_decodable(
            preset,
            options.candidates,
            options.score_all,
            options.source_length,
            vocabulary,
            model.config,
        )
        self._check_decoding(preset.decoding)
        key = preset.decoding, preset.unconditional
        if key not in self._decoders:
            spec = presets.inference_spec(
                preset.decoding, options.candidates, options.score_all, preset.unconditional
            )
            self._decoders[key] = BatchDecoder(
                model, spec, vocabulary, self._loaded.partitioner, options.seed
            )
        return preset

    def decoder(self, preset: DecodePreset) -> BatchDecoder:
        """Returns the decoder of a preset that `find` has returned."""
        return self._decoders[preset.decoding, preset.unconditional]

    def rerank(
        self, preset: DecodePreset, decoded: DecodedBatch, instructions: Sequence[str]
    ) -> DecodedBatch:
        """Returns the hypotheses of images with the scores of the ranker, if there is one."""
        if self._reranking is None or preset.unconditional is None:
            return decoded
        return self._reranking(decoded, [caption_of(text) for text in instructions])
