"""Exports a trained model as StableHLO programs: `python -m ofa_jax.export RUN --out=DIR`.

| module | contents |
| --- | --- |
| `command` | the command line |
| `programs` | encoder, decoder step and whole generation as functions of arrays, lowered |
| `writing` | the folder: programs, parameters, tokenizer files and manifest |
| `loader` | what runs them elsewhere: it is copied into the folder, and needs JAX and numpy only |
"""

__all__ = ["command", "loader", "programs", "writing"]
