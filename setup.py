"""Lists the packages and the compiled module of the wheel; the rest is in pyproject.toml.

The folders `tasks`, `tools` and `gin_configs` stand beside `ofa_jax` in the repository. In a wheel
they are `ofa_jax.tasks`, `ofa_jax.tools` and `ofa_jax/gin_configs`, so that the only name that the
project takes in site-packages is its own.

The compiled module is optional: where it cannot be built, for want of a C compiler, the
installation goes on and Pillow and numpy do its work (`ofa_jax.preprocessing.image_kernels`).
It has Python's stable ABI, so one wheel serves Python 3.11 and all later ones.
"""

import setuptools

FOLDERS = ("tasks", "tools", "gin_configs")

packages = setuptools.find_packages(include=["ofa_jax", "ofa_jax.*"])
for folder in FOLDERS:
    below = setuptools.find_namespace_packages(folder, exclude=["__pycache__", "*.__pycache__"])
    packages += [f"ofa_jax.{folder}", *(f"ofa_jax.{folder}.{name}" for name in below)]

image_kernels = setuptools.Extension(
    "ofa_jax.preprocessing._image_kernels",
    ["ofa_jax/preprocessing/_image_kernels.c"],
    # No contraction: it would round once where numpy rounds twice.
    extra_compile_args=["-O3", "-ffp-contract=off"],
    py_limited_api=True,
    optional=True,
)

setuptools.setup(
    packages=packages,
    package_dir={f"ofa_jax.{folder}": folder for folder in FOLDERS},
    ext_modules=[image_kernels],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
