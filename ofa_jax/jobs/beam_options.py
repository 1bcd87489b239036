"""Beam's own options on the command line: passed on, but a name that nobody knows is refused."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from ofa_jax.utils.suggestions import nearest

__all__ = ["check_beam_options", "runner_of"]


def check_beam_options(options: Sequence[str], own: Sequence[str]) -> None:
    """Checks the options that a job does not know itself.

    Beam drops what it does not know with a warning; a misspelt option would change the job.

    Args:
      options: e.g. ["--runner=DataflowRunner", "--region=europe-west1"].
      own: the names of the job's options, for suggestions.

    Raises:
      ValueError: one of them is not Beam's.
      ImportError: Beam is not installed.
    """
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "apache_beam":
            raise
        raise ImportError(
            "Offline jobs need the Python package apache_beam: install ofa_jax with its extra "
            "'beam', e.g. `pip install '.[beam]'` in the checkout."
        ) from error
    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, conflict_handler="resolve", exit_on_error=False
    )
    for kind in _subclasses(PipelineOptions):
        add = getattr(kind, "_add_argparse_args", None)
        if add is not None:
            add(parser)
    try:
        _, unknown = parser.parse_known_args(list(options))
    except argparse.ArgumentError as error:
        raise ValueError(f"Beam refuses the option: {error}.") from error
    if unknown:
        name = unknown[0].partition("=")[0]
        known = {*own, *parser._option_string_actions}
        raise ValueError(
            f"{name} is neither an option of the job nor of Beam.{nearest(name, known)} "
            "--help lists the job's; Beam's are those of its runner."
        )


def _subclasses(kind: Any) -> Iterator[Any]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def runner_of(options: Sequence[str]) -> str:
    """Returns the name of the runner that Beam's options name; the direct runner by default."""
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

    return PipelineOptions(list(options)).view_as(StandardOptions).runner or "DirectRunner"
