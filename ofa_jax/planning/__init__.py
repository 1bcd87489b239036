"""What a compiled step costs, read from the program itself; `python -m ofa_jax.plan` reports it."""
