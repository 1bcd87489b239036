"""Runs programs on eight simulated devices in a subprocess, as JAX fixes their number at start."""

import json
import os
import pathlib
import subprocess
import sys

HELPERS = pathlib.Path(__file__).resolve().parent
ROOT = HELPERS.parents[1]
IMPORTABLE = (ROOT, HELPERS, ROOT / "tests" / "training", ROOT / "tests" / "decoding")
"""Folders whose modules the programs import; some import from the test that contains them."""


def run_on_eight_devices(program, *arguments):
    """Runs `program`, which may import the test helpers, and parses its last line as JSON."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    process = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "XLA_FLAGS": flags,
            "PYTHONPATH": os.pathsep.join(map(str, IMPORTABLE)),
        },
        cwd=ROOT,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])
