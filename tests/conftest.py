"""What every test shares: where the golden numbers are, and one quiet, deterministic JAX."""

import functools
import gc
import importlib.metadata
import os
import pathlib
import sys

# Two simulated hosts or eight simulated devices are made by the tests that need them, in processes
# of their own: the device count is fixed when JAX starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache/ofa_jax/jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import pytest
from absl import logging

ROOT = pathlib.Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, and only them")
    parser.addoption(
        "--differences",
        action="store_true",
        help="show the largest difference that each test has found and allowed",
    )


def pytest_configure(config):
    # Nearly all of the time goes into compiling small programs, half of it into LLVM's passes, and
    # a third of the rest into the newer emitters of fusions; a third of what remains into cutting
    # each program into parts for more cores than there are. What takes long runs as users run it.
    quick = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    jaxlib = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
    if jaxlib < (0, 11):  # XLA ends the program at a flag that it no longer has
        quick += " --xla_cpu_use_fusion_emitters=false"
    given = os.environ.get("XLA_FLAGS", "")
    # Workers of xdist inherit what the first process has set.
    if not config.getoption("--slow") and quick not in given:
        os.environ["XLA_FLAGS"] = f"{given} {quick}".strip()


def pytest_collection_finish():
    # Tracing makes so many objects that a third of its time went into looking for garbage among
    # them and all that was imported.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)


_LONGEST = (
    "test_several_hosts",
    "test_train",
    "training/test_step",
    "training/test_faults",
    "test_partitioning",
    "training/test_loop",
    "training/test_trainable",
    "decoding/test_search",
    "evaluation/test_evaluate",
    "model/test_cache",
    "test_infer",
    "model/test_inside_golden",
)
"""Modules of tests that take a minute or more."""


def pytest_collection_modifyitems(config, items):
    wanted = config.getoption("--slow")
    selected = [item for item in items if ("slow" in item.keywords) == wanted]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(selected)])
    # The longest modules first, or one worker would end long after the other.
    place = {f"tests/{module}.py": number for number, module in enumerate(_LONGEST)}
    items[:] = sorted(selected, key=lambda item: place.get(item.nodeid.split("::")[0], len(place)))


_differences: dict[str, list[float]] = {}


@pytest.fixture(autouse=True)
def differences(request, monkeypatch):
    """Keeps, under --differences, what `assert_allclose` and `assert_array_equal` let pass."""
    if not request.config.getoption("--differences"):
        return
    import numpy as np

    name = request.node.nodeid.split("[")[0]

    def keep(compare, actual, expected, *arguments, **keywords):
        compare(actual, expected, *arguments, **keywords)
        actual, expected = (np.asarray(x) for x in (actual, expected))
        if actual.size and np.issubdtype(actual.dtype, np.number):
            expected = expected.astype(np.float64)
            distance = float(np.nanmax(np.abs(actual - expected), initial=0))
            largest = float(np.nanmax(np.abs(expected), initial=0)) or 1.0
            known = _differences.setdefault(name, [0.0, 0.0, 0])
            _differences[name] = [
                max(known[0], distance),
                max(known[1], distance / largest),
                known[2] + actual.size,
            ]

    for compare in (np.testing.assert_allclose, np.testing.assert_array_equal):
        monkeypatch.setattr(np.testing, compare.__name__, functools.partial(keep, compare))


def pytest_terminal_summary(terminalreporter):
    if _differences:
        terminalreporter.section("largest differences: absolute, over the largest value, numbers")
    for name, (distance, relative, count) in _differences.items():
        terminalreporter.write_line(f"{distance:.1e}  {relative:.1e}  {count:>10,}  {name}")


@pytest.fixture(autouse=True)
def verbosity():
    """A command line sets its own; the tests after it must not inherit that."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.fixture(autouse=True, scope="module")
def programs():
    """Compiled programs go with the module that wanted them.

    Each maps some memory, of which a process may have 65,530 pieces: after a thousand tests the
    next program was a segmentation fault.
    """
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()  # which else comes seldom, see above


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """The committed numbers of the official implementation, `tests/golden`."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def shared_golden() -> pathlib.Path:
    """The golden folder beside the checkout, for what may not be committed (the BPE files)."""
    path = ROOT.parent / "shared" / "golden"
    if not path.is_dir():
        pytest.skip(f"needs the official BPE files in {path}")
    return path


@pytest.fixture(scope="session")
def official(golden):
    """The small official model with its weights and cases."""
    from official_model import Official

    return Official(golden / "model_tiny")


@pytest.fixture(scope="session")
def small():
    """A randomised small model: (jitted apply, variables)."""
    import jax
    from official_model import random_variables
    from small_model import SMALL

    from ofa_jax.model import OFA

    return jax.jit(OFA(SMALL).apply), random_variables()


@pytest.fixture(scope="session")
def small_scenes(tmp_path_factory) -> pathlib.Path:
    """A data folder with a few scenes of 64 pixels (a `--data_dir`)."""
    from tools import build_scenes

    folder = tmp_path_factory.mktemp("data")
    options = build_scenes.BuildOptions(
        num_train=150, num_validation=8, num_test=4, vocab_size=800, num_codes=32, image_size=64
    )
    build_scenes.build(folder, options, num_workers=2)
    return folder
