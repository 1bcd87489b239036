"""Runs a model that `ofa-export` wrote into this folder. Needs jax, flatbuffers and numpy only.

    from loader import Model
    model = Model("DIR")
    found = model("generate", encoder_input_tokens=ids, encoder_images=pixels, ...)
    found["tokens"][:, 0]            # the best output of each row, ended by id 2

`manifest.json` lists the programs with their inputs and outputs, and how both are to be read.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import export


class Model:
    """The programs and parameters of a folder; raises ValueError if they cannot be used."""

    def __init__(self, folder: str | os.PathLike[str] = pathlib.Path(__file__).parent):
        self._folder = pathlib.Path(folder)
        self._programs: dict[str, Callable[..., dict[str, jax.Array]]] = {}
        name = "manifest.json"
        try:
            self.manifest = json.loads((self._folder / name).read_text("utf-8"))
            platforms, known = self.manifest["platforms"], self.manifest["programs"]
            self._inputs = {program: known[program]["inputs"] for program in known}
            for name, digest in self.manifest["sha256"].items():
                with (self._folder / name).open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                        raise ValueError("it is not as it was written")
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
            problem = e.strerror if isinstance(e, OSError) else e
            raise ValueError(
                f"{self._folder / name} is missing or damaged ({problem}): export the model again, "
                "or copy the folder again."
            ) from e
        if (here := {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())) not in (
            platforms
        ):
            raise ValueError(
                f"{self._folder} was exported for {', '.join(platforms)}, and JAX runs on {here} "
                f"here: export it with --platforms={here}."
            )
        with np.load(self._folder / "parameters.npz", allow_pickle=False) as stored:
            self._parameters = {name: jax.device_put(stored[name]) for name in stored.files}

    def __call__(self, program: str, **inputs: Any) -> dict[str, jax.Array]:
        """Runs a program of the manifest; compiles it at its first call."""
        if program not in self._inputs:
            raise ValueError(f"There is no program {program!r}: {', '.join(self._inputs)}.")
        arrays = {name: value if hasattr(value, "dtype") else np.asarray(value)
                  for name, value in inputs.items()}  # fmt: skip
        given = {name: {"shape": [*x.shape], "dtype": str(x.dtype)} for name, x in arrays.items()}
        wanted = self._with_rows(self._inputs[program], given)
        if wrong := [name for name in wanted | given if wanted.get(name) != given.get(name)]:
            name = wrong[0]
            raise ValueError(
                f"The input {name} of {program} is {given.get(name, 'missing')}, but it must be "
                f"{wanted.get(name, 'left out')}."
            )
        if program not in self._programs:
            self._programs[program] = jax.jit(self._read(program).call)
        return self._programs[program](self._parameters, arrays)

    def _with_rows(self, wanted: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """Puts the number of rows of a call where the export leaves it open ("batch")."""
        open_inputs = [name for name, entry in wanted.items() if "batch" in entry["shape"]]
        shapes = [given[name]["shape"] for name in open_inputs if name in given]
        rows = max([1, *(shape[0] for shape in shapes[:1] if shape)])
        return {name: entry | {"shape": [rows if n == "batch" else n for n in entry["shape"]]}
                for name, entry in wanted.items()}  # fmt: skip

    def _read(self, program: str) -> export.Exported:
        """Reads a program; raises ValueError if this version of JAX cannot."""
        path = self._folder / self.manifest["programs"][program]["file"]
        try:
            return export.deserialize(bytearray(path.read_bytes()))
        except Exception as error:
            raise ValueError(
                f"{path} cannot be read by jax {jax.__version__} ({' '.join(str(error).split())}): "
                f"use jax {self.manifest['versions']['jax']}, which wrote it, or a newer one."
            ) from error
