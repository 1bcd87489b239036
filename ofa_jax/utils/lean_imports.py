"""Imports TensorFlow without Keras, which takes a quarter of the time and is not used here.

TensorFlow imports Keras at its end, and with it scikit-learn and pandas. `tf.keras` of a user's own
task still works: it is imported when it is first used.
"""

import importlib
import importlib.util
import os
import sys

__all__ = ["import_tensorflow"]

# TensorFlow would import this package instead, which is not there, and goes on without.
_VARIABLE, _PACKAGE = "TF_USE_LEGACY_KERAS", "tf_keras"


def import_tensorflow() -> None:
    """Imports TensorFlow, unless it is imported or cannot be; later imports find it.

    A choice of the user's between the two packages of Keras is kept.
    """
    if "tensorflow" in sys.modules or importlib.util.find_spec("tensorflow") is None:
        return
    if _VARIABLE in os.environ or importlib.util.find_spec(_PACKAGE) is not None:
        importlib.import_module("tensorflow")
        return
    os.environ[_VARIABLE] = "1"
    try:
        module = importlib.import_module("tensorflow")
    finally:
        # Read again when `tf.keras` is first used, which then is the package that is there.
        del os.environ[_VARIABLE]
    module.__path__ = [folder for folder in module.__path__ if folder]  # of the missing package
