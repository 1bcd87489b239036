"""The model's configuration by the name of its size, as gin files give it."""

from typing import Annotated, Any

from ofa_jax.model.config import SIZES, OFAConfig
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked


@checked
def model_config(
    size: Annotated[str, options.OneOf(SIZES)],
    **overrides: Annotated[Any, options.FieldsOf(OFAConfig)],
) -> OFAConfig:
    """Returns one of the named sizes, with any field of `OFAConfig` overridden.

    Args:
      size: "tiny", "medium", "base", "large", "huge" (the published ones) or "scenes".
      **overrides: fields of `OFAConfig`, e.g. `dtype="bfloat16"`. `vocab_size` is filled in from
        the vocabulary of the run's tasks.

    Raises:
      ValueError: an unknown size or field, with the nearest right name.
    """
    return getattr(OFAConfig, size)(**overrides)
