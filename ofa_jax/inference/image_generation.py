"""How images are generated from captions: sampling, guidance, and the choice among candidates."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation.batch_decoder import DecodedBatch
from ofa_jax.inference.predictions import Prediction, decode_images
from ofa_jax.inference.presets import DecodePreset
from ofa_jax.inference.reranking import ImageRanker, MatchingRanker, rerank
from ofa_jax.preprocessing import prompts
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.utils import options
from ofa_jax.utils.excerpts import excerpt
from ofa_jax.utils.option_checks import checked

__all__ = ["ImageGeneration", "Reranking", "instructions_of", "matching_ranker", "with_images"]


@checked
@dataclasses.dataclass(frozen=True)
class ImageGeneration:
    """How images are generated from captions. The defaults are the published ones, without CLIP.

    Attributes:
      num_candidates: images that are sampled for each caption.
      temperature: divisor of the logits.
      top_k: sample among this many most probable codes; 0 for all.
      top_p: sample among the fewest most probable codes that reach this probability.
      guidance_scale: of classifier-free guidance, see `DecodingConfig.guidance_scale`; for models
        that were fine-tuned with `caption_dropout`.
      reranker: chooses the best candidate: "matching" for the model's own image-text matching, or
        an `ImageRanker` such as CLIP; None for the most probable one.
    """

    num_candidates: options.Count = 24
    temperature: options.Positive = 1.0
    top_k: options.Natural = 256
    top_p: Annotated[float, options.Above(0), options.AtMost(1)] = 1.0
    guidance_scale: options.NonNegative = 1.0
    reranker: ImageRanker | Literal["matching"] | None = None

    def decoding(self, decoding: DecodingConfig, num_codes: int) -> DecodingConfig:
        """Returns the settings of a decoder of image codes, changed to these.

        Args:
          decoding: restricts the output to a whole grid of codes.
          num_codes: of the vocabulary.
        """
        return decoding.replace(
            method="sample",
            beam_size=self.num_candidates,
            temperature=self.temperature,
            top_k=min(self.top_k, num_codes),
            top_p=self.top_p,
            guidance_scale=self.guidance_scale,
        )

    def apply(self, preset: DecodePreset, num_codes: int) -> DecodePreset:
        """Returns the preset of a request; one whose output is no image from a caption stays."""
        if preset.unconditional is None:
            return preset
        return dataclasses.replace(preset, decoding=self.decoding(preset.decoding, num_codes))

    def make_ranker(self, loaded: Any) -> ImageRanker | None:
        """Returns the ranker of a `LoadedModel`; None if there is none."""
        if self.reranker != "matching":
            return self.reranker
        from ofa_jax.inference.predictor import Predictor

        return MatchingRanker(Predictor(loaded))

    def check(self, processor: Processor) -> None:
        """Raises ValueError if a model cannot rank images."""
        if self.reranker is not None and processor.image_tokenizer is None:
            raise ValueError(
                "ImageGeneration.reranker is given, but the model has no image tokenizer, so there "
                "are no images to rank: give image_tokenizer."
            )

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON, the ranker by its name."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"reranker": getattr(self.reranker, "name", self.reranker)}


@checked
def matching_ranker(
    checkpoint: options.Path, vocabulary: options.Path | None = None, batch_size: options.Count = 8
) -> MatchingRanker:
    """Returns the image-text matching of another checkpoint than the one that generates.

    Args:
      checkpoint: of a model that was trained with image-text matching; see `Predictor`.
      vocabulary: for checkpoints that do not store theirs.
      batch_size: images that are scored at once.

    Raises:
      FileNotFoundError, ValueError: the checkpoint cannot be used.
    """
    from ofa_jax.inference.predictor import Predictor

    predictor = Predictor(checkpoint, vocabulary=vocabulary, batch_size=batch_size)
    return MatchingRanker(predictor, f"matching of {predictor.loaded.name}")


class Reranking:
    """Re-ranks the batches of one model; makes the ranker when it is first needed."""

    def __init__(self, generation: ImageGeneration, loaded: Any):
        """Makes nothing yet.

        Args:
          generation: names the ranker.
          loaded: the model that generates the images, a `LoadedModel`.
        """
        self._generation = generation
        self._loaded = loaded
        self._ranker: ImageRanker | None = None

    def __call__(self, decoded: DecodedBatch, captions: Sequence[str]) -> DecodedBatch:
        """Returns the hypotheses with the ranker's scores; as they are without a ranker."""
        if self._generation.reranker is None:
            return decoded
        if self._ranker is None:
            self._ranker = self._generation.make_ranker(self._loaded)
        assert self._ranker is not None
        return rerank(decoded, captions, self._loaded.processor, self._ranker)


def instructions_of(captions: Sequence[str]) -> list[str]:
    """Returns the instruction of each caption.

    Raises:
      ValueError: a caption is no text, or blank.
    """
    for number, caption in enumerate(captions):
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(
                f"Caption {number} (counted from 0) is {excerpt(repr(caption))}: give a text that "
                "says what the image shows."
            )
    return [prompts.TEXT_TO_IMAGE.format(caption=caption.strip()).strip() for caption in captions]


def with_images(predictions: Sequence[Prediction], processor: Processor) -> list[Prediction]:
    """Returns predictions whose alternatives have their images, too; decodes them in batches."""
    codes = [one.codes for prediction in predictions for one in prediction.alternatives]
    images = iter(decode_images(codes, processor))
    return [
        dataclasses.replace(
            prediction,
            alternatives=tuple(
                dataclasses.replace(one, image=next(images)) for one in prediction.alternatives
            ),
        )
        for prediction in predictions
    ]
