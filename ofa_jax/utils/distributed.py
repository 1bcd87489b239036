"""Connects the processes of several hosts; call `initialize` before any other use of JAX.

The program runs once per host (on TPU) or per process. On a cluster that describes itself (Cloud
TPU, GKE, SLURM, Kubernetes, MPI), `--distributed` reads the description; elsewhere give all of

    --coordinator_address=HOST:PORT --num_processes=N --process_id=K

or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in the environment. Without any of
these there is one process.

When a process dies, the others end after `heartbeat_timeout_seconds`; a supervisor
(`python -m launch.supervisor`) restarts them all.
"""

import argparse
import contextlib
import dataclasses
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping

HEARTBEAT_TIMEOUT_SECONDS = 30
_ADDRESSING = ("coordinator_address", "num_processes", "process_id")
FLAGS = ("--distributed", *(f"--{name}" for name in _ADDRESSING), "--heartbeat_timeout_seconds")
"""Flags of the command line."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """How to connect to the other processes.

    Attributes:
      detect: use the metadata of the cluster.
      coordinator_address: "host:port" of process 0.
      num_processes: number of processes.
      process_id: number of this process, from 0.
      heartbeat_timeout_seconds: a process without a heartbeat for longer is considered dead.
    """

    detect: bool = False
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    heartbeat_timeout_seconds: int = HEARTBEAT_TIMEOUT_SECONDS

    def __post_init__(self) -> None:
        """Raises ValueError for an incomplete or impossible address."""
        missing = [f"--{name}" for name in _ADDRESSING if getattr(self, name) is None]
        if missing and len(missing) < len(_ADDRESSING) and not self.detect:
            raise ValueError(
                f"A process of several needs all of --coordinator_address, --num_processes and "
                f"--process_id; {' and '.join(missing)} are missing."
            )
        if self.coordinator_address is None or None in (self.num_processes, self.process_id):
            return
        assert self.num_processes is not None and self.process_id is not None
        if not 0 <= self.process_id < self.num_processes:
            raise ValueError(
                f"--process_id is {self.process_id}; give a number from 0 to "
                f"{self.num_processes - 1}."
            )
        host, _, port = self.coordinator_address.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(
                f"--coordinator_address is {self.coordinator_address!r}; give HOST:PORT of "
                "process 0, e.g. 10.0.0.1:8476."
            )

    @property
    def several(self) -> bool:
        """Whether there are other processes to connect to."""
        return self.detect or self.coordinator_address is not None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of several hosts."""
    group = parser.add_argument_group("several hosts")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes, as TPU metadata, SLURM, Kubernetes or MPI say",
    )
    group.add_argument("--coordinator_address", metavar="HOST:PORT", help="of process 0")
    group.add_argument("--num_processes", type=int, metavar="N", help="of the whole run")
    group.add_argument("--process_id", type=int, metavar="K", help="of this process, from 0")
    group.add_argument(
        "--heartbeat_timeout_seconds",
        type=int,
        default=HEARTBEAT_TIMEOUT_SECONDS,
        metavar="S",
        help="when a silent process is given up, and all end to be started again "
        "(default %(default)s)",
    )


def from_arguments(
    options: argparse.Namespace, environment: Mapping[str, str] = os.environ
) -> Cluster:
    """Returns the cluster of parsed arguments; the environment fills in what they leave open.

    Raises:
      ValueError: some of the three are missing, or do not fit.
    """
    given = {name: getattr(options, name) for name in _ADDRESSING}
    if all(value is None for value in given.values()):
        given["coordinator_address"] = environment.get("JAX_COORDINATOR_ADDRESS")
        for name in ("num_processes", "process_id"):
            number = environment.get(f"JAX_{name.upper()}", "")
            given[name] = int(number) if number.isdigit() else None
    return Cluster(
        options.distributed, **given, heartbeat_timeout_seconds=options.heartbeat_timeout_seconds
    )


def initialize(cluster: Cluster) -> None:
    """Connects to the other processes, if there are any. JAX must not have been used yet.

    Raises:
      ValueError: no cluster was detected.
    """
    if not cluster.several:
        return
    import jax  # only here: the flags of this module are also those of `--help`

    try:
        jax.distributed.initialize(
            coordinator_address=cluster.coordinator_address,
            num_processes=cluster.num_processes,
            process_id=cluster.process_id,
            # Given everything, JAX must not take the devices of a SLURM job apart on its own.
            cluster_detection_method=None if cluster.detect else "deactivate",
            heartbeat_timeout_seconds=cluster.heartbeat_timeout_seconds,
        )
    except ValueError as error:
        raise ValueError(
            f"--distributed found no description of a cluster ({error}): give "
            "--coordinator_address, --num_processes and --process_id."
        ) from error


@contextlib.contextmanager
def crashes_end_at_once() -> Iterator[None]:
    """Ends a crashed process, one of several, without waiting for the others.

    An orderly exit would wait for them, and they for it, until both time out.
    """
    try:
        yield
    except BaseException as error:
        jax = sys.modules.get("jax")  # a command that never imported it is alone
        if jax is None or not jax.distributed.is_initialized():
            raise
        code = 1
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            if code == 0:
                raise
        else:
            traceback.print_exc()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
