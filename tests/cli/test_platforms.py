"""Commands use the same platforms whether or not libtpu, the compiler for TPUs, is installed."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIBTPU = """
calls = 0


def get_library_path():
    global calls
    calls += 1
    return "/no/such/libtpu.so"
"""
# JAX calls the library for its path once at import, and again when it starts the platform.
PROGRAM = """
import sys

import libtpu

from ofa_jax.cli import common

common.parse_arguments("program", "", ["--gin_file=" + sys.argv[1]])

import jax

try:
    print(jax.devices()[0].platform, libtpu.calls)
except RuntimeError:
    print("error", libtpu.calls)
"""


@pytest.fixture
def run(tmp_path):
    """Runs PROGRAM beside a libtpu that counts its calls; returns what it prints."""
    (tmp_path / "libtpu.py").write_text(LIBTPU)
    (tmp_path / "empty.gin").write_text("")

    def run(**variables):
        environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
        environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT)])
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "empty.gin")],
            env=environment | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return run


@pytest.mark.skipif(
    any(pathlib.Path("/dev").glob("accel[0-9]*")) or any(pathlib.Path("/dev").glob("vfio/[0-9]*")),
    reason="this machine may have a TPU",
)
def test_commands_do_not_load_libtpu_on_a_machine_without_a_tpu(run):
    platform, calls = run()
    assert platform != "error" and calls == "1"


def test_platforms_that_the_user_chooses_are_kept(run):
    assert run(JAX_PLATFORMS="cpu") == ["cpu", "1"]
    assert run(JAX_PLATFORMS="tpu") == ["error", "2"]
