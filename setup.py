"""Lists the packages of the wheel; everything else is in pyproject.toml.

The folders `tasks`, `tools` and `gin_configs` stand beside `ofa_jax` in the repository. In a wheel
they are `ofa_jax.tasks`, `ofa_jax.tools` and `ofa_jax/gin_configs`, so that the only name that the
project takes in site-packages is its own.
"""

import setuptools

FOLDERS = ("tasks", "tools", "gin_configs")

packages = setuptools.find_packages(include=["ofa_jax", "ofa_jax.*"])
for folder in FOLDERS:
    below = setuptools.find_namespace_packages(folder, exclude=["__pycache__", "*.__pycache__"])
    packages += [f"ofa_jax.{folder}", *(f"ofa_jax.{folder}.{name}" for name in below)]

setuptools.setup(packages=packages, package_dir={f"ofa_jax.{folder}": folder for folder in FOLDERS})
