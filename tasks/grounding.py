"""Referring expressions: tasks `refcoco`, `refcoco_plus` and `refcocog`, of the same form."""

import functools

from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.metrics.boxes import accuracy_at_iou
from ofa_jax.preprocessing.downstream import grounding

from . import downstream
from .pretraining_eval import BOX_DECODING, box_of

NAMES = ("refcoco", "refcoco_plus", "refcocog")


def describe(name: str, settings: downstream.DownstreamSettings) -> EvalSpec:
    """Returns the evaluation by beam 5 over exactly four tokens; correct from an IoU of 0.5 on."""
    return EvalSpec(
        name,
        kind="box",
        references=box_of,
        metrics=(accuracy_at_iou,),
        decoding=BOX_DECODING,
        max_image_size=settings.config.max_image_size,
    )


for _name in NAMES:
    downstream.add_task(_name, _name, grounding, functools.partial(describe, _name))
