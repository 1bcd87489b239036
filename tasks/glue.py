"""Seven tasks of GLUE, e.g. `glue_cola`: CoLA, SST-2, MRPC, QQP, MNLI, QNLI and RTE.

With `DownstreamSettings.options = {'decoder_prompt': 'source'}` or `'previous_output'` the decoder
reads the instruction once more before its target.
"""

import functools

from ofa_jax.evaluation.eval_spec import EvalSpec, Metric
from ofa_jax.evaluation.metrics.classification import (
    accuracy,
    accuracy_and_f1,
    matthews_correlation,
)
from ofa_jax.preprocessing.language_tasks import GLUE_TASKS

from . import downstream

_LONGEST = 5
_YES_NO = ("yes", "no")
# Task -> its labels and its metric, as GLUE prescribes it.
EVALUATION: dict[str, tuple[tuple[str, ...], Metric]] = {
    "cola": (_YES_NO, matthews_correlation),
    "sst2": (("positive", "negative"), accuracy),
    "mrpc": (_YES_NO, accuracy_and_f1),
    "qqp": (_YES_NO, accuracy_and_f1),
    "mnli": (("yes", "maybe", "no"), accuracy),
    "qnli": (_YES_NO, accuracy),
    "rte": (_YES_NO, accuracy),
}


def describe(name: str, settings: downstream.DownstreamSettings) -> EvalSpec:
    """Returns the evaluation by beam search among the labels."""
    labels, metric = EVALUATION[name]
    return EvalSpec(
        f"glue_{name}",
        kind="text",
        references=downstream.label_of,
        metrics=(metric,),
        decoding=downstream.label_decoding(settings, _LONGEST, normalize_scores=False),
        candidates=lambda: downstream.with_leading_space(labels),
    )


for _name, _task in GLUE_TASKS.items():
    downstream.add_task(f"glue_{_name}", _name, _task, functools.partial(describe, _name))
