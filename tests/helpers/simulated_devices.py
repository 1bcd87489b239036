"""Programs that run on eight simulated devices: their number is fixed when JAX starts."""

import json
import os
import pathlib
import subprocess
import sys

HELPERS = pathlib.Path(__file__).resolve().parent
ROOT = HELPERS.parents[1]


def results_of(program, *arguments):
    """Returns what `program` prints last, as JSON; it can import the tests' helper modules."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "XLA_FLAGS": flags,
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, HELPERS, ROOT / "tests" / "training"))),
        },
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
