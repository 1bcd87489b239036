"""Calls commands in this process, as users call them in a new one."""

import contextlib
import pathlib

import gin
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def calling(main, data_dir):
    """Yields a function that calls a command in the checkout, each time from a clean gin.

    Args:
      main: of the command; it takes its arguments.
      data_dir: the folder of its data.
    """

    def call(*arguments):
        gin.clear_config()
        return main(arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFA_DATA_DIR", str(data_dir))
        patch.chdir(ROOT)
        try:
            yield call
        finally:
            gin.clear_config()
