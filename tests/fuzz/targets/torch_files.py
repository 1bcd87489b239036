"""`.pt` files: nothing is executed or changed, and damage is one sentence."""

import argparse
import collections
import copy
import json
import pathlib
import random

import ml_dtypes
import numpy as np
from hostile_checkpoints import hostile_checkpoints

from fuzz import cases, structured
from fuzz.mutations import mutate_bytes
from ofa_jax.interop import files, from_fairseq, torch_file

_GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "golden"
_EMBEDDING = "encoder.embed_tokens.weight"
_REFUSALS = (ValueError, FileNotFoundError)
_CLASSES = (argparse.Namespace, collections.OrderedDict, dict, set, files.OfficialCheckpoint)


class TorchFiles(cases.Target):
    """Reads a mutated checkpoint, and converts it if it is accepted."""

    name = "pt"

    def prepare(self, folder: pathlib.Path) -> None:
        """Writes small checkpoints as fairseq does."""
        described = json.loads((_GOLDEN / "model_tiny" / "config.json").read_text())
        self._contents, self._arrays = [], []
        arguments = argparse.Namespace(**described["args"])
        with np.load(_GOLDEN / "model_tiny" / "state_dict_f16.npz") as stored:
            state_dict = {name: stored[name] for name in stored if stored[name].size < 100}
            state_dict[_EMBEDDING] = stored[_EMBEDDING][:40].astype(np.float32)
        bfloat16 = {
            name: array.astype(ml_dtypes.bfloat16) if array.dtype == np.float32 else array
            for name, array in state_dict.items()
        }
        for number, (arrays, content) in enumerate(
            (
                (state_dict, {"args": arguments, "cfg": None}),
                (bfloat16, {"args": None, "cfg": {"model": arguments}}),
                (state_dict, {"args": arguments, "extra_state": {"ema": state_dict, "epoch": 3}}),
            )
        ):
            path = folder / f"{number}.pt"
            torch_file.save(path, content | {"model": collections.OrderedDict(arrays)})
            self._contents.append(path.read_bytes())
            self._arrays.append({name: np.array(array) for name, array in arrays.items()})
        by_torch = (_GOLDEN / "torch_file" / "written_by_torch.pt").read_bytes()
        self._others = [by_torch, *(item.content for item in hostile_checkpoints())]
        self._others = [content for content in self._others if len(content) < 100_000]
        self._classes = [dict(vars(cls)) for cls in _CLASSES]

    def run(self, rng: random.Random, folder: pathlib.Path) -> str:
        """Reads a mutated checkpoint."""
        number, content, may_differ = self._mutate(rng)
        path = folder / "damaged.pt"
        path.write_bytes(content)
        before = cases.snapshot(folder)
        read, error = cases.attempt(lambda: files.read(path), *_REFUSALS, mentions="damaged.pt")
        self._check_globals()
        cases.check_unchanged(before, folder)
        if error is not None:
            return cases.REFUSED
        assert read is not None
        # Checksums are compared when a tensor is first used.
        arrays, error = cases.attempt(
            lambda: dict(read.state_dict), *_REFUSALS, mentions="damaged.pt"
        )
        if error is not None:
            return cases.REFUSED
        assert arrays is not None
        for name, array in arrays.items():
            cases.check(array.nbytes <= len(content), f"{name} has more bytes than the file")
            array.astype(np.float32).sum()
        if not may_differ:
            cases.check(_equal(arrays, self._arrays[number]), "damaged tensors are used")
        json.dumps(copy.copy(dict(read.origin)))
        cases.attempt(lambda: from_fairseq(read.state_dict, read.config), *_REFUSALS)
        self._check_globals()
        return cases.ACCEPTED

    def _mutate(self, rng: random.Random) -> tuple[int, bytes, bool]:
        """Returns the number of a checkpoint, its content, and whether it may hold other values."""
        number = rng.randrange(len(self._contents))
        content = self._contents[number]
        operation = rng.randrange(5)
        if operation == 0:
            return number, mutate_bytes(rng, content), False
        if operation == 1:
            return number, structured.damage_directory(rng, content), False
        if operation == 2:
            return number, structured.mutate_zip(rng, content), True
        if operation == 3:
            other = rng.choice(self._others)
            return number, mutate_bytes(rng, other), True
        members = structured.read_zip(content)
        changed = [
            (name, structured.mutate_pickle(rng, data) if name.endswith("data.pkl") else data)
            for name, data in members.items()
        ]
        return number, structured.write_zip(changed), True

    def _check_globals(self) -> None:
        """Checks that objects of this process are what they were."""
        dtype = np.dtype(ml_dtypes.bfloat16)
        if dtype.itemsize != 2 or np.dtype(np.float32).itemsize != 4 or dtype.byteorder not in "=|":
            raise cases.Violation("a pickle has changed a dtype of this process")
        for cls, before in zip(_CLASSES, self._classes, strict=True):
            cases.check(dict(vars(cls)) == before, f"a pickle has changed {cls.__name__}")


def _equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == array.dtype and found[name].tobytes() == array.tobytes()
        for name, array in expected.items()
    )


TARGETS = {"pt": TorchFiles}
