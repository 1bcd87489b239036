"""Gigaword: task `gigaword`, headlines of news."""

from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.metrics.summarization import rouge
from ofa_jax.preprocessing.language_tasks import summarization

from . import downstream

NAME = "gigaword"


def describe(settings: downstream.DownstreamSettings) -> EvalSpec:
    """Returns the published evaluation: beam 6, length penalty 0.7, 32 tokens; ROUGE-1, 2 and L."""
    del settings
    return EvalSpec(
        NAME,
        kind="text",
        references=lambda record: record.get("summary", "").lower(),
        metrics=(rouge,),
        decoding=DecodingConfig(
            beam_size=6, max_length=32, length_penalty=0.7, no_repeat_ngram_size=3
        ),
    )


downstream.add_task(NAME, NAME, summarization, describe)
