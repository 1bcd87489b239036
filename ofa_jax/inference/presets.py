"""Decode presets: how each task is decoded unless the user overrides it."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.model import OFAConfig
from ofa_jax.preprocessing import prompts
from ofa_jax.preprocessing.records import Record
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.excerpts import excerpt
from ofa_jax.utils.suggestions import nearest
from ofa_jax.utils.text_files import replace_surrogates


@dataclasses.dataclass(frozen=True)
class DecodePreset:
    """How requests of a task are preprocessed and decoded.

    Attributes:
      image_size: size of the model's image, in pixels a side.
      decoding: settings of the decoder.
      code_grid: image codes a side if the output is an image; 0 for other outputs.
      infills_center: whether the output replaces the centre of the image. The image is cropped to
        a square, and its centre is hidden from the model.
      unconditional: the instruction without its caption, which guidance compares with; None for
        tasks without guidance.
    """

    image_size: int
    decoding: DecodingConfig
    code_grid: int = 0
    infills_center: bool = False
    unconditional: str | None = None


def _free_text(processor: Processor, model: OFAConfig, beam_size: int) -> DecodePreset:
    """Returns the preset of captions, answers and any other text."""
    decoding = DecodingConfig(
        beam_size=beam_size, max_length=_at_most(30, model), no_repeat_ngram_size=3
    )
    return DecodePreset(processor.image_size, decoding)


def _visual_grounding(processor: Processor, model: OFAConfig, beam_size: int) -> DecodePreset:
    """Returns the preset of a single box."""
    bins = processor.vocabulary.bin_ids
    if not bins:
        raise ValueError("The model's vocabulary has no location bins, so it predicts no boxes.")
    decoding = DecodingConfig(
        beam_size=beam_size,
        min_length=4,
        max_length=4,
        constraint_range=(bins.start, bins.stop),
    )
    return DecodePreset(processor.image_size, decoding)


def _object_detection(processor: Processor, model: OFAConfig, beam_size: int) -> DecodePreset:
    """Returns the preset of boxes with labels."""
    decoding = DecodingConfig(beam_size=beam_size, max_length=_at_most(120, model))
    return DecodePreset(processor.detection_image_size, decoding)


def _text_infilling(processor: Processor, model: OFAConfig, beam_size: int) -> DecodePreset:
    """Returns the preset of a text without its masks."""
    decoding = DecodingConfig(beam_size=beam_size, max_length=_at_most(256, model))
    return DecodePreset(processor.image_size, decoding)


def _image_infilling(processor: Processor, model: OFAConfig, beam_size: int) -> DecodePreset:
    """Returns the preset of the codes of an image's centre, decoded greedily."""
    decoding = _image_codes(DecodingConfig(beam_size=1), processor, model)
    return DecodePreset(processor.infill_image_size, decoding, model.code_grid, infills_center=True)


def _text_to_image(processor: Processor, model: OFAConfig, beam_size: int) -> DecodePreset:
    """Returns the preset of the codes of a whole image, which are sampled."""
    # The most probable image would be an average of all.
    top_k = min(256, processor.vocabulary.num_codes)
    sampling = DecodingConfig("sample", beam_size=1, top_k=top_k)
    decoding = _image_codes(sampling, processor, model)
    return DecodePreset(
        processor.image_size,
        decoding,
        model.code_grid,
        unconditional=prompts.UNCONDITIONAL_IMAGE,
    )


def _image_codes(
    decoding: DecodingConfig, processor: Processor, model: OFAConfig
) -> DecodingConfig:
    """Restricts decoding to a whole grid of image codes."""
    codes = processor.vocabulary.code_ids
    if not codes:
        raise ValueError("The model's vocabulary has no image codes, so it generates no images.")
    return decoding.replace(
        max_length=model.code_grid**2,
        exact_length=True,
        constraint_range=(codes.start, codes.stop),
    )


def _at_most(max_length: int, model: OFAConfig) -> int:
    """Limits a length to the decoder's positions; eos takes one of them."""
    return min(max_length, model.max_target_positions - 1)


PRESETS: Mapping[str, Callable[[Processor, OFAConfig, int], DecodePreset]] = {
    "image_captioning": _free_text,
    "visual_question_answering": _free_text,
    "image_text_matching": _free_text,
    "snli_ve": _free_text,
    "grounded_captioning": _free_text,
    "visual_grounding": _visual_grounding,
    "object_detection": _object_detection,
    "text_infilling": _text_infilling,
    "image_infilling": _image_infilling,
    "text_to_image": _text_to_image,
}
"""Task -> (processor, model, beam_size) -> preset."""


def find_preset(
    task: str | None, processor: Processor, model: OFAConfig, beam_size: int = 5
) -> DecodePreset:
    """Returns the preset of a task.

    Args:
      task: a key of `PRESETS`; None for an instruction of no known task, which is decoded as free
        text.
      processor: vocabulary and image sizes of the model.
      model: its configuration.
      beam_size: of beam search.

    Raises:
      ValueError: there is no preset of this name.
    """
    if task is not None and (not isinstance(task, str) or task not in PRESETS):
        raise ValueError(
            f"task is {excerpt(repr(task))}; give one of {', '.join(PRESETS)}."
            f"{nearest(str(task)[:100], PRESETS)}"
        )
    make_preset = _free_text if task is None else PRESETS[task]
    return make_preset(processor, model, beam_size)


