"""Runs `python -m ofa_jax.jobs`; see `command`."""

import sys

from ofa_jax.jobs import command

if __name__ == "__main__":
    sys.exit(command.main(sys.argv[1:]))
