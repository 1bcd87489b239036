"""Makes the fixtures of a small run available to the tests in this folder."""

from run_fixtures import config, image, processor, run_directory, variables  # noqa: F401
