"""Compiles as far as a plan needs: what every device runs, and where its arrays lie.

After that a compiler turns operations into instructions. For a training step libtpu spends nine
tenths of its time on those, and a plan says nothing of them. XLA writes the finished program and
its buffers into a folder (`--xla_dump_to`) just before; once they are there, nothing is waited for.
"""

import dataclasses
import os
import pathlib
import re
import shutil
import tempfile
import threading
from typing import Any

_PROGRAM = "after_optimizations_after_buffer_assignment.txt"
_MEMORY = "after_optimizations-memory-usage-report.txt"
_PERIOD = 0.5


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program.

    Attributes:
      text: HLO, as one device runs it.
      buffer_bytes: of all its arrays on one device at the worst moment, arguments and results too.
    """

    text: str
    buffer_bytes: float


class PartialCompiler:
    """How a program for TPUs is compiled: only one in a process, whose end must be `os._exit`.

    XLA reads its flags once, and a compilation cannot be called off.
    """

    def __init__(self) -> None:
        """Before JAX has been asked for any device."""
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="ofa_jax_plan_"))
        flags = f"--xla_dump_to={self._folder} --xla_dump_hlo_as_text"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()

    def compile(self, lowered: Any) -> Compiled:
        """Compiles what `jax.jit(...).lower(...)` returned.

        Raises:
          jax.errors.JaxRuntimeError: as of `lowered.compile()`, for what does not fit above all.
        """
        outcome: list[Any] = []

        def run() -> None:
            try:
                outcome.append(lowered.compile())
            except BaseException as error:  # handed to who waits
                outcome.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        seen = -1
        while thread.is_alive():
            thread.join(_PERIOD)
            files = list(self._folder.glob(f"*{_PROGRAM}"))
            size = files[0].stat().st_size if files else -1
            # Whole, and the compiler has gone on without finding that it does not fit.
            if size > 0 and size == seen:
                return self._read(files[0])
            seen = size
        shutil.rmtree(self._folder, ignore_errors=True)
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return finished(outcome[0])

    def _read(self, file: pathlib.Path) -> Compiled:
        report = file.with_name(file.name.removesuffix(_PROGRAM) + _MEMORY)
        compiled = Compiled(file.read_text(), hbm_total(report.read_text()))
        shutil.rmtree(self._folder, ignore_errors=True)
        return compiled


def hbm_total(report: str) -> float:
    """Bytes of HBM in XLA's report of a program's memory.

    Raises:
      ValueError: there is no such line.
    """
    found = re.search(r"Memory Space: default \(color=0\)\s+Total bytes: (\d+)", report)
    if found is None:
        raise ValueError("XLA's report of the program's memory does not name the default memory.")
    return float(found[1])


def finished(compiled: Any) -> Compiled:
    """Of `lowered.compile()`, which took the time it took."""
    stats = compiled.memory_analysis()
    return Compiled(
        compiled.as_text(),
        float(
            stats.argument_size_in_bytes
            + stats.output_size_in_bytes
            - stats.alias_size_in_bytes
            + stats.temp_size_in_bytes
        ),
    )
