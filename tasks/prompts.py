"""Every instruction, once."""

from ofa_jax.data.prompts import *  # noqa: F403
