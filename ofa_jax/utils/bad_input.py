"""Bad input: the reasons why something is refused, skipped or changed, and how they are counted.

Every reason is declared once, beside the code that applies it:

    TOO_MANY_PIXELS = declare("image has too many pixels", Treatment.SKIPPED, "Its width ...")

The documentation lists all declared reasons. A record that cannot be used raises
InvalidRecordError. A part that is dropped, or a value that is replaced, is reported by `note`,
which gives it to the innermost `collect`:

    with collect() as notes:
        example = preprocess(record, rng)
    for finding in notes: ...
"""

import collections
import contextlib
import contextvars
import dataclasses
import enum
import re
import traceback
from collections.abc import Iterator, Mapping

from absl import logging

__all__ = [
    "Finding",
    "InvalidRecordError",
    "Reason",
    "Treatment",
    "as_invalid_record",
    "collect",
    "declare",
    "declared_reasons",
    "note",
    "without_addresses",
]


class Treatment(enum.Enum):
    """What is done with bad input; the value completes "then ..." in the documentation."""

    SKIPPED = "the record is skipped"
    DROPPED = "that part of the record is dropped"
    REPLACED = "the value is replaced"
    REFUSED = "the command or file is refused"
    RECOVERED = "the last good state is used, or the file is made anew"


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why input is treated in a special way.

    Attributes:
      name: a short phrase, e.g. "image has too many pixels"; counts are kept by it.
      treatment: what is done.
      description: one or two sentences for the documentation: the condition, the limit and the
        option that changes it.
      declared_in: the module that applies it.
    """

    name: str
    treatment: Treatment
    description: str
    declared_in: str = ""

    def __reduce__(self) -> tuple:
        # Worker processes get the name alone.
        return _reason_of, (self.name, self.treatment)


_declared: dict[str, Reason] = {}


def declare(name: str, treatment: Treatment, description: str, module: str = "") -> Reason:
    """Declares a reason.

    Args:
      name: see `Reason`.
      treatment: see `Reason`.
      description: see `Reason`.
      module: `__name__` of the module that applies it.

    Raises:
      ValueError: another reason has this name.
    """
    reason = Reason(name, treatment, description, module)
    if _declared.setdefault(name, reason) != reason:
        raise ValueError(f"Two reasons have the name {name!r}: rename one, or share it.")
    return reason


def declared_reasons() -> Mapping[str, Reason]:
    """Returns the reasons of all modules imported so far, by name."""
    return dict(_declared)


def _reason_of(name: str, treatment: Treatment) -> Reason:
    """Returns the declared reason of a name, or one like it where it has not been declared."""
    return _declared.get(name) or Reason(name, treatment, "")


INVALID_RECORD = declare(
    "invalid record", Treatment.SKIPPED, "The record does not have what its task needs.", __name__
)
UNEXPECTED_ERROR = declare(
    "unexpected error",
    Treatment.SKIPPED,
    "Reading or preprocessing the record raised an exception that is not about its content. The "
    "first one of each kind is logged with its traceback.",
    __name__,
)


_ADDRESS = re.compile(r"\s+at 0x[0-9A-Fa-f]+(?=>)")


def without_addresses(message: str) -> str:
    """Drops memory addresses (`<object at 0x7f01>`), which differ from run to run, from a text."""
    return _ADDRESS.sub("", message) if "0x" in message else message


class InvalidRecordError(ValueError):
    """A record that cannot be used. It is skipped, counted by its reason, and logged.

    Attributes:
      reason: the reason under which it is counted.
    """

    def __init__(self, message: str, reason: Reason = INVALID_RECORD):
        super().__init__(without_addresses(message))
        self.reason = reason


_logged_tracebacks: set[str] = set()


def as_invalid_record(error: Exception, while_doing: str) -> InvalidRecordError:
    """Converts any exception at a record's boundary to InvalidRecordError.

    The first exception raised at each place in the code is logged with its traceback.

    Args:
      error: what was raised.
      while_doing: what could not be done, e.g. "cannot be read".
    """
    if isinstance(error, InvalidRecordError):
        return error
    place = f"{type(error).__name__} at {traceback.extract_tb(error.__traceback__)[-1:]}"
    if place not in _logged_tracebacks:
        _logged_tracebacks.add(place)
        logging.warning("A record is skipped: %s.", while_doing, exc_info=error)
    problem = " ".join(str(error).split())
    return InvalidRecordError(
        f"{while_doing} ({type(error).__name__}: {problem})", UNEXPECTED_ERROR
    )


@dataclasses.dataclass(frozen=True)
class Finding:
    """One case of bad input.

    Attributes:
      reason: why.
      detail: a sentence about this case.
      task: the task whose record it is; empty where there is none.
    """

    reason: Reason
    detail: str
    task: str = ""

    @property
    def is_skipped(self) -> bool:
        """Whether the whole record was skipped."""
        return self.reason.treatment is Treatment.SKIPPED


_collector: contextvars.ContextVar[list[Finding] | None] = contextvars.ContextVar(
    "collector", default=None
)
_uncollected: collections.Counter[str] = collections.Counter()


@contextlib.contextmanager
def collect() -> Iterator[list[Finding]]:
    """Collects what `note` reports inside the block, in this thread."""
    findings: list[Finding] = []
    token = _collector.set(findings)
    try:
        yield findings
    finally:
        _collector.reset(token)


def note(reason: Reason, detail: str) -> None:
    """Reports a part that was dropped or a value that was replaced.

    Without a `collect` around it, the first case of each reason is logged.

    Args:
      reason: why.
      detail: a sentence about this case.
    """
    findings = _collector.get()
    if findings is not None:
        findings.append(Finding(reason, detail))
        return
    _uncollected[reason.name] += 1
    if _uncollected[reason.name] == 1:
        logging.warning("%s (%s; further cases are not logged)", detail, reason.name)
