"""Makes the small processor and VQGAN available to the tests in this folder."""

from run_fixtures import processor  # noqa: F401
from vqgan_fixtures import vqgan, vqgan_path, vqgan_state  # noqa: F401
