"""OFA as a model of t5x: t5x's own trainer, evaluator and inference drive it.

| module | contents |
| --- | --- |
| `compat` | checks that t5x is installed, and restores a name that it needs and JAX dropped |
| `mixtures` | mixtures whose examples carry their loss group |
| `model` | `OFAModel`, a `t5x.models.BaseTransformerModel` |
| `settings` | optimizer, feature converter and axis rules as t5x wants them |

    python -m ofa_jax.t5x train --gin_file=ofa_jax/t5x/finetune.gin ...

t5x is not on PyPI, and no dependency of this project: docs/guides/t5x.md says how to install it.
Importing this package without it raises ImportError with a sentence.
"""

from ofa_jax.t5x import compat

compat.prepare()

from ofa_jax.t5x.mixtures import grouped_mixture  # noqa: E402
from ofa_jax.t5x.model import OFAModel  # noqa: E402
from ofa_jax.t5x.settings import adamw, feature_converter, logical_axis_rules  # noqa: E402

__all__ = [
    "OFAModel",
    "adamw",
    "compat",
    "feature_converter",
    "grouped_mixture",
    "logical_axis_rules",
    "mixtures",
    "model",
    "settings",
]
