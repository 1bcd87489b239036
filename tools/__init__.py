"""Commands for data and checkpoints: `python -m tools.NAME --help`."""
