"""Small tasks with their Judgings; importable by processes of their own.

told_captions   what does the image show -> a caption       over Scenes
told_regions    the first phrase of an image -> its box      over Scenes
told_ordinary   a text -> itself, with tf.data preprocessors and seqio's metric_fns
told_training   a task that nobody can judge
"""

import functools

import numpy as np
import seqio
import tensorflow as tf

from ofa_jax.data import seqio_bridge
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation import eval_spec
from ofa_jax.preprocessing import objectives
from ofa_jax.preprocessing.records import InvalidRecordError
from tasks import pretraining


def exact(references, answers):
    """Share of the answers that are the reference; and the number of examples."""
    right = [r == a for r, a in zip(references, answers, strict=True)]
    return {"exact": float(np.mean(right)), "examples": len(right)}


def overlap(references, answers):
    """Share of boxes that meet the reference's box at all."""
    meets = [
        max(r[0], a[0]) < min(r[2], a[2]) and max(r[1], a[1]) < min(r[3], a[3])
        for r, a in zip(references, answers, strict=True)
    ]
    return {"meets": float(np.mean(meets)), "examples": len(meets)}


def first_phrase(record, rng):
    """A record of regions with its first one alone; those of some records are bad."""
    if str(record["id"]).endswith("3"):
        raise InvalidRecordError("its number ends with 3")
    return {**record, "phrases": record["phrases"][:1], "phrase_boxes": record["phrase_boxes"][:1]}


def _apply(name):
    return seqio_bridge.numpy_preprocessor(
        pretraining.with_config(objectives.OBJECTIVES[name]), factory=True
    )


seqio.TaskRegistry.add(
    "told_captions",
    source=pretraining.source("captions"),
    preprocessors=[_apply("image_captioning")],
    output_features=pretraining.OUTPUT_FEATURES,
)
eval_spec.register(
    eval_spec.EvalSpec(
        "told_captions",
        "text",
        lambda record: list(record["captions"]),
        (lambda references, answers: exact([r[0] for r in references], answers),),
        decoding=DecodingConfig(beam_size=2, max_length=6),
        main_metric="exact",
    )
)

seqio.TaskRegistry.add(
    "told_regions",
    source=pretraining.source("regions"),
    preprocessors=[seqio_bridge.numpy_preprocessor(first_phrase), _apply("visual_grounding")],
    output_features=pretraining.OUTPUT_FEATURES,
)
eval_spec.register(
    eval_spec.EvalSpec(
        "told_regions",
        "box",
        lambda record: record["phrase_boxes"][0],
        (overlap,),
        decoding=DecodingConfig(beam_size=1, max_length=4, min_length=4),
        max_image_size=64,
    )
)

TEXTS = {"train": ["yes"], "validation": ["a red apple", "yes", "no", "green", "an apple"]}


def _texts(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_tensor_slices({"text": TEXTS[split]})


def _tokens(dataset):
    def ids(example):
        encoded = pretraining.OUTPUT_FEATURES["targets"].vocabulary.encode_tf(" " + example["text"])
        framed = tf.concat([[0], encoded, [2]], 0)
        return {"inputs": framed, "targets": framed[1:], "text": example["text"]}

    return dataset.map(ids)


def _with_text(answer, example, is_target):
    """Targets become the text that the preprocessor had; predictions stay."""
    return example["text"].decode() if is_target else answer


def seqio_exact(targets, predictions):
    right = [t == p for t, p in zip(targets, predictions, strict=True)]
    return {
        "seqio_exact": float(np.mean(right)),
        "as_they_came": float(targets == TEXTS["validation"]),
    }


_VOCABULARY = pretraining.OUTPUT_FEATURES["targets"].vocabulary
_FEATURE = functools.partial(seqio.Feature, _VOCABULARY, add_eos=False)
seqio.TaskRegistry.add(
    "told_ordinary",
    source=seqio.FunctionDataSource(_texts, splits=tuple(TEXTS)),
    preprocessors=[_tokens],
    output_features={"inputs": _FEATURE(), "targets": _FEATURE()},
    postprocess_fn=_with_text,
    metric_fns=[seqio_exact],
)
seqio.TaskRegistry.add(
    "told_training",
    source=pretraining.source("text"),
    preprocessors=[_apply("text_infilling")],
    output_features=pretraining.OUTPUT_FEATURES,
)
seqio.MixtureRegistry.add(
    "told_mixture", ["told_captions", "told_regions", "told_training"], default_rate=1
)
