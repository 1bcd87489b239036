"""Makes the fixtures of a small VQGAN available to the tests in this folder."""

from vqgan_fixtures import vqgan, vqgan_path, vqgan_state  # noqa: F401
