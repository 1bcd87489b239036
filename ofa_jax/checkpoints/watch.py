"""Which checkpoints are evaluated: the newest, all, some, or each one as training writes it."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from ofa_jax.checkpoints import checksums, storage
from ofa_jax.interop import files

WORDS = ("newest", "all", "watch")
_STOP, _WAIT = -1, -2


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint: its step (0 for one of others) and where it is."""

    step: int
    path: str


@dataclasses.dataclass(frozen=True)
class CheckpointSelector:
    """What is wanted.

    Attributes:
      path: a run directory, a folder `checkpoints/<step>`, or a checkpoint of others.
      which: "newest", "all", "watch", or steps. Only for a run directory.
      last_step: watching ends when it has come; None for no such end.
      timeout_seconds: watching ends when no new checkpoint has come for so long.
      poll_seconds: between two looks.
    """

    path: str
    which: str | Sequence[int] = "newest"
    last_step: int | None = None
    timeout_seconds: float = 3600
    poll_seconds: float = 10

    def __post_init__(self) -> None:
        words = isinstance(self.which, str)
        if words and self.which not in WORDS or not words and not list(self.which):
            raise ValueError(
                f"CHECKPOINTS is {self.which!r}; give one of {', '.join(map(repr, WORDS))}, or a "
                "list of steps."
            )

    @property
    def watching(self) -> bool:
        """Whether to wait for what training writes."""
        return self.which == "watch"

    def _single(self) -> Checkpoint | None:
        """The checkpoint that the path names by itself."""
        if files.is_official(self.path):
            return Checkpoint(0, self.path)
        folder = storage.absolute(self.path)
        if (folder / "state").is_dir():
            return Checkpoint(int(folder.name) if folder.name.isdigit() else 0, str(folder))
        return None

    def there(self) -> list[Checkpoint]:
        """Those that are wanted and there, by step.

        Raises:
          FileNotFoundError: there is none, and nothing is waited for; or a wanted step is missing.
        """
        if (single := self._single()) is not None:
            return [single]
        found = storage.steps(self.path)
        if not found and not self.watching:
            storage.find(self.path)  # says so
        chosen = list(found)
        if self.which == "newest":
            chosen = chosen[-1:]
        elif not isinstance(self.which, str):
            if missing := sorted(set(self.which) - set(found)):
                raise FileNotFoundError(
                    f"There is no checkpoint of step {', '.join(map(str, missing))} in "
                    f"{self.path}; it has {', '.join(map(str, found))}."
                )
            chosen = sorted(set(self.which))
        return [Checkpoint(step, str(found[step])) for step in chosen]

    def any_path(self) -> str:
        """Where the model's configuration stands.

        Raises:
          FileNotFoundError: nowhere yet.
        """
        found = self.there()
        return found[-1].path if found else self.path


def follow(
    choice: CheckpointSelector,
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Checkpoint]:
    """The wanted checkpoints, the oldest first; while watching, also those that come.

    All hosts follow together: the first one looks, and tells the others.
    """
    if not choice.watching:
        yield from choice.there()
        return
    seen: set[int] = set()
    since = time.monotonic()
    waiting = False
    while True:
        step = _shared(lambda: _next(choice, seen, since))  # noqa: B023  called at once
        if step == _STOP:
            say(_why_stop(choice, seen))
            return
        if step == _WAIT:
            if not waiting:
                say(f"Waiting for checkpoints in {choice.path} ...")
            waiting = True
            sleep(choice.poll_seconds)
            continue
        waiting = False
        seen.add(step)
        yield Checkpoint(step, str(storage.absolute(choice.path) / "checkpoints" / str(step)))
        since = time.monotonic()


def _next(choice: CheckpointSelector, seen: set[int], since: float) -> int:
    """The next step, or what to do instead."""
    new = [checkpoint.step for checkpoint in choice.there() if checkpoint.step not in seen]
    if new:
        return new[0]
    if choice.last_step is not None and seen and max(seen) >= choice.last_step:
        return _STOP
    return _STOP if time.monotonic() - since > choice.timeout_seconds else _WAIT


def _why_stop(choice: CheckpointSelector, seen: set[int]) -> str:
    if choice.last_step is not None and seen and max(seen) >= choice.last_step:
        return f"Step {choice.last_step} has been evaluated: done."
    return (
        f"No new checkpoint in {choice.path} for {choice.timeout_seconds:.0f} s: done. "
        "Called again, it goes on."
    )


def _shared(decide: Callable[[], int]) -> int:
    """What the first host decides."""
    if jax.process_count() == 1:
        return decide()
    decided = decide() if jax.process_index() == 0 else 0
    return int(multihost_utils.broadcast_one_to_all(np.int32(decided)))


def problem(checkpoint: Checkpoint) -> str | None:
    """Why a checkpoint cannot be read: gone or damaged. All hosts must ask together."""
    gone, damaged = 1, 2
    path = storage.absolute(checkpoint.path)
    told: list[str] = []

    def look() -> int:
        if files.is_official(checkpoint.path):
            return 0
        if not (path / "state").is_dir():
            return gone
        if not checksums.has_checksums(path) or (damage := checksums.damage(path)) is None:
            return 0
        told.append(damage)
        return gone if not (path / "state").is_dir() else damaged

    found = _shared(look)
    if found == gone:
        return "it is gone: training keeps only some of its checkpoints"
    # What is wrong with it only the first host knows, who is the one that speaks.
    return f"it is damaged ({'; '.join(told)})" if found == damaged else None
