"""The commands `ofa-train`, `ofa-evaluate`, `ofa-infer`, `ofa-plan`, `ofa-convert` and others.

Each runs its module as `python -m ofa_jax.NAME` would.
"""

import runpy
import sys

__all__ = ["convert", "demo", "evaluate", "export", "infer", "jobs", "plan", "train"]


def train() -> None:
    """Runs `ofa-train`."""
    _run("train")


def evaluate() -> None:
    """Runs `ofa-evaluate`."""
    _run("evaluate")


def infer() -> None:
    """Runs `ofa-infer`."""
    _run("infer")


def plan() -> None:
    """Runs `ofa-plan`."""
    _run("plan")


def convert() -> None:
    """Runs `ofa-convert`."""
    _run("convert")


def demo() -> None:
    """Runs `ofa-demo`."""
    _run("demo")


def jobs() -> None:
    """Runs `ofa-jobs`."""
    _run("jobs")


def export() -> None:
    """Runs `ofa-export`."""
    _run("export")


def _run(name: str) -> None:
    """Runs an entry point; exits with a sentence if the packages of its extra are missing."""
    try:
        runpy.run_module(f"ofa_jax.{name}", run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "ofa_jax", "tasks", "tools"):
            raise  # a mistake of ours
        extra = {"plan": "plan", "demo": "demo", "jobs": "beam", "export": "export"}.get(
            name, "train"
        )
        print(
            f"error: ofa-{name} needs the Python package {missing!r}, which is not installed: "
            f"install ofa_jax with its extra {extra!r}, e.g. `pip install '.[{extra}]'` in the "
            "checkout.",
            file=sys.stderr,
        )
        sys.exit(2)
