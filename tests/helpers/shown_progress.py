"""What commands say about their progress in a log."""

import contextlib
import io
import re
from collections.abc import Iterator

import pytest

from ofa_jax.utils import progress


@contextlib.contextmanager
def every_line() -> Iterator[io.StringIO]:
    """Lets the block print a line at every change; yields what it writes to standard error."""
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(shown):
        patch.setenv(progress.SECONDS, "0")
        patch.delenv(progress.MODE, raising=False)
        yield shown


def assert_shown(shown: io.StringIO, name: str, total: str, is_even: bool = True) -> None:
    """Checks for a line with all of a total, and for one with a rate and the time left.

    Args:
      shown: of `every_line`.
      name: of the stage.
      total: with its unit, e.g. "7 images".
      is_even: whether the stage has a rate and the time left.
    """
    text = shown.getvalue()
    assert "\r" not in text and "\x1b" not in text
    count, _, unit = total.partition(" ")
    lines = [line for line in text.splitlines() if f"{name}: " in line]
    assert any(f"{name}: {count}/{total}" in line for line in lines), text
    time = r"[\d,.]+ \S+/(s|min|h), \d+:\d\d:\d\d left" if is_even else r"\d+:\d\d:\d\d so far"
    pattern = rf"{re.escape(name)}: [\d,.]+/{re.escape(total)}, {time}"
    assert any(re.search(pattern, line) for line in lines), text
