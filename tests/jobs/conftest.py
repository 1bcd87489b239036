"""Fixtures of the offline jobs: a small VQGAN and a file of images."""

import pytest
from beam_jobs import write_lines
from vqgan_fixtures import vqgan, vqgan_path, vqgan_state  # noqa: F401


@pytest.fixture
def lines(tmp_path):
    """Returns a TSV file of ten images; two lines are invalid."""
    return write_lines(tmp_path / "images.tsv")
