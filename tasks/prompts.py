"""The instructions of all tasks; see `ofa_jax.preprocessing.prompts`."""

from ofa_jax.preprocessing.prompts import *  # noqa: F403
