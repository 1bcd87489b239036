"""Runs a program where flax, this project and everything else that is not named fail to import."""

import os
import pathlib
import subprocess
import sys

JAX = ("jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum", "scipy", "flatbuffers")
_ONLY_NAMED = """
import importlib.machinery, sys

ALLOWED = {allowed!r}

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        top = name.partition(".")[0]
        if top in ALLOWED or top in sys.stdlib_module_names or top.startswith("_sysconfig"):
            return importlib.machinery.PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [
    importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter, Finder
]
for name in ("flax", "ofa_jax"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{{name}} is here")
FOREIGN = lambda: sorted({{name.partition(".")[0] for name in sys.modules}}
                         - ALLOWED - set(sys.stdlib_module_names))
"""


def run(
    program: str, folder: pathlib.Path, *arguments: object, allowed: tuple[str, ...] = ()
) -> str:
    """Runs a program; only JAX, what it needs and the named modules can be imported.

    Args:
      program: Python. `FOREIGN()` returns what else was imported.
      folder: the working directory, from which it also imports.
      *arguments: its command line.
      allowed: further modules that it may import.

    Returns:
      The last line that it printed.
    """
    own = {path.stem for path in folder.glob("*.py")}
    head = _ONLY_NAMED.format(allowed={*JAX, *allowed, *own})
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", head + program, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]
