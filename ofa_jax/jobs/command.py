r"""The command line of the offline jobs.

    python -m ofa_jax.jobs encode_images --input 'pairs-*.tsv' --vqgan=last.ckpt \
      --output_dir=data/codes --direct_num_workers=4 --direct_running_mode=multi_processing
    python -m ofa_jax.jobs convert_tsv --kind=text --input text_examples.tsv --output_dir=data/ofa
    python -m ofa_jax.jobs cache_tasks --task=image_captioning --output_dir=data/cache

Options that the job does not know are Beam's own, such as --runner. The same command again goes on
where a killed one stopped: finished shards are kept.
"""

import argparse
import collections
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from etils import epath

from ofa_jax.cli.errors import FAILURE, report_error, report_interrupt
from ofa_jax.inference.shards import compare_jobs
from ofa_jax.jobs import cache_tasks, convert_tsv, encode_images, pipeline
from ofa_jax.jobs.beam_options import check_beam_options, runner_of
from ofa_jax.jobs.outputs import JOB_FILE, JobOutput, Manifest, new_output
from ofa_jax.utils import locks, platforms, text_files

__all__ = ["JOBS", "main"]

JOBS: dict[str, Any] = {
    "encode_images": encode_images,
    "convert_tsv": convert_tsv,
    "cache_tasks": cache_tasks,
}
"""Name -> the module with `add_arguments(parser)` and `prepare(options)`."""


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all jobs."""
    parser = argparse.ArgumentParser(
        prog="python -m ofa_jax.jobs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    for name, module in JOBS.items():
        job = jobs.add_parser(
            name,
            help=(module.__doc__ or "").splitlines()[0].partition(": ")[2],
            description=module.__doc__,
            epilog="All other options are Beam's, such as --runner=DataflowRunner.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        job.add_argument("--output_dir", required=True, help="where the output goes")
        job.add_argument("--split", default="train", help="of the records (default: train)")
        job.add_argument(
            "--dry_run",
            action="store_true",
            help="check input and options, say what would be done, and do nothing",
        )
        module.add_arguments(job)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    parser = build_parser()
    options, beam_options = parser.parse_known_args(arguments)
    try:
        own = [word for word in vars(options) if word != "job"]
        check_beam_options(beam_options, [f"--{name}" for name in own])
        platforms.skip_missing_tpu()
        job, bounds, directory = JOBS[options.job].prepare(options)
        description = job.identity()
        output = new_output(directory, bounds, description)
        if options.dry_run:
            _describe(output, runner_of(beam_options))
            return 0
        epath.Path(directory).mkdir(parents=True, exist_ok=True)
        with locks.directory_lock(directory, "--output_dir"):
            return _run(job, output, description | {"bounds": bounds}, beam_options)
    except KeyboardInterrupt:
        return report_interrupt("The same command again goes on: finished shards are kept.")
    except (ValueError, OSError, ImportError) as error:
        return report_error(str(error) if not isinstance(error, OSError) else _sentence(error))


def _sentence(error: OSError) -> str:
    return error.strerror if error.strerror and error.filename is None else str(error)


def _describe(output: JobOutput, runner: str) -> None:
    """Prints what a job would do."""
    finished = sum(output.read_manifest(shard) is not None for shard in range(output.count))
    print(
        f"{runner}: {output.bounds[-1]:,} records in {output.count:,} shards to "
        f"{output.directory}; {finished:,} shards are finished. Nothing was written (--dry_run)."
    )


def _run(
    job: Any, output: JobOutput, description: dict[str, Any], beam_options: Sequence[str]
) -> int:
    """Runs a job that was checked, under the lock of its folder."""
    if output.is_complete():
        _check_same(output, description)
        output.remove_unfinished()
        print(f"{output.directory} is complete: nothing to do.")
        return 0
    output.begin(description)
    try:
        pipeline.run_shards(job, output, beam_options)
    except (RuntimeError, OSError, ValueError) as error:  # of a worker, e.g. a full disk
        reason = str(error).strip().splitlines()
        return report_error(
            f"The job stopped ({_first_cause(reason)}): start the same command again, finished "
            "shards are kept.",
            FAILURE,
        )
    manifests = output.manifests()
    summary = summarise(manifests)
    if not summary["records"]:
        raise ValueError(
            f"Not one record of the input can be used; {output.directory}/dead_letters says why."
        )
    names = job.finish(output, manifests, summary)
    output.finish(names)
    _report(output, summary)
    return 0


def _first_cause(lines: list[str]) -> str:
    """Returns the line of an error of Beam that says what happened."""
    found = [line for line in lines if line and not line.startswith((" ", "Traceback"))]
    return found[0] if found else "no reason is known"


def _check_same(output: JobOutput, description: dict[str, Any]) -> None:
    """Raises ValueError if a complete output is of another job."""
    folder = epath.Path(output.directory)
    current = json.loads(json.dumps(description))
    compare_jobs(pathlib.Path(folder), text_files.read_json(folder / JOB_FILE), current)


def summarise(manifests: Sequence[Manifest]) -> dict[str, Any]:
    """Returns the numbers of records, and of those that were left out by reason."""
    skipped: collections.Counter[str] = collections.Counter()
    for manifest in manifests:
        skipped.update(manifest.skipped)
    records = sum(manifest.records for manifest in manifests)
    return {"records": records, "skipped": dict(sorted(skipped.items()))}


def _report(output: JobOutput, summary: dict[str, Any]) -> None:
    """Prints what was written."""
    print(
        f"{output.directory}: {summary['records']:,} records; "
        f"{sum(summary['skipped'].values()):,} left out."
    )
    for reason, count in summary["skipped"].items():
        print(f"    {count:>12,} left out: {reason}")
