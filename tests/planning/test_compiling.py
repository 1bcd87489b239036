"""A plan does not wait for those stages of a compiler that it does not need."""

import os
import pathlib
import threading

import jax
import jax.numpy as jnp
import pytest

from ofa_jax.planning import compiling

REPORT = """Memory Space: default (color=0)
Total bytes: 29989376 (28.60MiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list

Memory Space: vmem (color=1)
Total bytes: 512 (512B)
"""


@pytest.fixture
def compiler(monkeypatch):
    jnp.zeros(1).block_until_ready()  # XLA reads its flags once, and would refuse the one below
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_something=1")
    monkeypatch.setattr(compiling, "_PERIOD", 0.01)
    return compiling.PartialCompiler()


def folder():
    flags = dict(flag.split("=") for flag in os.environ["XLA_FLAGS"].split() if "=" in flag)
    assert flags["--xla_cpu_something"] == "1"  # what was there stays
    return pathlib.Path(flags["--xla_dump_to"])


class Lowered:
    """Compiles as `does` says."""

    def __init__(self, does):
        self.compile = does


def test_a_program_is_read_before_code_generation_ends(compiler):
    never = threading.Event()

    def compile_():
        name = "module_0003.jit_train_step.cl_1."
        (folder() / f"{name}after_optimizations-memory-usage-report.txt").write_text(REPORT)
        (folder() / f"{name}after_optimizations_after_buffer_assignment.txt").write_text("HLO")
        never.wait(60)

    assert compiler.compile(Lowered(compile_)) == compiling.Compiled("HLO", 29989376.0)
    never.set()


def test_errors_of_the_compiler_are_raised(compiler):
    def compile_():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")

    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        compiler.compile(Lowered(compile_))


def test_a_compiler_that_writes_nothing_is_waited_for(compiler):
    lowered = jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32))
    compiled = compiler.compile(lowered)
    assert "HloModule" in compiled.text
    assert compiled.buffer_bytes >= 2 * 4 * 64  # the argument and the result


def test_a_report_without_memory_is_reported():
    with pytest.raises(ValueError, match="does not name the default memory"):
        compiling.hbm_total("nothing")
