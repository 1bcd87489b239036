"""Compiles as far as a plan needs: to the optimized HLO of a device and its buffer assignment.

After that the compiler generates machine code, which a plan does not need, although libtpu spends
nine tenths of the time for a training step on it. Just before, XLA writes the optimized program and
its buffers into a folder (`--xla_dump_to`); a plan stops waiting once they are complete.
"""

import dataclasses
import os
import pathlib
import re
import shutil
import tempfile
import threading
from typing import Any

import jax

_PROGRAM = "after_optimizations_after_buffer_assignment.txt"
_MEMORY = "after_optimizations-memory-usage-report.txt"
_PERIOD = 0.5


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program.

    Attributes:
      text: HLO, as one device runs it.
      buffer_bytes: of all arrays on one device when memory use is highest, arguments and results
        included.
    """

    text: str
    buffer_bytes: float


class PartialCompiler:
    """Compiles for TPUs without generating code; one per process, which must end by `os._exit`.

    XLA reads its flags once, and a compilation cannot be cancelled.
    """

    def __init__(self) -> None:
        """Sets the flags of XLA; call it before JAX looks for devices."""
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="ofa_jax_plan_"))
        flags = f"--xla_dump_to={self._folder} --xla_dump_hlo_as_text"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()

    def compile(self, lowered: jax.stages.Lowered) -> Compiled:
        """Compiles a lowered program.

        Raises:
          jax.errors.JaxRuntimeError: as of `lowered.compile()`, for what does not fit above all.
        """
        outcome: list[Any] = []

        def run() -> None:
            """Compiles in a thread of its own."""
            try:
                outcome.append(lowered.compile())
            except BaseException as error:  # raised in the waiting thread
                outcome.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        seen = -1
        while thread.is_alive():
            thread.join(_PERIOD)
            files = list(self._folder.glob(f"*{_PROGRAM}"))
            size = files[0].stat().st_size if files else -1
            # The file is complete, and the compiler did not find that the program does not fit.
            if size > 0 and size == seen:
                return self._read(files[0])
            seen = size
        shutil.rmtree(self._folder, ignore_errors=True)
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return completed(outcome[0])

    def _read(self, file: pathlib.Path) -> Compiled:
        """Reads the program and its memory report, and removes the folder."""
        report = file.with_name(file.name.removesuffix(_PROGRAM) + _MEMORY)
        compiled = Compiled(file.read_text(), hbm_total(report.read_text()))
        shutil.rmtree(self._folder, ignore_errors=True)
        return compiled


def hbm_total(report: str) -> float:
    """Returns the bytes of HBM in XLA's report of a program's memory.

    Raises:
      ValueError: there is no such line.
    """
    found = re.search(r"Memory Space: default \(color=0\)\s+Total bytes: (\d+)", report)
    if found is None:
        raise ValueError("XLA's report of the program's memory does not name the default memory.")
    return float(found[1])


def completed(compiled: jax.stages.Compiled) -> Compiled:
    """Wraps a completed compilation, what `lowered.compile()` returned."""
    stats, text = compiled.memory_analysis(), compiled.as_text()
    assert stats is not None and text is not None
    return Compiled(
        text,
        float(
            stats.argument_size_in_bytes
            + stats.output_size_in_bytes
            - stats.alias_size_in_bytes
            + stats.temp_size_in_bytes
        ),
    )
