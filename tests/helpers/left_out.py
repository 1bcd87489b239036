"""What a test run has left out for want of a program, in a line for the end."""

from collections.abc import Iterable
from typing import Any

NO_CHROMIUM = "Chromium is not installed"
"""Reason of skipping a test that opens a page in a browser."""


def describe_left_out(skipped: Iterable[Any]) -> str | None:
    """Returns a line about the browser tests among skipped reports; None if there are none."""
    count = sum(NO_CHROMIUM in str(report.longrepr) for report in skipped)
    if not count:
        return None
    return (
        f"Left out {count} browser test{'s' * (count > 1)}: {NO_CHROMIUM} (Debian's package "
        "chromium has it)."
    )
