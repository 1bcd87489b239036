"""Runs `python -m ofa_jax.export`; see `command`."""

import sys

from ofa_jax.cli import errors
from ofa_jax.export import command
from ofa_jax.utils import distributed

if __name__ == "__main__":
    with distributed.crashes_end_at_once(), errors.interruptible():
        sys.exit(command.main(sys.argv[1:]))
