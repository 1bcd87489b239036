"""Programs that run on eight simulated devices: their number is fixed when JAX starts."""

import json
import os
import pathlib
import subprocess
import sys

TESTS = pathlib.Path(__file__).resolve().parent


def results_of(program, folder, *arguments):
    """What a program prints last, as JSON; it finds the tests' modules, and `folder`'s among them.

    It is given `arguments` behind the two paths, which it puts before those that it has.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", program, str(TESTS), str(TESTS / folder), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": flags},
        cwd=TESTS.parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
