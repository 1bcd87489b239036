"""Gin files, command lines and the options of everything that gin can make."""

import pathlib
import random
from typing import Any

import gin

from fuzz import cases
from fuzz.mutations import INTEGERS, mutate_bytes, mutate_text
from ofa_jax.cli import common, gin_registry
from ofa_jax.model.named_config import model_config

_ROOT = pathlib.Path(__file__).resolve().parents[3]
_USER_ERRORS = (ValueError, TypeError, LookupError, OSError, ImportError)
_WORDS = (
    "@", "%", "@LoopConfig()", "%MODEL_DIR", "include 'b.gin'", "include 'a.gin'", "A = %B",
    "B = %A", "LoopConfig.log_period", "MODEL_DIR", "'''", "\\\n", "    ", "import no_module_x",
    "from __gin__ import dynamic_registration", "a/b/", "@a/Stream()", "()", "{'a': 1}", "1 + 1",
)  # fmt: skip
VALUES = (
    *(repr(value) for value in INTEGERS[:-2]), "10**3", "1e400", "-1e400", "nan", "None", "True",
    "''", "'a'", "'\\x00'", "'../..'", "b'a'", "[]", "()", "{}", "['a', 1]", "(1, 2)", "(None,)",
    "{'a': 1}", "{1: {}}", "@LoopConfig", "@Stream()", "%NOTHING", "0.5", "-0.5", "1e-320", "1j",
    "'" + "a" * 5_000 + "'", "[" * 200 + "]" * 200, "...", "-None", "'\\ud83d'", "1e30", "'0'",
)  # fmt: skip


class GinFiles(cases.Target):
    """Reads mutated gin files, and makes registered objects with odd options."""

    name = "gin"

    def prepare(self, folder: pathlib.Path) -> None:
        """Reads the project's gin files."""
        gin_registry.register({"model_config": model_config})
        paths = sorted((_ROOT / "gin_configs").rglob("*.gin"))
        self._files = [path.read_bytes() for path in paths]
        self._files += [b"STEPS = 10\nLoopConfig.total_steps = %STEPS\n"] * 10
        self._options = [
            (name, option) for name in gin_registry.names() for option in _options(name)
        ]
        empty = folder / "empty.gin"
        empty.write_bytes(b"")
        self._empty = str(empty)

    def run(self, rng: random.Random, folder: pathlib.Path) -> str:
        """Reads a mutated file, or makes an object."""
        gin.clear_config()
        try:
            if rng.random() < 0.5:
                return self._make_object(rng)
            return self._read_files(rng, folder)
        finally:
            gin.clear_config()

    def _read_files(self, rng: random.Random, folder: pathlib.Path) -> str:
        for name in ("a.gin", "b.gin"):
            mutate = rng.choice((mutate_text, mutate_text, mutate_bytes))
            words = (_WORDS,) if mutate is mutate_text else ()
            (folder / name).write_bytes(mutate(rng, rng.choice(self._files), *words))
        arguments = [f"--gin_file={folder / 'a.gin'}", f"--gin_search_paths={folder}"]
        if rng.random() < 0.5:
            arguments.append(f"--gin.{rng.choice(_WORDS)}={rng.choice(VALUES)}")
        before = cases.snapshot(folder)
        _, error = cases.attempt(
            lambda: common.parse_arguments("python -m ofa_jax.train", "", arguments), *_USER_ERRORS
        )
        cases.check_unchanged(before, folder)
        return cases.ACCEPTED if error is None else cases.REFUSED

    def _make_object(self, rng: random.Random) -> str:
        """Makes one of the registered objects with one or two odd options."""
        name, option = rng.choice(self._options)
        bindings = {option: rng.choice(VALUES)}
        others = [other for known, other in self._options if known == name]
        if rng.random() < 0.3:
            bindings[rng.choice(others)] = rng.choice(VALUES)
        needed = {"LoopConfig": {"total_steps": "5"}, "OptimizerConfig": _OPTIMIZER}.get(name, {})
        if name == "Stream":
            needed = _STREAM
        flags = [f"--gin.{name}.{key}={value}" for key, value in (needed | bindings).items()]

        def make() -> Any:
            arguments = [f"--gin_file={self._empty}", *flags]
            common.parse_arguments("python -m ofa_jax.train", "", arguments)
            return gin.get_configurable(name)()

        _, error = cases.attempt(make, *_USER_ERRORS, ends="\n  In call to configurable")
        return "made" if error is None else "not made"


_OPTIMIZER = {"learning_rate": "1e-4", "total_steps": "5"}
_STREAM = {
    "name": "'a'",
    "mixture_or_task_name": "'a'",
    "batch_size": "2",
    "task_feature_lengths": "{'inputs': 8, 'targets': 8}",
}


def _options(name: str) -> list[str]:
    """Returns the options of something that is registered."""
    import inspect

    made = gin.get_configurable(name)
    try:
        return [option for option in inspect.signature(made).parameters if option != "self"]
    except (ValueError, TypeError):
        return []


TARGETS = {"gin": GinFiles}
