"""Every instruction, once."""

from ofa_jax.preprocessing.prompts import *  # noqa: F403
