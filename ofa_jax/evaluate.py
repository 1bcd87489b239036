"""Evaluates tasks on the checkpoints of a run, as configured by gin files.

    python -m ofa_jax.evaluate --gin_file=RUN.gin --gin_file=gin_configs/runs/evaluate.gin

RUN.gin stands for the gin files of the run, or the config.gin beside its checkpoints: parameters of
`evaluate` that are not set (model_dir, streams, settings, partitioner ...) are those of `train`.
Resumable: finished evaluations are skipped. Results go to MODEL_DIR/evaluations/SPLIT:

    metrics.json                     {step: {task: {metric: value}}}
    STEP/TASK/predictions.jsonl      a line per example; boxes in pixels of the stored image
    STEP/TASK/result.json            metrics, counts and times
    STEP/TASK/gallery.json           the worst and the best examples, for the report
    events.out.tfevents...           for TensorBoard
    config.gin                       the operative configuration

MODEL_DIR/report.html shows all of it.

Exit codes: 0 if everything that has a reference was scored, also if nothing has one; 1 if a metric
or a task failed (`failed` in its result.json says why; everything else was evaluated) or a file
could not be read or written; 2 for a mistake in the configuration, before anything was written.
"""

import sys
from collections.abc import Sequence

from ofa_jax.cli import errors, flags
from ofa_jax.utils import allocator, distributed


def main(arguments: Sequence[str]) -> None:
    """Runs the command line `arguments` (without the program)."""
    flags.answer_help("python -m ofa_jax.evaluate", __doc__ or "", arguments)
    # Imported only now: it takes seconds, and --help needs none of it.
    from ofa_jax.cli import evaluate_command

    evaluate_command.run_command(__doc__ or "", arguments)


if __name__ == "__main__":
    allocator.restart_with_huge_pages()
    with distributed.crashes_end_at_once(), errors.interruptible("Run it again to resume."):
        main(sys.argv[1:])
