"""Makes the browser available to the tests in this folder."""

from browser_fixtures import browser  # noqa: F401
