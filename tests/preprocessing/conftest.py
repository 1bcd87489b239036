"""Makes the golden examples available to the tests in this folder."""

from preprocessing_fixtures import config, fixed, pixels, to_record  # noqa: F401
