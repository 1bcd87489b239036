"""Small tasks with their EvalSpecs, importable by other processes.

eval_captions        what does the image show -> a caption       over Scenes
eval_regions         the first phrase of an image -> its box      over Scenes
eval_tf_data         a text -> itself, with tf.data preprocessors and seqio's metric_fns
eval_training_only   a task without EvalSpec and metric_fns
"""

import functools

import numpy as np
import seqio
import tensorflow as tf

from ofa_jax.data import registration, seqio_bridge
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation import eval_spec
from ofa_jax.preprocessing import objectives
from ofa_jax.preprocessing.records import InvalidRecordError


def exact(references, predictions):
    """Computes the share of predictions that equal the reference, and the number of examples."""
    equal = [r == p for r, p in zip(references, predictions, strict=True)]
    return {"exact": float(np.mean(equal)), "examples": len(equal)}


def overlap(references, predictions):
    """Computes the share of boxes that overlap the reference's box at all."""
    overlaps = [
        max(r[0], p[0]) < min(r[2], p[2]) and max(r[1], p[1]) < min(r[3], p[3])
        for r, p in zip(references, predictions, strict=True)
    ]
    return {"overlap": float(np.mean(overlaps)), "examples": len(overlaps)}


def first_phrase(record, rng):
    """Returns a record of regions with only its first one; some records are invalid."""
    if str(record["id"]).endswith("3"):
        raise InvalidRecordError("its number ends with 3")
    return {**record, "phrases": record["phrases"][:1], "phrase_boxes": record["phrase_boxes"][:1]}


def _apply(name):
    return registration.pretraining_preprocessor(objectives.OBJECTIVES[name])


seqio.TaskRegistry.add(
    "eval_captions",
    source=registration.pretraining_source("captions"),
    preprocessors=[_apply("image_captioning")],
    output_features=registration.PRETRAINING_FEATURES,
)
eval_spec.register(
    eval_spec.EvalSpec(
        "eval_captions",
        "text",
        lambda record: list(record["captions"]),
        (lambda references, predictions: exact([r[0] for r in references], predictions),),
        decoding=DecodingConfig(beam_size=2, max_length=6),
        main_metric="exact",
    )
)

seqio.TaskRegistry.add(
    "eval_regions",
    source=registration.pretraining_source("regions"),
    preprocessors=[seqio_bridge.numpy_preprocessor(first_phrase), _apply("visual_grounding")],
    output_features=registration.PRETRAINING_FEATURES,
)
eval_spec.register(
    eval_spec.EvalSpec(
        "eval_regions",
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
        encoded = registration.PRETRAINING_FEATURES["targets"].vocabulary.encode_tf(
            " " + example["text"]
        )
        framed = tf.concat([[0], encoded, [2]], 0)
        return {"inputs": framed, "targets": framed[1:], "text": example["text"]}

    return dataset.map(ids)


def _postprocess(output, example, is_target):
    """Returns the original text for targets, and predictions unchanged."""
    return example["text"].decode() if is_target else output


def seqio_exact(targets, predictions):
    equal = [t == p for t, p in zip(targets, predictions, strict=True)]
    return {
        "seqio_exact": float(np.mean(equal)),
        "in_order": float(targets == TEXTS["validation"]),
    }


_VOCABULARY = registration.PRETRAINING_FEATURES["targets"].vocabulary
_FEATURE = functools.partial(seqio.Feature, _VOCABULARY, add_eos=False)
seqio.TaskRegistry.add(
    "eval_tf_data",
    source=seqio.FunctionDataSource(_texts, splits=tuple(TEXTS)),
    preprocessors=[_tokens],
    output_features={"inputs": _FEATURE(), "targets": _FEATURE()},
    postprocess_fn=_postprocess,
    metric_fns=[seqio_exact],
)
seqio.TaskRegistry.add(
    "eval_training_only",
    source=registration.pretraining_source("text"),
    preprocessors=[_apply("text_infilling")],
    output_features=registration.PRETRAINING_FEATURES,
)
seqio.MixtureRegistry.add(
    "eval_mixture", ["eval_captions", "eval_regions", "eval_training_only"], default_rate=1
)
