"""Agreement among hosts on plain numbers; every host must call these functions together."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

__all__ = ["first_host_decides", "make_on_first_host", "sum_over_hosts"]


def make_on_first_host(make: Callable[[], int]) -> int:
    """Returns on all hosts what `make` returns on the first one; the others do not call it."""
    if jax.process_count() == 1:
        return make()
    own = make() if jax.process_index() == 0 else 0
    return int(multihost_utils.broadcast_one_to_all(np.int32(own)))


def first_host_decides(own: bool) -> bool:
    """Returns the first host's decision on all hosts.

    Args:
      own: what this host would decide.
    """
    return bool(make_on_first_host(lambda: own))


def sum_over_hosts(count: int) -> int:
    """Returns the sum of a number that each host has."""
    if jax.process_count() == 1:
        return count
    return int(multihost_utils.process_allgather(np.int32(count)).sum())
