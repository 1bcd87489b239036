"""Runs `python -m ofa_jax.jobs`; see `command`."""

import sys

from ofa_jax.utils import allocator

if __name__ == "__main__":
    allocator.restart_with_huge_pages()
    from ofa_jax.jobs import command

    sys.exit(command.main(sys.argv[1:]))
