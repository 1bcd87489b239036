"""Peak memory of a command, beyond what its imports take."""

import subprocess
import sys

# ru_maxrss would begin with the peak of the process that started this one.
_PROGRAM = """
import importlib, pathlib, sys
def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
command = importlib.import_module(sys.argv[1])
before = peak()
command.main(sys.argv[2:])
print(peak() - before)
"""


def peak_bytes(module: str, *arguments: object) -> int:
    """Runs `main` of a module in a process of its own; mapped pages of files count. Linux only."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, module, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])
