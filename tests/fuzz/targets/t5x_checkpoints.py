"""Checkpoints of t5x: `ofa-convert` reads them, or says in a sentence why not, and writes whole."""

import argparse
import contextlib
import io
import json
import pathlib
import pickle
import random
import shutil
from typing import Any

import jax
import msgpack
import numpy as np
import orbax.checkpoint as ocp

from fuzz import good
from fuzz.cases import (
    ACCEPTED,
    REFUSED,
    Target,
    attempt,
    check,
    check_sentence,
    check_unchanged,
    snapshot,
)
from fuzz.mutations import json_value, mutate_bytes, mutate_json, mutate_json_file
from ofa_jax.checkpoints import storage, t5x_files
from ofa_jax.cli import convert_command, convert_inputs

_REFUSALS = (ValueError, OSError)
_LAYOUTS = (convert_inputs.OURS, convert_inputs.T5X, "fairseq")
_STRUCTURE = "checkpoint"
"""A file of msgpack: the structure, which older versions of Orbax write beside or in place of
`_METADATA`; or a whole checkpoint that t5x writes without Orbax."""
_STEP = 5


class T5XCheckpoints(Target):
    """Damages a file of a MODEL_DIR of t5x, and converts it to any layout."""

    name = "t5x"
    megabytes = 2048
    seconds = 60.0

    def prepare(self, folder: pathlib.Path) -> None:
        """Writes a small model as versions of t5x do: OCDBT, zarr, or zarr and an old structure."""
        from official_model import random_variables

        self._config = good.model_config()
        variables = random_variables(self._config)
        params = variables["params"]
        adam = {"count": np.array(_STEP, np.int32), "mu": params, "nu": params}
        states = {"1": {"0": adam, "2": {"count": np.array(_STEP, np.int32)}}}
        held = t5x_files.T5XState(_STEP, variables, states, {"seed": 3})
        self._good = [folder / name for name in ("ocdbt", "zarr", "old")]
        t5x_files.write(self._good[0], held)
        content = {
            "target": params,
            "state": {"step": np.array(_STEP, np.int32)},
            "flax_mutables": {"batch_stats": variables["batch_stats"]},
        }
        for root in self._good[1:]:
            handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
            with ocp.Checkpointer(handler) as checkpointer:
                checkpointer.save(
                    root / f"checkpoint_{_STEP}" / "state", ocp.args.PyTreeSave(content)
                )
        state = self._good[2] / f"checkpoint_{_STEP}" / "state"
        (state / _STRUCTURE).write_bytes(msgpack.packb(_placeholders(content)))
        for root in self._good:
            storage.write_model_config(root, self._config)
            good.processor().save(root)
            (root / "origin.json").write_text(
                '{"layout": "fairseq", "args": {"arch": "ofa_tiny"}, "types": {}, "counters": {}}'
            )

    def run(self, rng: random.Random, folder: pathlib.Path) -> str:
        """Converts a damaged checkpoint."""
        root = folder / "t5x"
        shutil.copytree(rng.choice(self._good), root)
        self._damage(rng, root)
        path = root if rng.random() < 0.7 else root / f"checkpoint_{_STEP}"
        layout = rng.choice(_LAYOUTS)
        before = snapshot(root)
        options = argparse.Namespace(
            input=str(path), weights="model", vocab_size=None, vocabulary=None,
            model_config=None, results=None,
        )  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            loaded, error = attempt(lambda: convert_inputs.load(options, layout), *_REFUSALS)
        check_unchanged(before, root)
        if error is not None:
            return REFUSED
        assert loaded is not None and loaded.variables is not None
        for array in jax.tree.leaves(loaded.variables):
            check(array.dtype == np.float32, f"the parameters are {array.dtype}")
        return self._convert(path, layout, folder)

    def _convert(self, path: pathlib.Path, layout: str, folder: pathlib.Path) -> str:
        """Runs the command on what could be loaded; what it writes is whole, or is not there."""
        output = folder / ("out.pt" if layout == "fairseq" else "out")
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                convert_command.run_command(
                    "ofa-convert", "", [str(path), str(output), f"--layout={layout}"]
                )
        except SystemExit as end:
            check(end.code == 2, f"exit code {end.code}")
            check_sentence(printed.getvalue().strip().splitlines()[-1])
            left = [own.name for own in folder.iterdir() if own.name != "t5x"]
            check(not left, f"{', '.join(left)} is left behind")
            return REFUSED
        check(output.exists(), "nothing is written")
        if layout == convert_inputs.OURS:
            check(storage.read_model_config(output) == self._config, "another model")
            storage.load_numpy_variables(output)
        elif layout == convert_inputs.T5X:
            t5x_files.read(output)
        return ACCEPTED

    def _damage(self, rng: random.Random, root: pathlib.Path) -> None:
        """Damages a file, replaces it, deletes it, or adds a newer checkpoint."""
        files = sorted(path for path in root.rglob("*") if path.is_file())
        described = [path for path in files if path.stat().st_size and _is_description(path)]
        path = rng.choice(files if rng.random() < 0.4 else described)
        arrays = sorted(root.rglob(".zarray"))
        operation = rng.randrange(8)
        if arrays and rng.random() < 0.4:
            _change_array(rng, rng.choice(arrays))
        elif operation == 0:
            path.unlink()
        elif operation == 1:
            path.write_bytes(rng.choice((b"", b"null", b"{}", pickle.dumps(print), b"\x80")))
        elif operation == 2:
            path.unlink()
            path.mkdir()
        elif operation == 3:
            _add_checkpoint(rng, root)
        elif operation == 4 and path.name != _STRUCTURE:
            path.write_bytes(mutate_bytes(rng, path.read_bytes()))
        elif path.name == _STRUCTURE:
            path.write_bytes(_mutate_msgpack(rng, path.read_bytes()))
        elif _is_description(path):
            path.write_bytes(mutate_json_file(rng, path.read_bytes()))
        else:
            path.write_bytes(mutate_bytes(rng, path.read_bytes()))


