"""Runs one of t5x's own scripts with OFA: `python -m ofa_jax.t5x train|eval|infer FLAGS`."""

import runpy
import sys

from ofa_jax.cli.errors import USAGE_ERROR, report_error

_SCRIPTS = ("train", "eval", "infer")

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in _SCRIPTS:
        sys.exit(
            report_error(f"Give one of {', '.join(_SCRIPTS)} and then its flags.", USAGE_ERROR)
        )
    script = sys.argv.pop(1)
    runpy.run_module(f"t5x.{script}", run_name="__main__", alter_sys=True)
