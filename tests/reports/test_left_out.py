"""The line of a test run about browser tests that it has left out."""

import types

from left_out import NO_CHROMIUM, describe_left_out


def skipped(reason):
    return types.SimpleNamespace(longrepr=("tests/reports/test_x.py", 3, f"Skipped: {reason}"))


def test_browser_tests_are_left_out_in_one_line_and_only_if_chromium_is_missing():
    assert describe_left_out([]) is None
    assert describe_left_out([skipped("needs libtpu")]) is None
    assert describe_left_out([skipped("needs libtpu"), skipped(NO_CHROMIUM)]) == (
        "Left out 1 browser test: Chromium is not installed (Debian's package chromium has it)."
    )
    line = describe_left_out([skipped(NO_CHROMIUM)] * 2)
    assert line.startswith("Left out 2 browser tests: ") and "\n" not in line
