"""Run directories: a damaged file is found, named, and never used unnoticed."""

import pathlib
import random
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from fuzz import cases, good
from fuzz.mutations import mutate_bytes, mutate_json_file
from ofa_jax.checkpoints import checksums, resume, storage
from ofa_jax.inference.loading import load_model
from ofa_jax.sharding import Partitioner

_REFUSALS = (ValueError, OSError)


class RunDirectories(cases.Target):
    """Damages a file of a run, and loads the run for inference or to go on."""

    name = "run"
    megabytes = 2048
    seconds = 60.0

    def prepare(self, folder: pathlib.Path) -> None:
        """Writes a run of a small model with two checkpoints."""
        from official_model import random_variables

        self._config = good.model_config()
        variables = random_variables(self._config)
        self._good = folder / "run"
        self._variables = {}
        for step in (5, 10):
            scaled = jax.tree.map(lambda x, step=step: np.asarray(x) * np.float32(step), variables)
            storage.save_variables(str(self._good), scaled, step=step)
            self._variables[step] = scaled
            place = epath.Path(self._good) / "checkpoints" / str(step)
            with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
                checkpointer.save(place / "run", {"seed": 3, "seconds": 1.5})
            checksums.write(place)
        storage.write_model_config(str(self._good), self._config)
        good.processor().save(str(self._good))
        (self._good / "config.gin").write_text("MODEL_DIR = 'run'\n")
        self._partitioner = Partitioner()

    def run(self, rng: random.Random, folder: pathlib.Path) -> str:
        """Loads a damaged run."""
        root = folder / "run"
        shutil.copytree(self._good, root)
        self._damage(rng, root)
        if rng.random() < 0.4:
            return self._go_on(root)
        before = cases.snapshot(root)
        loaded, error = cases.attempt(lambda: load_model(str(root), self._partitioner), *_REFUSALS)
        cases.check_unchanged(before, root)
        if error is not None:
            return cases.REFUSED
        assert loaded is not None
        found = jax.tree.leaves(loaded.variables)
        matches = [_equal(found, jax.tree.leaves(held)) for held in self._variables.values()]
        cases.check(any(matches), "damaged parameters are used")
        processor = loaded.processor
        cases.check(
            processor.vocabulary.vocab_size == self._config.vocab_size, "another vocabulary"
        )
        return cases.ACCEPTED

    def _go_on(self, root: pathlib.Path) -> str:
        """Chooses the checkpoint that training goes on from."""

        def choose() -> Any:
            return resume.find_resume_point(epath.Path(root) / "checkpoints").step

        before = cases.snapshot(root)
        step, error = cases.attempt(choose, *_REFUSALS)
        cases.check_unchanged(before, root)
        if error is not None:
            return cases.REFUSED
        cases.check(step in (5, 10), f"the newest intact step is {step}")
        if step is not None:
            for path in (self._good / "checkpoints" / str(step)).rglob("*"):
                if path.is_file() and "_CHECKPOINT_METADATA" not in path.name:
                    name = path.relative_to(self._good)
                    same = (root / name).is_file() and (
                        (root / name).read_bytes() == path.read_bytes()
                    )
                    cases.check(
                        same or path.name == "SHA256SUMS", f"{name} is damaged, and is used"
                    )
        return "fallen back" if step == 5 else cases.ACCEPTED

    def _damage(self, rng: random.Random, root: pathlib.Path) -> None:
        """Damages a file, empties it, deletes it, or adds a folder of a newer step."""
        files = sorted(path for path in root.rglob("*") if path.is_file())
        named = [path for path in files if "checkpoints" not in path.parts]
        path = rng.choice(files if rng.random() < 0.5 else named)
        operation = rng.randrange(6)
        if operation == 0:
            path.unlink()
        elif operation == 1:
            path.write_bytes(b"")
        elif operation == 2:
            newer = root / "checkpoints" / rng.choice(("15", "007", "20.damaged", "99999999999"))
            newer.mkdir()
            if rng.random() < 0.5:
                (newer / "state").mkdir()
        else:
            is_json = path.suffix == ".json" and operation == 3
            mutate = mutate_json_file if is_json else mutate_bytes
            path.write_bytes(mutate(rng, path.read_bytes()))


def _equal(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(map(np.array_equal, first, second))


TARGETS = {"run": RunDirectories}
