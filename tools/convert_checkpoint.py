"""Converts checkpoints between fairseq's layout (official OFA), Hugging Face's and ours.

    python -m tools.convert_checkpoint ofa_base.pt runs/ofa_base

The earlier name of `ofa-convert` (`python -m ofa_jax.convert`), with the same arguments.
"""

import sys
from collections.abc import Sequence

from ofa_jax import convert
from ofa_jax.checkpoints import storage
from ofa_jax.cli import convert_command

from .command import user_command

__all__ = ["main", "storage"]


@user_command
def main(arguments: Sequence[str]) -> None:
    """Runs the command line."""
    program = "python -m tools.convert_checkpoint"
    convert_command.run_command(program, convert.__doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
