"""Selects checkpoints to evaluate: the newest, all, some, or each one as training writes it."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

from ofa_jax.checkpoints import checksums, storage
from ofa_jax.interop import files
from ofa_jax.utils import options
from ofa_jax.utils.collectives import make_on_first_host
from ofa_jax.utils.option_checks import checked

__all__ = ["SELECTIONS", "Checkpoint", "CheckpointSelector", "Selection", "find_problem", "follow"]

SELECTIONS = ("newest", "all", "watch")
Selection = (
    Annotated[str, options.OneOf(SELECTIONS)]
    | Annotated[Sequence[options.Natural], options.NotEmpty()]
)
"""Which checkpoints: one of SELECTIONS, or steps."""
_STOP, _WAIT = -1, -2


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint: its step (0 for an official one) and its path."""

    step: int
    path: str


@checked
@dataclasses.dataclass(frozen=True)
class CheckpointSelector:
    """Selects checkpoints.

    Attributes:
      path: a run directory, a folder `checkpoints/<step>`, or an official checkpoint.
      which: "newest", "all", "watch", or steps. Only for a run directory.
      last_step: watching ends with this step; None for no last step.
      timeout_seconds: watching ends when there was no new checkpoint for this long.
      poll_seconds: time between two polls.
    """

    path: options.Path
    which: Selection = "newest"
    last_step: options.Natural | None = None
    timeout_seconds: options.Timeout = 3600
    poll_seconds: options.Timeout = 10

    @property
    def watching(self) -> bool:
        """Whether to wait for new checkpoints."""
        return self.which == "watch"

    def _single(self) -> Checkpoint | None:
        """Returns the checkpoint if the path is one; None for a run directory."""
        if files.is_official(self.path):
            return Checkpoint(0, self.path)
        folder = storage.absolute_path(self.path)
        if (folder / "state").is_dir():
            return Checkpoint(int(folder.name) if folder.name.isdigit() else 0, str(folder))
        return None

    def list_existing(self) -> list[Checkpoint]:
        """Returns the selected checkpoints that exist now, by step.

        Raises:
          FileNotFoundError: there is none, unless watching; or a selected step is missing.
        """
        if (single := self._single()) is not None:
            return [single]
        found = storage.list_checkpoints(self.path)
        if not found and not self.watching:
            storage.find_checkpoint(self.path)  # raises
        chosen = list(found)
        if self.which == "newest":
            complete = [step for step in chosen if (found[step] / "state").is_dir()]
            chosen = (complete or chosen)[-1:]
        elif not isinstance(self.which, str):
            if missing := sorted(set(self.which) - set(found)):
                raise FileNotFoundError(
                    f"There is no checkpoint of step {', '.join(map(str, missing))} in "
                    f"{self.path}; it has {', '.join(map(str, found))}."
                )
            chosen = sorted(set(self.which))
        return [Checkpoint(step, str(found[step])) for step in chosen]


def follow(
    selector: CheckpointSelector,
    log: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Checkpoint]:
    """Yields the selected checkpoints by step; while watching, also new ones.

    Collective: the first host looks at the folder and broadcasts what it found.

    Args:
      selector: which checkpoints.
      log: prints a message.
      sleep: waits for some seconds.
    """
    if not selector.watching or selector._single() is not None:
        yield from selector.list_existing()
        return
    seen: set[int] = set()
    since = time.monotonic()
    waiting = False
    while True:
        step = make_on_first_host(lambda: _next(selector, seen, since))  # noqa: B023  called at once
        if step == _STOP:
            log(_describe_end(selector, seen))
            return
        if step == _WAIT:
            if not waiting:
                log(f"Waiting for checkpoints in {selector.path} ...")
            waiting = True
            sleep(selector.poll_seconds)
            continue
        waiting = False
        seen.add(step)
        yield Checkpoint(
            step, str(storage.absolute_path(selector.path) / "checkpoints" / str(step))
        )
        since = time.monotonic()


def _next(selector: CheckpointSelector, seen: set[int], since: float) -> int:
    """Returns the next step, _WAIT or _STOP."""
    new: list[int] = []
    # Training may delete a folder while its parent is being listed: that is seen next time.
    with contextlib.suppress(OSError):
        existing = selector.list_existing()
        new = [checkpoint.step for checkpoint in existing if checkpoint.step not in seen]
    if new:
        return new[0]
    if selector.last_step is not None and seen and max(seen) >= selector.last_step:
        return _STOP
    return _STOP if time.monotonic() - since > selector.timeout_seconds else _WAIT


def _describe_end(selector: CheckpointSelector, seen: set[int]) -> str:
    if selector.last_step is not None and seen and max(seen) >= selector.last_step:
        return f"Step {selector.last_step} has been evaluated: done."
    return (
        f"No new checkpoint in {selector.path} for {selector.timeout_seconds:.0f} s: done. "
        "Run the command again to continue."
    )


def find_problem(checkpoint: Checkpoint) -> str | None:
    """Describes why a checkpoint cannot be read (deleted or damaged); None if it can.

    Collective: all hosts must call it.
    """
    gone, damaged = 1, 2
    path = storage.absolute_path(checkpoint.path)
    damage_found: list[str] = []

    def look() -> int:
        if files.is_official(checkpoint.path):
            return 0
        if not (path / "state").is_dir():
            return gone
        try:
            damage = checksums.find_damage(path) if checksums.has_checksums(path) else None
        except (OSError, ValueError) as error:  # deleted or damaged while it is read
            damage = f"its checksums cannot be read: {error}"
        if damage is None:
            return 0
        damage_found.append(damage)
        return gone if not (path / "state").is_dir() else damaged

    found = make_on_first_host(look)
    if found == gone:
        return "it is gone: training keeps only some of its checkpoints"
    # Only the first host knows the details, and only it logs them.
    return f"it is damaged ({'; '.join(damage_found)})" if found == damaged else None
