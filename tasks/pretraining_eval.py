"""The evaluation specifications of the eight pretraining objectives, over any data set.

Outside of training a record has one target (`single_target`), which determines the references.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ofa_jax.data.pretraining_settings import PRETRAINING
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation import eval_spec
from ofa_jax.evaluation.eval_spec import EvalSpec, Metric
from ofa_jax.evaluation.metrics import (
    boxes,
    captions,
    classification,
    exact,
    inputs,
    nouns,
    vqa,
)
from ofa_jax.preprocessing import prompts
from ofa_jax.preprocessing.boxes import as_boxes
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.preprocessing.objectives import image_infilling
from ofa_jax.preprocessing.record_fields import get_texts
from ofa_jax.preprocessing.record_regions import as_box, get_boxes
from ofa_jax.preprocessing.records import Record
from ofa_jax.preprocessing.text import clean_caption, is_blank

# Longest targets of pretraining: what its streams have room for.
_LONGEST_CAPTION, _LONGEST_DETECTION = 32, 256
BOX_DECODING = DecodingConfig(max_length=4, min_length=4, no_repeat_ngram_size=3)
"""Exactly four tokens, as in the official code."""


def register() -> None:
    """Registers a specification for each objective."""
    for task, describe in _DESCRIPTIONS.items():
        eval_spec.register_factory(task, functools.partial(_describe, task, describe))


def _describe(
    task: str, describe: Callable[[ObjectiveConfig], dict[str, Any]], settings: Any
) -> EvalSpec:
    config = PRETRAINING.of(settings).evaluation_config
    return EvalSpec(task, max_image_size=config.max_image_size, **describe(config))


def _captioning(config: ObjectiveConfig) -> dict[str, Any]:
    return dict(
        kind="text",
        references=lambda record: {
            "captions": list(record.get("captions") or ()),
            "nouns": list(record.get("object_labels") or ()),
        },
        metrics=(*map(OfCaptions, captions.METRICS), score_nouns),
        decoding=DecodingConfig(max_length=_LONGEST_CAPTION, no_repeat_ngram_size=3),
        main_metric="cider_d",
        # With a wrong noun, a short caption still has four of five words in common with the truth.
        example_metric="noun_f1",
    )


@dataclasses.dataclass(frozen=True)
class OfCaptions:
    """A metric of captions, whose references also name the objects in the image."""

    metric: Metric

    @property
    def __name__(self) -> str:
        return str(getattr(self.metric, "__name__", self.metric))

    @property
    def needs_corpus(self) -> bool:
        """Whether the metric says nothing of one example."""
        return inputs.needs_corpus(self.metric)

    def clean_reference(self, reference: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the captions that are not blank; None if there are none."""
        usable = inputs.texts(reference["captions"])
        return None if usable is None else {"captions": usable}

    def __call__(
        self, references: Sequence[Mapping[str, Any]], predictions: Sequence[str | None]
    ) -> Mapping[str, float]:
        """Computes the metric of the captions alone."""
        return self.metric([own["captions"] for own in references], predictions)


@inputs.accepts(nouns.usable_nouns)
def score_nouns(
    references: Sequence[Mapping[str, Any]], predictions: Sequence[str | None]
) -> dict[str, float]:
    """Computes the F1 of the objects that captions name, if the references name objects."""
    if not any(own["nouns"] for own in references):
        return {}
    return nouns.noun_f1(references, predictions)


def _question_answering(config: ObjectiveConfig) -> dict[str, Any]:
    def references(record: Record) -> dict[str, Any]:
        kinds = record.get("answer_types")
        kind = {"type": kinds[0]} if kinds is not None and len(kinds) else {}
        return {"answers": [record["answers"][0]]} | kind

    return dict(kind="text", references=references, metrics=(vqa.vqa_accuracy,))


def _matching(config: ObjectiveConfig) -> dict[str, Any]:
    return dict(
        kind="text",
        references=lambda record: record["label"],
        metrics=(classification.accuracy,),
        candidates=lambda: (prompts.YES, prompts.NO),
    )


def box_of(record: Record) -> list[float]:
    """Returns the box of the only phrase."""
    return as_boxes(record["phrase_boxes"])[0].tolist()


def _grounding(config: ObjectiveConfig) -> dict[str, Any]:
    return dict(
        kind="box", references=box_of, metrics=(boxes.accuracy_at_iou,), decoding=BOX_DECODING
    )


def phrases_of(record: Record) -> list[str]:
    """Returns the phrases that describe the box of the only phrase: that one first."""
    box = as_boxes(record["phrase_boxes"])[0]
    known = zip(
        record.get("true_phrases", ()), as_boxes(record.get("true_phrase_boxes", ())), strict=True
    )
    others = [phrase for phrase, own in known if np.array_equal(own, box)]
    return list(dict.fromkeys([record["phrases"][0], *others]))


def _grounded_captioning(config: ObjectiveConfig) -> dict[str, Any]:
    return dict(
        kind="text",
        references=lambda record: [
            clean_caption(phrase, config.max_target_words) for phrase in phrases_of(record)
        ],
        metrics=(exact.one_of_several,),
        decoding=DecodingConfig(max_length=_LONGEST_CAPTION),
    )


def objects_of(record: Record) -> dict[str, Any]:
    """Returns the boxes and names of the objects, without those that cannot be used."""
    names = get_texts(record, "object_labels")
    found = get_boxes(record, "object_boxes", len(names))
    usable = [
        index
        for index, (name, box) in enumerate(zip(names, found, strict=True))
        if name is not None and not is_blank(name) and as_box(box) is not None
    ]
    return {"boxes": found[usable].tolist(), "labels": [names[index] for index in usable]}


def _detection(config: ObjectiveConfig) -> dict[str, Any]:
    return dict(
        kind="objects",
        references=objects_of,
        metrics=(boxes.detection,),
        # Greedy decoding: beam search prefers to stop before the next object.
        decoding=DecodingConfig(beam_size=1, max_length=_LONGEST_DETECTION),
        main_metric="f1@0.5",
    )


def _image_infilling(config: ObjectiveConfig) -> dict[str, Any]:
    codes, num_codes = config.vocabulary.code_ids, (config.code_image_size // 8) ** 2

    def references(record: Record) -> list[int]:
        targets = image_infilling(record, np.random.default_rng(0), config)["targets"]
        return config.vocabulary.decode_codes(targets[:-1]).tolist()

    return dict(
        kind="codes",
        references=references,
        metrics=(exact.token_accuracy,),
        decoding=DecodingConfig(
            beam_size=1,
            max_length=num_codes,
            exact_length=True,
            constraint_range=(codes.start, codes.stop),
        ),
    )


def _text_infilling(config: ObjectiveConfig) -> dict[str, Any]:
    vocabulary = config.vocabulary

    def references(record: Record) -> str:
        ids = vocabulary.encode(f" {record['text'].strip().lower()}", max_length=config.text_length)
        return vocabulary.decode(ids[-config.text_window :]).strip()

    return dict(
        kind="text",
        references=references,
        metrics=(exact.exact_match,),
        decoding=DecodingConfig(max_length=config.text_window),
    )


_DESCRIPTIONS = {
    "image_captioning": _captioning,
    "visual_question_answering": _question_answering,
    "image_text_matching": _matching,
    "visual_grounding": _grounding,
    "grounded_captioning": _grounded_captioning,
    "object_detection": _detection,
    "image_infilling": _image_infilling,
    "text_infilling": _text_infilling,
}
