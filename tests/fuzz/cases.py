"""What a target of the fuzzer is, and what counts as a failure."""

import hashlib
import json
import linecache
import os
import pathlib
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Result = TypeVar("Result")

ACCEPTED, REFUSED = "accepted", "refused"
_ADDRESS = re.compile(r"\bat 0x[0-9a-f]+|<class '|Traceback|^\W*$")
# Subclasses of the documented classes that are no sentences.
_RAW = (UnicodeError, json.JSONDecodeError, RecursionError, NotImplementedError)
_RAW_MODULES = ("zipfile", "zlib", "struct", "pickle", "binascii", "pyarrow", "numpy", "PIL")


class Violation(Exception):
    """A broken promise: the case has failed."""


class Target:
    """A kind of file.

    Attributes:
      name: on the command line.
      seconds: after which a case counts as hanging.
      megabytes: of memory that a case may use beyond what its process had.
      writes_beside: whether reading may write an index beside its input.
    """

    name = ""
    seconds = 20.0
    megabytes = 1024

    def prepare(self, folder: pathlib.Path) -> None:
        """Makes the good inputs, once per process, in a folder that stays."""

    def run(self, rng: random.Random, folder: pathlib.Path) -> str:
        """Mutates an input inside an empty folder, uses it, and checks the promises.

        Returns:
          The outcome, for the table: ACCEPTED, REFUSED or another word.

        Raises:
          Violation: a promise is broken. Any other exception is a failure, too.
        """
        raise NotImplementedError


def attempt(
    call: Callable[[], Result], *allowed: type[Exception], mentions: str = "", ends: str = ""
) -> tuple[Result | None, Exception | None]:
    """Calls a function; returns its result, or the error of an allowed class.

    Args:
      call: the function.
      *allowed: documented classes of errors.
      mentions: what the sentence must say, e.g. the name of the file.
      ends: where the sentence ends, because what follows is not shown to users.

    Raises:
      Violation: the error is no sentence. Errors of other classes are not caught.
    """
    try:
        return call(), None
    except allowed as error:
        check_sentence(error, mentions, ends)
        return None, error


def check_sentence(error: Exception | str, mentions: str = "", ends: str = "") -> None:
    """Raises Violation if an error is not a sentence in words, the same in every process."""
    message = str(error).split(ends)[0] if ends else str(error)
    kind = type(error).__name__
    if isinstance(error, _RAW) or type(error).__module__.split(".")[0] in _RAW_MODULES:
        raise Violation(f"{kind} reaches the user: {message[:200]}") from _cause(error)
    if not re.search(r"\w{2,} \w+", message) or _ADDRESS.search(message):
        raise Violation(f"{kind} is no sentence: {message[:200]!r}") from _cause(error)
    if not isinstance(error, str) and not _is_deliberate(error):
        raise Violation(f"{kind} is not raised on purpose: {message[:200]}") from error
    if len(message) > 4_000 or message.count("\n") > 20:
        raise Violation(f"{kind} is no sentence but {len(message)} characters") from _cause(error)
    if "MemoryError" in message:
        raise Violation(f"it runs out of memory: {message[:200]}") from _cause(error)
    if mentions not in message:
        raise Violation(f"{kind} does not name {mentions}: {message[:200]!r}") from _cause(error)


def _is_deliberate(error: Exception) -> bool:
    """Returns whether a `raise` statement of the project raised an error, not an operation."""
    trace = error.__traceback__
    if trace is None or isinstance(error, OSError) and error.filename is not None:
        return True
    while trace.tb_next is not None:
        trace = trace.tb_next
    path = pathlib.Path(trace.tb_frame.f_code.co_filename)
    if not set(path.parts) & {"ofa_jax", "tools", "tasks"} or "site-packages" in path.parts:
        return False
    return "raise" in linecache.getline(str(path), trace.tb_lineno)


def _cause(error: Exception | str) -> Exception | None:
    return error if isinstance(error, Exception) else None


def check_record_error(error: Exception) -> None:
    """Raises Violation if a record was skipped for a reason that nobody has foreseen."""
    check_sentence(error)
    reason = getattr(error, "reason", None)
    if getattr(reason, "name", reason) == "unexpected error":
        raise Violation(f"skipped for an unexpected error: {error}") from error


def check(condition: bool, sentence: str) -> None:
    """Raises Violation unless a condition holds."""
    if not condition:
        raise Violation(sentence)


def check_line(value: Any) -> None:
    """Raises Violation if a value cannot be written as a line of JSON in UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, TypeError) as error:
        raise Violation(f"cannot be written as a line: {error}") from error


def snapshot(folder: pathlib.Path, *ignored: str) -> dict[str, str]:
    """Returns path -> digest of all files below a folder.

    Args:
      folder: its root.
      *ignored: suffixes of names that do not count.
    """
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in _files(folder)
        if not path.name.endswith(ignored)
    }


def check_unchanged(before: dict[str, str], folder: pathlib.Path, *ignored: str) -> None:
    """Raises Violation if files below a folder changed since a snapshot."""
    after = snapshot(folder, *ignored)
    changed = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    check(not changed, f"a refused input has changed {', '.join(changed[:5])}")


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for root, _, names in os.walk(folder):
        for name in names:
            path = pathlib.Path(root, name)
            if path.is_file():
                yield path
