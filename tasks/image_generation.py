"""Images from captions: task `text_to_image`, the codes of a whole image.

Decoding samples as published: 24 candidates of 1,024 codes, each from the 256 most probable. The
choice of the best candidate by CLIP and the published metrics (FID, Inception and CLIP scores) need
weights that are not part of this project. `evaluate.image_ranker` chooses and scores images by the
user's; `infer.image_generation` writes images, and `tools.image_metrics` measures them.
"""

from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.preprocessing import prompts
from ofa_jax.preprocessing.downstream import text_to_image

from . import downstream

NAME = "text_to_image"
CANDIDATES, TOP_K = 24, 256


def describe(settings: downstream.DownstreamSettings) -> EvalSpec:
    """Samples the codes of the vocabulary, no other token."""
    config = settings.config
    codes = config.vocabulary.code_ids
    return EvalSpec(
        NAME,
        kind="codes",
        references=lambda record: record["captions"][0],
        metrics=(),
        decoding=DecodingConfig(
            method="sample",
            beam_size=CANDIDATES,
            max_length=config.num_codes,
            exact_length=True,
            top_k=min(TOP_K, len(codes)),
            constraint_range=(codes.start, codes.stop),
        ),
        unconditional=prompts.UNCONDITIONAL_IMAGE,
    )


downstream.add_task(NAME, NAME, text_to_image, describe)
