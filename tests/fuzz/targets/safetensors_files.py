"""Folders of others with `model.safetensors`: read, or refused for the true reason."""

import json
import pathlib
import random
import struct

import numpy as np

from fuzz import cases, good
from fuzz.mutations import mutate_bytes, mutate_json, mutate_json_file
from ofa_jax.checkpoints.load import load_config
from ofa_jax.inference.loading import load_processor
from ofa_jax.interop import files

_REFUSALS = (ValueError, FileNotFoundError)
_NAMES = ("model.safetensors", "pytorch_model.safetensors", "model.safetensors.index.json")


class SafetensorsFiles(cases.Target):
    """Opens a mutated folder as a checkpoint."""

    name = "safetensors"

    def prepare(self, folder: pathlib.Path) -> None:
        """Makes the content of a small file."""
        del folder
        good.processor()  # made outside of cases
        arrays = {"encoder.embed_tokens.weight": np.zeros((8, 4), np.float32)}
        arrays["a.b"] = np.arange(6, dtype=np.float32)
        header, place = {}, 0
        for name, array in arrays.items():
            offsets = [place, place + array.nbytes]
            header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
            place = offsets[1]
        self._header = header
        self._body = b"".join(array.tobytes() for array in arrays.values())
        self._config = json.dumps({"d_model": 4, "encoder_layers": 1, "model_type": "ofa"}).encode()

    def run(self, rng: random.Random, folder: pathlib.Path) -> str:
        """Opens a folder, or the file itself, in all the ways that users have."""
        header = json.dumps(mutate_json(rng, self._header)).encode()
        content = struct.pack("<Q", len(header)) + header + self._body
        if rng.random() < 0.5:
            content = mutate_bytes(rng, content)
        root = folder / "others"
        root.mkdir()
        (root / rng.choice(_NAMES)).write_bytes(content)
        if rng.random() < 0.8:
            config = self._config if rng.random() < 0.5 else mutate_json_file(rng, self._config)
            (root / "config.json").write_bytes(config)
        if rng.random() < 0.3:
            (root / "pytorch_model.bin").write_bytes(content)
        path = rng.choice([root, *root.glob("*.safetensors"), *root.glob("*.bin")])
        before = cases.snapshot(folder)
        calls = (
            lambda: files.read(path),
            lambda: load_config(str(path)),
            lambda: load_processor(str(path), good.processor().vocabulary),
        )
        read, error = cases.attempt(rng.choice(calls), *_REFUSALS)
        cases.check_unchanged(before, folder)
        if isinstance(read, files.OfficialCheckpoint):
            for name, array in read.state_dict.items():
                cases.check(array.nbytes <= len(content), f"{name} has more bytes than the file")
                array.astype(np.float32).sum()
        return cases.REFUSED if error is not None else cases.ACCEPTED


TARGETS = {"safetensors": SafetensorsFiles}
