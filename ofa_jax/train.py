"""Pretrains or fine-tunes OFA as gin files say.

    python -m ofa_jax.train --gin_file=gin_configs/runs/pretrain_scenes.gin --gin.TRAIN_STEPS=100

Whatever a user can get wrong is found before the first compilation: `training.build.build_run`
builds every part of the run and checks the parts against each other. `training.loop` then trains.
"""

import sys
from collections.abc import Sequence

from ofa_jax.cli import flags
from ofa_jax.utils import allocator, distributed


def main(arguments: Sequence[str]) -> None:
    """Runs the command line `arguments` (without the program)."""
    flags.answer_help("python -m ofa_jax.train", __doc__ or "", arguments)
    # Imported only now: it takes seconds, and --help needs none of it.
    from ofa_jax.cli import train_command

    train_command.run_command(__doc__ or "", arguments)


if __name__ == "__main__":
    allocator.restart_with_huge_pages()
    with distributed.crashes_end_at_once():
        main(sys.argv[1:])
