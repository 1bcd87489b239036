"""Keeps the programs that commands compile, so that a restarted run starts quickly."""

import os

import jax

__all__ = ["cache_compiled_programs"]

# The same values as in launch/environment.sh. Many programs at the start of a run are small, so
# programs of every size are cached.
_COMPILATION_CACHE = {
    "JAX_COMPILATION_CACHE_DIR": os.path.expanduser("~/.cache/ofa_jax/jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0.0,
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": -1,
}


def cache_compiled_programs() -> None:
    """Turns on JAX's compilation cache, in a folder of the user's home.

    Environment variables take precedence: JAX_COMPILATION_CACHE_DIR names another folder, or a
    bucket that all hosts can reach; an empty value turns the cache off.
    """
    for variable, value in _COMPILATION_CACHE.items():
        if variable not in os.environ:
            jax.config.update(variable.lower(), value)
