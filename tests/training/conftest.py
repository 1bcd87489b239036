"""Makes the small processor available to the tests in this folder."""

from run_fixtures import processor  # noqa: F401
