r"""Batch inference with a trained model: JSON lines, TSV files, image folders or seqio tasks.

    python -m ofa_jax.infer --gin_file=gin_configs/runs/infer.gin \
      --gin.CHECKPOINT="'runs/pretrain_scenes'" --gin.OUTPUT_DIR="'predictions'" \
      --gin.INPUTS="@ImageFolder()" --gin.ImageFolder.path="'images'" \
      --gin.ImageFolder.instruction="'what does the image describe?'"

Predictions are written as JSON lines, in files that are complete or absent: a restarted job
resumes, and a finished job does nothing. Exit code 0: every input has its line, which may be an
error; 1: every line is an error, or writing failed; 2: a mistake in the configuration, reported in
one sentence.
"""

import sys
from collections.abc import Sequence

from ofa_jax.cli import flags
from ofa_jax.utils import allocator, distributed


def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (without the program); returns the exit code."""
    flags.answer_help("python -m ofa_jax.infer", __doc__ or "", arguments)
    # Imported only now: it takes seconds, and --help needs none of it.
    from ofa_jax.cli import infer_command

    return infer_command.run_command(__doc__ or "", arguments)


if __name__ == "__main__":
    allocator.restart_with_huge_pages()
    with distributed.crashes_end_at_once():
        sys.exit(main(sys.argv[1:]))
