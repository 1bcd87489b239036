"""Every file in gin_configs/: what it binds exists, and so does what its header names."""

import contextlib
import functools
import importlib.util
import io
import pathlib
import pkgutil
import re
import shlex
import subprocess

import gin
import pytest

from ofa_jax.cli import gin_files, gin_lint, gin_registry
from ofa_jax.evaluation.build import build_evaluation
from ofa_jax.inference.build import INPUTS, build_job
from ofa_jax.model.named_config import model_config
from ofa_jax.training.build import build_run

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "gin_configs").glob("*/*.gin"))]
SEARCH_PATHS = [str(ROOT)]
ENTRY_POINTS = {f"ofa_jax.{name}" for name in ("train", "evaluate", "infer", "plan")}
# What a reader puts there.
OWN_MODULES = ("my_data", "my_tasks")


class _Everything:
    """A collection that contains every macro: a file alone may leave any of them required."""

    def __contains__(self, name):
        return True


def header(file):
    """Returns the comment at the top of a file, without the signs of comments."""
    lines = (ROOT / file).read_text().split("\n\n")[0].splitlines()
    return "\n".join(line.removeprefix("#") for line in lines if line.startswith("#"))


def command_lines(file):
    """Returns the commands of a header as they are written, one per line."""
    text = header(file).replace("\\\n", " ")
    return "\n".join(re.findall(r"^   +(?:(?:python|bash) |for .*; do$|done$).*", text, re.M))


def commands(file):
    """Yields the commands of a header as lists of words; a loop is written out."""
    text = command_lines(file)
    if loop := re.search(r"^ +for (\w+) in (.*); do\n(.*?)\n +done", text, re.S | re.M):
        name, values, body = loop.groups()
        expanded = [body.replace(f"${{{name}}}", v).replace(f"${name}", v) for v in values.split()]
        text = text.replace(loop.group(), "\n".join(expanded))
    for line in text.splitlines():
        yield shlex.split(re.sub(r"\$\([^)]*\)", "1", line), comments=True)


COMMANDS = [(file, words) for file in FILES for words in commands(file)]


@pytest.fixture(scope="module", autouse=True)
def configurables():
    """Registers everything that the entry points register with gin."""
    gin_registry.register(
        {
            "train": build_run,
            "evaluate": build_evaluation,
            "infer": build_job,
            "model_config": model_config,
            **INPUTS,
        }
    )


def check(files, bindings=(), not_needed=()):
    """Raises ConfigError if a name in the files or bindings does not exist."""
    paths = [gin_files.find_file(name, SEARCH_PATHS) for name in files]
    gin_lint.check(
        paths, bindings, SEARCH_PATHS, gin.get_configurable, gin_registry.names, not_needed
    )


@pytest.mark.parametrize("file", FILES)
def test_configurables_and_parameters_of_a_file_exist(file):
    check([file], not_needed=_Everything())


@pytest.mark.parametrize("file", FILES)
def test_options_that_a_header_names_exist(file):
    options = re.findall(r"--gin\.([\w./]+)=", header(file))
    # Macros belong to the files of a command, which the test of commands reads.
    bindings = [f"{name} = %gin.REQUIRED" for name in options if "." in name]
    check([file], bindings, not_needed=_Everything())


@pytest.mark.parametrize("file", FILES)
def test_files_and_modules_that_a_header_names_exist(file):
    text = header(file)
    for name in re.findall(r"\b(?:ofa_jax|tasks|tools|docs|launch|gin_configs)/[\w./-]*\w", text):
        assert "$" in text[text.index(name) :][: len(name) + 1] or (ROOT / name).exists(), name
    for name in re.findall(r"(?<![/\w$*])(?:\w+/)?(\w+\.gin)\b", text):
        # Runs write their own config.gin.
        assert name == "config.gin" or name in {pathlib.Path(known).name for known in FILES}, name
    for name in re.findall(r"(?<![\w/.])(?:ofa_jax|tasks|tools|launch)(?:\.\w+)+", text):
        pkgutil.resolve_name(name)


@pytest.mark.parametrize(("file", "words"), COMMANDS)
def test_commands_in_a_header_name_existing_files_and_flags(file, words):
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file()
        return
    assert words[:2] == ["python", "-m"]
    module, options = words[2], words[3:]
    assert importlib.util.find_spec(module), module
    if module not in ENTRY_POINTS:
        flags = [word.partition("=")[0] for word in options if word.startswith("--")]
        assert set(flags) <= known_flags(module)
        return
    names = [word.partition("=")[2] for word in options if word.startswith("--gin_file=")]
    bindings = [
        without_own_modules(word.removeprefix("--gin.").replace("=", " = ", 1))
        for word in options
        if word.startswith("--gin.")
    ]
    # The configuration that a run writes has the names of the file that it was started with.
    names = [re.sub(r"^runs/(\w+)/config\.gin$", r"runs/\1.gin", name) for name in names]
    assert len(names) + len(bindings) == len(options), "other options than --gin_file and --gin."
    check(names, bindings)


def without_own_modules(binding):
    """Returns a binding with one of our data sets for that of a reader's own module."""
    return re.sub(rf"@(?:{'|'.join(OWN_MODULES)})\.\w+\(\)", "@Scenes()", binding)


@functools.cache
def known_flags(module):
    """Returns the flags in the help text of a command."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
        importlib.import_module(module).main(["--help"])
    return set(re.findall(r"--\w+", output.getvalue()))


@pytest.mark.parametrize("file", sorted({file for file, _ in COMMANDS}))
def test_bash_parses_the_commands_in_a_header(file):
    done = subprocess.run(["bash", "-n"], input=command_lines(file), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