def _placeholders(tree: Any, *names: str) -> Any:
    """Returns the structure of a tree as older versions of Orbax name it."""
    if isinstance(tree, dict):
        return {name: _placeholders(part, *names, name) for name, part in tree.items()}
    return f"PLACEHOLDER://{'.'.join(names)}"


def _is_description(path: pathlib.Path) -> bool:
    """Returns whether a file describes others: JSON, or an old structure."""
    if path.name == _STRUCTURE:
        return True
    try:
        return isinstance(json.loads(path.read_bytes()), dict | list)
    except ValueError:
        return False


def _change_array(rng: random.Random, path: pathlib.Path) -> None:
    """Gives an array of zarr another shape, type or codec."""
    described = json.loads(path.read_bytes())
    shape, number = described["shape"], rng.choice((0, 1, 3, 2**20, 2**40, 2**62, -1))
    changes: dict[str, Any] = {
        "shape": rng.choice(([number], [number] * len(shape), [*shape, number], shape[1:])),
        "chunks": [number] * len(shape),
        "dtype": rng.choice(("<f8", "<i4", "<f2", "bfloat16", "|b1", "<c8", "|O", "|V8", ">f4")),
        "compressor": rng.choice((None, {"id": "blosc"}, {"id": "pickle"}, {"id": "zlib"})),
        "filters": [{"id": "pickle"}],
        "order": "F",
        "dimension_separator": "/",
        "zarr_format": 3,
    }
    name = rng.choice(sorted(changes))
    path.write_bytes(json.dumps(described | {name: changes[name]}).encode())


def _mutate_msgpack(rng: random.Random, data: bytes) -> bytes:
    """Changes the bytes, the tree, or adds an array of a type of its own."""
    operation = rng.randrange(3)
    if operation == 0:
        return mutate_bytes(rng, data)
    tree = mutate_json(rng, msgpack.unpackb(data))
    if operation == 1 and isinstance(tree, dict):
        inner = rng.choice(
            (
                msgpack.packb(([2**40], b"float32", b"abcd")),
                msgpack.packb(([1], rng.choice((b"O", b"V9", b"builtins.print")), b"abcdefgh")),
                msgpack.packb(json_value(random.Random(0))),
                b"",
            )
        )
        tree["target"] = {"a": msgpack.ExtType(rng.randrange(1, 6), inner)}
    try:
        return msgpack.packb(tree)
    except (TypeError, OverflowError, UnicodeError):
        return b"\xc1"  # of no type


def _add_checkpoint(rng: random.Random, root: pathlib.Path) -> None:
    """Adds a folder that has the name of another checkpoint, or nearly."""
    names = ("checkpoint_9", "checkpoint_007", "checkpoint_99999999999", "checkpoint_", "other_9")
    folder = root / rng.choice(names)
    folder.mkdir()
    operation = rng.randrange(4)
    if operation == 0:
        (folder / "state").mkdir()
    elif operation == 1:
        (folder / "state").write_bytes(b"")
    elif operation == 2:
        (folder / _STRUCTURE).write_bytes(rng.choice((b"", b"\x80", pickle.dumps(print))))


TARGETS = {"t5x": T5XCheckpoints}
