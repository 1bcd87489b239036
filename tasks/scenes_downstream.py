"""Downstream tasks on Scenes, for fine-tuning a model that was pretrained on Scenes.

scenes_classification   which noun the only object has, one of those of pretraining or a new one
scenes_captioning       captions in other words than those of pretraining
scenes_vqa              questions in other words, by the type of their answers
scenes_text_to_image    the codes of a whole image, from its caption
scenes_masked_words     the words that are masked in a sentence of the corpus
scenes_topics           which section of the World Factbook a sentence is from

Scenes, words and some of the nouns are none of pretraining's (`ofa_jax.scenes.downstream_records`).
`gin_configs/finetune_scenes` has a run of each, and `tools.ablations` compares what pretraining
with fewer objectives leaves of them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ofa_jax.data import registration
from ofa_jax.data.scenes_downstream import SCENES_DOWNSTREAM, SPLITS, ScenesDownstreamSettings
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation import eval_spec, seqio_metrics
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.metrics import captions, classification, exact, inputs, vqa
from ofa_jax.preprocessing import downstream, language_tasks
from ofa_jax.preprocessing.classification import classification as classify
from ofa_jax.preprocessing.records import Record
from ofa_jax.scenes.corpus import TOPICS

from .downstream import label_of, with_leading_space
from .pretraining_eval import OfCaptions, score_nouns
from .scenes_generated_images import GeneratedScenes

_LONGEST_LABEL, _LONGEST_ANSWER, _LONGEST_CAPTION, _LONGEST_WORDS = 12, 12, 32, 18
_TOP_K = 32


def _classification(settings: ScenesDownstreamSettings) -> dict[str, Any]:
    scenes = settings.scenes()
    return dict(
        references=label_of,
        metrics=(functools.partial(noun_accuracy, new=frozenset(scenes.new_names)),),
        decoding=DecodingConfig(max_length=_LONGEST_LABEL, normalize_scores=False),
        candidates=lambda: with_leading_space(scenes.names),
    )


@inputs.accepts(inputs.one_text)
def noun_accuracy(
    references: Sequence[str], predictions: Sequence[str | None], new: frozenset[str]
) -> dict[str, float]:
    """Computes "accuracy", and that of the nouns of pretraining ("known") and of new ones."""
    values = classification.accuracy(references, predictions)
    for name, wanted in (("known", False), ("new", True)):
        pairs = [
            (true, prediction)
            for true, prediction in zip(references, predictions, strict=True)
            if (true in new) == wanted
        ]
        if pairs:
            values[f"accuracy/{name}"] = classification.accuracy(*zip(*pairs, strict=True))[
                "accuracy"
            ]
    return values


def _captioning(settings: ScenesDownstreamSettings) -> dict[str, Any]:
    del settings
    return dict(
        references=lambda record: {
            # As the task's targets are: without punctuation.
            "captions": [caption.replace(",", "") for caption in record["captions"]],
            "nouns": list(record["object_labels"]),
        },
        metrics=(score_nouns, *map(OfCaptions, captions.METRICS)),
        decoding=DecodingConfig(max_length=_LONGEST_CAPTION, no_repeat_ngram_size=3),
        main_metric="noun_f1",
    )


def _vqa(settings: ScenesDownstreamSettings) -> dict[str, Any]:
    del settings
    return dict(
        references=lambda record: {
            "answers": [record["answers"][0]],
            "type": record["answer_types"][0],
        },
        metrics=(vqa.vqa_accuracy,),
        decoding=DecodingConfig(max_length=_LONGEST_ANSWER),
    )


def _text_to_image(settings: ScenesDownstreamSettings) -> dict[str, Any]:
    codes = settings.vocabulary.code_ids

    def references(record: Record) -> dict[str, Any]:
        return {
            "caption": record["captions"][0],
            "codes": np.asarray(record["codes"]).tolist(),
        }

    return dict(
        kind="codes",
        references=references,
        metrics=(GeneratedScenes(settings),),
        # Sampled, as published: the most probable codes are those of an empty background.
        decoding=DecodingConfig(
            method="sample",
            beam_size=1,
            max_length=settings.config.num_codes,
            exact_length=True,
            top_k=min(_TOP_K, len(codes)),
            constraint_range=(codes.start, codes.stop),
        ),
        main_metric="asked_noun" if settings.feature_checkpoint else "token_accuracy",
    )


def _masked_words(settings: ScenesDownstreamSettings) -> dict[str, Any]:
    config = settings.evaluation_config

    def references(record: Record) -> str:
        words = language_tasks.words_of(record, config)
        places = language_tasks.fixed_masked_words(record, config)
        return " ".join(words[place] for place in places)

    return dict(
        references=references,
        metrics=(exact.word_accuracy, exact.exact_match),
        decoding=DecodingConfig(max_length=_LONGEST_WORDS),
    )


def _topics(settings: ScenesDownstreamSettings) -> dict[str, Any]:
    del settings
    return dict(
        references=label_of,
        metrics=(classification.accuracy,),
        decoding=DecodingConfig(max_length=_LONGEST_LABEL, normalize_scores=False),
        candidates=lambda: with_leading_space(sorted(TOPICS.values())),
    )


Describe = Callable[[ScenesDownstreamSettings], dict[str, Any]]
TASKS: Mapping[str, tuple[str, downstream.DownstreamTask, Describe]] = {
    "scenes_classification": ("classes", classify, _classification),
    "scenes_captioning": ("captions", downstream.captioning, _captioning),
    "scenes_vqa": ("questions", downstream.question_answering, _vqa),
    "scenes_text_to_image": ("coded_captions", downstream.text_to_image, _text_to_image),
    "scenes_masked_words": ("text", language_tasks.masked_words, _masked_words),
    "scenes_topics": ("sentences", language_tasks.classify_topic, _topics),
}
"""Task -> the kind of its records, its function, and its evaluation."""


def _describe(name: str, describe: Describe, settings: Any) -> EvalSpec:
    own = SCENES_DOWNSTREAM.of(settings)
    specification = {"kind": "text", **describe(own)}
    return EvalSpec(name, max_image_size=own.image_size, **specification)


for _name, (_kind, _task, _evaluation) in TASKS.items():
    registration.add_task(
        _name,
        SCENES_DOWNSTREAM,
        _kind,
        _kind,
        SPLITS,
        _task,
        seqio_metrics.of_spec(_name),
    )
    eval_spec.register_factory(_name, functools.partial(_describe, _name, _evaluation))