def format_candidates(candidates: Iterable[str]) -> list[str]:
    """Returns candidates as they are encoded in training, with a leading space.

    Args:
      candidates: texts; an iterator is read to its end.

    Raises:
      ValueError: there is none, or one is not text or empty.
    """
    # The letters of a text and the keys of a dict are no candidates.
    if isinstance(candidates, str | bytes | Mapping) or not isinstance(candidates, Iterable):
        advice = (
            f" Write {[candidates]} for a single one."
            if isinstance(candidates, str) and len(candidates) <= 40
            else ""
        )
        raise ValueError(
            f"candidates is {excerpt(repr(candidates))}; give a list of texts, as in ['yes', 'no']."
            f"{advice}"
        )
    texts = list(candidates)
    if not texts:
        raise ValueError("The list of candidates is empty: give at least one.")
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(
                f"The candidate {excerpt(repr(text))} is not text but {type(text).__name__}."
            )
        if not text.strip():
            raise ValueError(f"The candidate {excerpt(repr(text))} is empty: leave it out.")
        if replace_surrogates(text) != text:
            raise ValueError(
                f"The candidate {excerpt(repr(text))} has half of a character (a lone surrogate), "
                "which is no text: correct it."
            )
    return [f" {text.strip()}" for text in texts]


def candidate_decoding(
    candidates: Sequence[str], vocabulary: OFAVocabulary, beam_size: int = 5
) -> DecodingConfig:
    """Returns beam search that is as long as the longest candidate (see `format_candidates`)."""
    longest = max(len(vocabulary.encode(text)) for text in candidates)
    return DecodingConfig(beam_size=beam_size, max_length=longest)


def apply_options(
    preset: DecodePreset,
    decoding: DecodingConfig | None,
    candidates: Sequence[str] | None,
    vocabulary: OFAVocabulary,
    beam_size: int = 5,
) -> DecodePreset:
    """Returns the preset with the decoder's settings and the candidates that a user gave.

    Args:
      preset: of the task.
      decoding: other settings; None for those of the preset.
      candidates: the only outputs allowed, see `format_candidates`; None for all.
      vocabulary: of the model.
      beam_size: of beam search among candidates.

    Raises:
      ValueError: candidates for an output of image codes.
    """
    if candidates is not None and preset.code_grid:
        raise ValueError(
            "The output is an image, but only candidates are allowed: leave the candidates out, or "
            "choose another task."
        )
    if decoding is None and candidates is not None:
        decoding = candidate_decoding(candidates, vocabulary, beam_size)
    return preset if decoding is None else dataclasses.replace(preset, decoding=decoding)


def check_decodable(
    preset: DecodePreset,
    candidates: Sequence[str] | None,
    score_all: bool,
    source_length: int,
    vocabulary: OFAVocabulary,
    model: OFAConfig,
) -> None:
    """Checks that a model can generate outputs of a preset, and each of the candidates.

    Args:
      preset: with the user's options, see `apply_options`.
      candidates: the only outputs allowed, see `format_candidates`; None for all.
      score_all: whether every candidate is scored.
      source_length: number of tokens of an instruction, including padding.
      vocabulary: of the model.
      model: its configuration.

    Raises:
      ValueError: the model lacks positions, image codes or location bins, a candidate cannot be
        reached, or there is guidance of something else than an image from a caption.
    """
    decoding = preset.decoding
    if decoding.is_guided and preset.unconditional is None:
        raise ValueError(
            f"DecodingConfig.guidance_scale is {decoding.guidance_scale}, but guidance is for "
            "images from captions (text_to_image): leave it at 1, or choose that task."
        )
    decoding.check(model)
    longest = decoding.max_output_length(source_length, model)
    for text in candidates or ():
        ids = vocabulary.encode(text).tolist()
        limit = model.max_target_positions - 1 if score_all else longest
        if (problem := _why_unreachable(ids, decoding, limit, score_all)) is not None:
            raise ValueError(f"The candidate {excerpt(repr(text.strip()))} {problem}.")


def _why_unreachable(
    ids: Sequence[int], decoding: DecodingConfig, longest: int, score_all: bool
) -> str | None:
    """Describes why a candidate cannot be the output; None if it can."""
    if len(ids) > longest:
        option = "the model has positions" if score_all else "DecodingConfig.max_length allows"
        return f"has {len(ids)} tokens, more than the {longest} that {option}"
    if score_all:
        return None
    if len(ids) < decoding.min_length:
        return f"has {len(ids)} tokens, and DecodingConfig.min_length is {decoding.min_length}"
    if decoding.exact_length and len(ids) != longest:
        return f"has {len(ids)} tokens, and DecodingConfig.exact_length wants exactly {longest}"
    size = decoding.no_repeat_ngram_size
    tokens = [OFAVocabulary.bos_id, *ids]
    ngrams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    if size and len(set(ngrams)) < len(ngrams):
        return f"repeats {size} tokens, which DecodingConfig.no_repeat_ngram_size forbids"
    return None


def inference_spec(
    decoding: DecodingConfig,
    candidates: Sequence[str] | None = None,
    score_all: bool = False,
    unconditional: str | None = None,
) -> EvalSpec:
    """Returns a spec without references and metrics.

    Args:
      decoding: settings of the decoder.
      candidates: the only outputs allowed, see `format_candidates`; None for free generation.
      score_all: whether to score every candidate instead of searching among them.
      unconditional: see `DecodePreset`.
    """
    return EvalSpec(
        "inference",
        "text",
        references=no_references,
        metrics=(),
        decoding=decoding,
        candidates=None if candidates is None else lambda: candidates,
        score_all=score_all,
        unconditional=unconditional,
    )


def no_references(record: Record) -> None:
    """Returns None: inference compares predictions with nothing."""
    del record
