"""COCO captions: task `coco_captioning`.

The published fine-tuning ends with self-critical training on CIDEr-D; this task serves both stages
(gin_configs/finetune/caption.gin is the first).
"""

from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.metrics.captions import METRICS
from ofa_jax.preprocessing.downstream import captioning

from . import downstream

NAME = "coco_captioning"


def describe(settings: downstream.DownstreamSettings) -> EvalSpec:
    """Returns the published evaluation: beam 5, at most 16 tokens, no repeated trigram.

    The metrics are CIDEr-D, BLEU, ROUGE-L and, with Java, METEOR and SPICE.
    """
    del settings
    return EvalSpec(
        NAME,
        kind="text",
        references=lambda record: list(record.get("captions", ())),
        metrics=METRICS,
        decoding=DecodingConfig(max_length=16, no_repeat_ngram_size=3),
        main_metric="cider_d",
    )


downstream.add_task(NAME, "caption", captioning, describe)
