"""OFA ("One For All", Wang et al. 2022) in JAX: pretraining, fine-tuning, evaluation, inference.

| subpackage | contents |
| --- | --- |
| `model` | the network and its configurations |
| `tokenizers` | the vocabulary of text, image codes and box bins; image tokenizers |
| `preprocessing` | objectives and downstream tasks as plain numpy functions |
| `data` | deterministic loading and batching; the bridge to seqio; record sources |
| `decoding` | beam search, sampling and constrained decoding |
| `training` | losses, optimizer, training step and loop |
| `evaluation` | metrics and the batch evaluator |
| `inference` | the `Predictor` and batch inference |
| `checkpoints`, `interop` | our checkpoints, and those of fairseq and Hugging Face |
| `sharding`, `planning` | device meshes; memory and time of a run on hardware you do not have |
| `scenes` | the embedded data set |
| `serving` | the queue of requests, the HTTP endpoint and the demo page |
| `export` | the model as StableHLO programs, which run without this package |
| `cli`, `utils` | what the entry points share |

The entry points are the modules `train`, `evaluate`, `infer`, `plan`, `convert` and `demo`, also
installed as `ofa-train`, `ofa-evaluate`, `ofa-infer`, `ofa-plan`, `ofa-convert` and `ofa-demo`.
Importing this package imports none of the above; `ofa_jax.Predictor` is imported on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ofa_jax.inference.predictor import Predictor

__all__ = ["Predictor", "__version__"]

__version__ = "0.2.0.dev0"


def __getattr__(name: str) -> Any:
    if name == "Predictor":
        from ofa_jax.inference import predictor

        return predictor.Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
