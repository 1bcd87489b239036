r"""Prints a Kubernetes manifest of a run: fills the settings into one of launch/kubernetes_*.yaml.

    NAME=ofa IMAGE=registry/ofa CLAIM=shared python3 -m launch.manifest gpu --gin_file=...

`launch/kubernetes.sh` passes the manifest to kubectl, and its header lists the settings, which are
environment variables. The arguments are those of `python -m ofa_jax.train`. Every setting is
written as JSON, which YAML contains, so that no value can change what is around it.
"""

import json
import math
import os
import pathlib
import re
import string
import sys
from collections.abc import Mapping, Sequence

_FOLDER = pathlib.Path(__file__).resolve().parent
_PORT = 8476
_STOPPED = 75  # of sysexits.h: try again
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_TOPOLOGY = re.compile(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}")
_CHIPS = {"gpu": 8, "tpu": 4}
_NEEDED = {
    "gpu": ("NAME", "IMAGE", "CLAIM"),
    "tpu": ("NAME", "IMAGE", "TPU_ACCELERATOR", "TPU_TOPOLOGY"),
}


class SettingError(ValueError):
    """A setting is missing or wrong; the message says which."""


def manifest(kind: str, arguments: Sequence[str], settings: Mapping[str, str]) -> str:
    """Returns the manifest of a run.

    Args:
      kind: "gpu" or "tpu".
      arguments: of `ofa_jax.train`.
      settings: the environment.

    Raises:
      SettingError: a setting is missing or wrong.
    """
    for name in _NEEDED[kind]:
        if not settings.get(name):
            raise SettingError(
                f"{name} is not set; the header of launch/kubernetes.sh says what it is."
            )
    name = settings["NAME"]
    if not _NAME.fullmatch(name):
        raise SettingError(
            f"NAME is {name!r}; give up to 40 small letters, digits and -, beginning with a letter."
        )
    chips = _number(settings, "CHIPS", _CHIPS[kind])
    slices = _number(settings, "SLICES", 1) if kind == "tpu" else 1
    hosts = _number(settings, "HOSTS", 1) if kind == "gpu" else _hosts_of_slice(settings, chips)
    place: list[str] = []
    if kind == "tpu":
        place = ["--distributed"]
        if slices > 1:
            arguments = [*arguments, f"--gin.Partitioner.slices={slices}"]
    elif hosts > 1:
        place = [
            f"--coordinator_address={name}-hosts-0-0.{name}:{_PORT}",
            f"--num_processes={hosts}",
            "--process_id=$(JOB_COMPLETION_INDEX)",  # Kubernetes fills it in
        ]
    supervisor = ["python", "-m", "launch.supervisor", f"--stopped_exit_code={_STOPPED}", "--"]
    train = ["python", "-m", "ofa_jax.train"]
    escaped = [argument.replace("$(", "$$(") for argument in arguments]
    values = {
        "NAME": name,
        "NAMESPACE": settings.get("NAMESPACE") or "default",
        "IMAGE": settings["IMAGE"],
        "COMMAND": [*supervisor, *train, *place, *escaped],
        "CACHE_DIR": settings.get("CACHE_DIR", ""),
        "CLAIM": settings.get("CLAIM", ""),
        "CHIPS": chips,
        "HOSTS": hosts,
        "SLICES": slices,
        "TPU_ACCELERATOR": settings.get("TPU_ACCELERATOR", ""),
        "TPU_TOPOLOGY": settings.get("TPU_TOPOLOGY", ""),
    }
    job = "job" if kind == "gpu" and hosts == 1 else "jobset"
    template = string.Template((_FOLDER / f"kubernetes_{kind}_{job}.yaml").read_text())
    return template.substitute({key: json.dumps(value) for key, value in values.items()})


def _number(settings: Mapping[str, str], name: str, default: int) -> int:
    """Returns a setting that is a number from 1 on."""
    given = settings.get(name) or str(default)
    if not re.fullmatch(r"[1-9]\d{0,5}", given):
        raise SettingError(f"{name} is {given!r}; give a number, at least 1.")
    return int(given)


def _hosts_of_slice(settings: Mapping[str, str], chips: int) -> int:
    """Returns the number of hosts of a slice."""
    topology = settings["TPU_TOPOLOGY"]
    if not _TOPOLOGY.fullmatch(topology):
        raise SettingError(f"TPU_TOPOLOGY is {topology!r}; give the slice's, e.g. 16x16 or 4x4x8.")
    total = math.prod(map(int, topology.split("x")))
    if total % chips:
        raise SettingError(
            f"A slice of {topology} has {total} chips, which is no multiple of the {chips} of a "
            "host: set CHIPS."
        )
    return total // chips


def main(given: Sequence[str]) -> int:
    """Runs the command line without the program; returns the exit code."""
    if not given or given[0] not in _NEEDED:
        kind = given[0] if given else ""
        print(f"error: the accelerator is '{kind}'; give gpu or tpu.", file=sys.stderr)
        return 2
    try:
        print(manifest(given[0], given[1:], os.environ), end="")
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
