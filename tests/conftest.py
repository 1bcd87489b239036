"""Settings and fixtures of all tests: JAX on CPU, golden numbers, a small model and data set."""

import fcntl
import functools
import gc
import importlib.metadata
import os
import pathlib
import sys

# Tests that need several hosts or devices simulate them in subprocesses, because the device count
# is fixed when JAX starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache/ofa_jax/jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis
import pytest
from absl import flags, logging
from left_out import describe_left_out

ROOT = pathlib.Path(__file__).resolve().parent.parent

# The same examples in every run: a failure is the change's, not chance's. New ones are tried by
# `bash tests/run.sh fuzz`.
hypothesis.settings.register_profile(
    "tests",
    derandomize=True,
    max_examples=50,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("tests")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, and only them")
    parser.addoption(
        "--differences",
        action="store_true",
        help="show the largest difference that each test has found and allowed",
    )


def pytest_configure(config):
    # Nearly all of the time goes into compiling small programs: half of it into LLVM's passes, and
    # most of the rest into the newer fusion emitters and into splitting programs for parallel code
    # generation. Slow tests compile as users do.
    quick = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    jaxlib = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
    if jaxlib < (0, 11):  # XLA aborts at an unknown flag
        quick += " --xla_cpu_use_fusion_emitters=false"
    given = os.environ.get("XLA_FLAGS", "")
    # Workers of xdist inherit what the first process has set.
    if not config.getoption("--slow") and quick not in given:
        os.environ["XLA_FLAGS"] = f"{given} {quick}".strip()


def pytest_collection_finish():
    # Tracing creates many objects. With default settings, the garbage collector took a third of its
    # time, scanning them and all imported modules.
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
"""Test modules that take a minute or more."""


def pytest_collection_modifyitems(config, items):
    wanted = config.getoption("--slow")
    selected = [item for item in items if ("slow" in item.keywords) == wanted]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(selected)])
    # The longest modules first, so that all workers end at about the same time.
    place = {f"tests/{module}.py": number for number, module in enumerate(_LONGEST)}
    items[:] = sorted(selected, key=lambda item: place.get(item.nodeid.split("::")[0], len(place)))


_VERBOSITY = logging.get_verbosity()
_differences: dict[str, list[float]] = {}


@pytest.fixture(autouse=True)
def differences(request, monkeypatch):
    """Records the differences that numpy's assertions accept, if --differences is given."""
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
    if line := describe_left_out(terminalreporter.getreports("skipped")):
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def verbosity():
    """Starts each test with the verbosity that absl has when Python starts.

    The command lines under test set it, some of them in a fixture of a module, which is set up
    before this one: what they leave must not be taken for what was there before.
    """
    logging.set_verbosity(_VERBOSITY)
    yield
    logging.set_verbosity(_VERBOSITY)


@pytest.fixture(autouse=True, scope="module")
def programs():
    """Clears the compiled programs after each module.

    Each program maps memory, and a process may have at most 65,530 mappings: after a thousand tests
    the next compilation ended in a segmentation fault.
    """
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()  # automatic collection is rare, see above


@pytest.fixture(scope="session")
def absl_flags():
    """Parses absl's flags, as commands do: Grain's worker processes need them."""
    flags.FLAGS(["tests"])


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """Returns the folder `tests/golden` with numbers of the official implementation."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def shared_golden() -> pathlib.Path:
    """Returns the golden folder beside the checkout, which has the uncommitted BPE files."""
    path = ROOT.parent / "shared" / "golden"
    if not path.is_dir():
        pytest.skip(f"needs the official BPE files in {path}")
    return path


@pytest.fixture(scope="session")
def official(golden):
    """Returns the small official model with its weights and cases."""
    from official_model import Official

    return Official(golden / "model_tiny")


@pytest.fixture(scope="session")
def small():
    """Returns a small model with random variables: (jitted apply, variables)."""
    import jax
    from official_model import random_variables
    from small_model import SMALL

    from ofa_jax.model import OFA

    return jax.jit(OFA(SMALL).apply), random_variables()


@pytest.fixture(scope="session")
def small_scenes(tmp_path_factory) -> pathlib.Path:
    """Returns a data folder (a `--data_dir`) with a few scenes of 64 pixels."""
    from tools import build_scenes

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all workers: one builds the scenes, the others wait
    options = build_scenes.BuildOptions(
        num_train=150, num_validation=8, num_test=4, vocab_size=800, num_codes=32, image_size=64
    )
    with (folder / "small_scenes.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build_scenes.build(folder / "small_scenes", options, num_workers=2)
    return folder / "small_scenes"
