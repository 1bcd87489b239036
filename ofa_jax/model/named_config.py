"""The model's configuration by the name of its size, as gin files give it."""

import dataclasses
from typing import Any

from ofa_jax.model.config import SIZES, OFAConfig
from ofa_jax.utils.suggestions import nearest


def model_config(size: str, **overrides: Any) -> OFAConfig:
    """Returns one of the named sizes, with any field of `OFAConfig` overridden.

    Args:
      size: "tiny", "medium", "base", "large", "huge" (the published ones) or "scenes".
      **overrides: fields of `OFAConfig`, e.g. `dtype="bfloat16"`. `vocab_size` is filled in from
        the vocabulary of the run's tasks.

    Raises:
      ValueError: an unknown size or field, with the nearest right name.
    """
    if size not in SIZES:
        raise ValueError(
            f"model_config.size is {size!r}; the sizes are {', '.join(SIZES)}."
            f"{nearest(str(size), SIZES)}"
        )
    fields = {field.name for field in dataclasses.fields(OFAConfig)}
    for name in overrides:
        if name not in fields:
            raise ValueError(f"model_config has no parameter {name}.{nearest(name, fields)}")
    return getattr(OFAConfig, size)(**overrides)
