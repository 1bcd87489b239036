"""Inference: `ofa_jax.Predictor` in Python, and jobs over many inputs.

predictor     predicts outputs for images and instructions, one at a time or in batches; checks its
              arguments with `predictor_arguments`, and decodes with `request_decoder`
loading       loads a checkpoint with its vocabulary, image tokenizer and image sizes
presets       decode presets: how each task is decoded
image_generation  how images are generated from captions; `reranking` chooses the best candidate
requests      converts an image and an instruction to model features
prepared      requests that are ready to be decoded, and their batches
predictions   converts generated tokens to text, boxes and images
sources       sources of many requests: JSON lines, TSV files, folders of images
line_files    JSON lines, and what TSV files (`tsv_lines`) share with them; `fields` of a line
entries       a request of a source, and how its image is found and read
task_inputs   the examples of a seqio task as inputs, decoded by `task_pipeline`
build         builds a job, and `checks` that its parts fit together
fingerprint   what the predictions of a job depend on
resume        continues a job in its output directory, or refuses to
kinds         finds how each request is decoded
request_batches  puts requests of one kind into batches
job           decodes many requests and writes them shard by shard, with `shard_writer`
shards        output files that are complete or absent

The exported names are imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ofa_jax.inference.image_generation import ImageGeneration
    from ofa_jax.inference.loading import LoadedModel, load_model
    from ofa_jax.inference.predictions import Prediction
    from ofa_jax.inference.predictor import Predictor
    from ofa_jax.inference.presets import DecodePreset

__all__ = [
    "DecodePreset",
    "ImageGeneration",
    "LoadedModel",
    "Prediction",
    "Predictor",
    "load_model",
]

_MODULES = {
    "DecodePreset": "presets",
    "ImageGeneration": "image_generation",
    "LoadedModel": "loading",
    "Prediction": "predictions",
    "Predictor": "predictor",
    "load_model": "loading",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
