"""The command line of `python -m ofa_jax.infer`; see there."""

import errno
from collections.abc import Sequence

import gin
from absl import flags, logging

from ofa_jax.cli import common, errors, gin_registry, gin_unread
from ofa_jax.data import task_registry
from ofa_jax.inference.build import INPUTS, build_job
from ofa_jax.inference.job import Job, JobSummary, print_line
from ofa_jax.inference.shards import ShardError

_MAX_LISTED = 5


def run_command(description: str, arguments: Sequence[str]) -> int:
    """Runs the job that the command line describes.

    Args:
      description: for `--help`.
      arguments: the command line without the program.

    Returns:
      The exit code.
    """
    flags.FLAGS(["infer"])  # grain reads its options from absl
    logging.set_verbosity(logging.WARNING)
    with errors.user_errors():
        gin_registry.register({"infer": build_job, **INPUTS})
        common.parse_arguments("python -m ofa_jax.infer", description, arguments)
        task_registry.forget_cache_dirs()
        job = gin.get_configurable("infer")()
        gin_unread.warn_of_unread()
        for line in (*_describe_recovery(job), _describe_job(job)):
            print_line(line)
    try:
        with errors.interruptible("The same command goes on after the finished files."):
            summary = job.run()
    except (OSError, ShardError) as error:
        # Finished files stay, and a restarted job resumes after them.
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            error = OSError(
                error.errno,
                f"The disk of {job.shards.directory} is full: free some space and start the job "
                "again; it goes on after its finished files",
            )
        errors.fail(error, errors.FAILURE)
    print_line(_describe_summary(job, summary))
    return errors.FAILURE if summary.lines and summary.errors == summary.lines else 0


def _describe_recovery(job: Job) -> list[str]:
    """Returns lines on what was damaged and is made anew."""
    lines = [job.message] if job.message else []
    share = [shard for shard in job.share if shard in job.damaged]
    for shard in share[:_MAX_LISTED]:
        lines.append(
            f"{job.shards.path(shard).name}: {job.damaged[shard]}; its inputs are decoded again."
        )
    if len(share) > _MAX_LISTED:
        lines.append(f"{len(share) - _MAX_LISTED} more files are damaged, too.")
    return lines


def _describe_job(job: Job) -> str:
    """Returns the line that is logged when the job starts."""
    share, todo = job.share, job.unfinished
    host = f"Host {job.host} of {job.num_hosts}: " if job.num_hosts > 1 else ""
    num_files = f"{len(share)} output files" if len(share) != 1 else "1 output file"
    directory = job.shards.directory
    if not todo:
        return f"{host}this job is finished: {num_files} in {directory}."
    if len(todo) < len(share):
        return f"{host}resuming: {len(share) - len(todo)} of {num_files} exist already."
    return f"{host}{job.shards.num_inputs:,} inputs; writing {num_files} to {directory}."


def _describe_summary(job: Job, summary: JobSummary) -> str:
    """Returns the line that is logged when the job ends."""
    parts = [f"Done: {summary.lines:,} predictions, {summary.errors:,} of them errors"]
    if summary.decoded:
        parts.append(
            f"{summary.decoded:,} decoded now in {summary.seconds:.1f} s "
            f"({summary.decoded / summary.seconds:.1f} per second)"
        )
    if summary.truncated:
        parts.append(
            f"{summary.truncated:,} instructions were longer than source_length and truncated"
        )
    sentences = [f"{'; '.join(parts)}. They are in {job.shards.directory}."]
    if summary.changed:
        sentences.append(f"{summary.changed:,} have warnings.")
    if summary.repeated:
        sentences.append(
            f"{summary.repeated:,} have the id of another one: they are in the order of the inputs."
        )
    if summary.reasons:
        most = sorted(summary.reasons.items(), key=lambda item: (-item[1], item[0]))
        counts = ", ".join(f"{count:,} x {name}" for name, count in most)
        sentences.append(f"Bad input now: {counts}.")
    return " ".join(sentences)
