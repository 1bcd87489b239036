"""Whatever a gin file holds, it is read or refused in one sentence, and nothing is executed."""

import os
import pathlib
import sys
import time

import gin
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_jax.cli import gin_files, gin_lint, gin_registry
from ofa_jax.cli.errors import ConfigError
from ofa_jax.inference.build import INPUTS, build_job
from ofa_jax.model.named_config import model_config
from ofa_jax.training.build import build_run

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN = """
MODEL_DIR = 'runs/mine'
STEPS = 100
train.model_dir = %MODEL_DIR
train.model = @model_config()
train.streams = [@pairs/Stream(), @text/Stream()]
train.optimizer = @OptimizerConfig()
train.loop = @LoopConfig()
model_config.size = 'scenes'
pairs/Stream.batch_size = 8
pairs/Stream.task_feature_lengths = {'inputs': 8, 'targets': 8}
Stream.name = 'x'
OptimizerConfig:
  total_steps = %STEPS
  learning_rate = 1e-3
LoopConfig.total_steps = %STEPS
"""


@pytest.fixture(scope="module", autouse=True)
def configurables():
    """Registers everything that the commands register with gin."""
    gin_registry.register(
        {"train": build_run, "infer": build_job, "model_config": model_config, **INPUTS}
    )


def check(path, *bindings, search_paths=(), allowed=()):
    """Checks a gin file as the commands do."""
    gin_lint.check(
        [gin_files.find_file(str(path), search_paths)],
        bindings,
        [*map(str, search_paths)],
        gin.get_configurable,
        gin_registry.names,
        allowed=allowed,
        warn=lambda sentence: None,
    )


def refusal(path, *bindings, **options):
    """Returns the sentence with which a file is refused."""
    with pytest.raises(ConfigError) as raised:
        check(path, *bindings, **options)
    return str(raised.value)


@pytest.fixture
def write(tmp_path):
    """Writes a file into a folder of its own."""

    def run(content, name="run.gin"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return run


# ------------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    "content",
    [
        RUN.encode(),
        b"\xef\xbb\xbf" + RUN.encode(),
        RUN.replace("\n", "\r\n").encode(),
        RUN.replace("\n", "\r").encode(),
        (RUN + "# a\u2028b\x85c\x0cd\n").encode(),
    ],
    ids=["plain", "byte order mark", "crlf", "cr", "other line ends"],
)
def test_a_file_of_other_conventions_is_read_the_same(write, content):
    path = write(content)
    check(path)
    assert "STEPS is 0" not in refusal(path, "STEPS = 0")
    assert "It is set by STEPS on the command line." in refusal(path, "STEPS = 0")


def test_old_names_behind_other_line_ends_are_renamed_in_their_own_line(write):
    path = write("# a\u2028b\x85c\x0cd\ntrain.schedule = 3\n")
    assert gin_files.read(path).text == "# a\u2028b\x85c\x0cd\ntrain.loop = 3\n"
    assert "run.gin, line 2." in refusal(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a\n".encode("utf-16"), "run.gin is UTF-16: save it as UTF-8."),
        (b"\n# \xe4\n", "run.gin, line 2: byte 0xe4 is not UTF-8: save it as UTF-8."),
        (b"STEPS = 1\n\0\n", "run.gin, line 2: there is a NUL character"),
        (b"#" * (2 << 20), "run.gin has 2,097,152 bytes; a gin file has at most 1,048,576"),
        ("x = [1,\n\n", "run.gin, line 1: the bracket `[` is never closed."),
        ("\nx = [1, (2\ny = 3\n", "line 3: cannot read `y = 3` as gin (the bracket `(` of line 2"),
        ("x = '''a\n", "line 1: the string that begins here does not end."),
        ("x = 'a\n", "line 1: cannot read `x = 'a` as gin"),
        ("x = " + "[" * 5000 + "]" * 5000, "line 1: the value is nested too deeply"),
        ("x = " + "(" * 100_000, "line 1: the value is nested too deeply"),
        ("x = " + "9" * 10_000, "line 1: cannot read `x = 999"),
        ("x = {[]: 1}\n", "line 1: cannot read this as gin (unhashable type: 'list')."),
        ("x = f'a'\n", "cannot read `x = f'a'` as gin"),
        ("x = __import__('os')\n", "cannot read `x = __import__('os')` as gin"),
        ("Stream:\n", "as gin (Expected indentation."),
        ("x = \\\n", "the statement that begins here does not end"),
        ("\n\ninclude 'nowhere.gin'\n", "run.gin, line 3: There is no gin file nowhere.gin"),
        ("include '/'\n", "run.gin, line 1: / is a folder, not a gin file"),
        ("include 'a\\0b'\n", "run.gin, line 1: There is no gin file a\\x00b"),
        ("include '/dev/zero'\n", "/dev/zero is a fifo or a device, not a gin file"),
    ],
    ids=range(20),
)
def test_a_file_that_is_not_gin_is_one_sentence_with_its_place(write, content, sentence):
    error = refusal(write(content))
    assert sentence in error and " at 0x" not in error


def test_a_fifo_or_a_device_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.gin")
    began = time.monotonic()
    assert "is a fifo or a device, not a gin file" in refusal(tmp_path / "fifo.gin")
    assert "is a fifo or a device, not a gin file" in refusal("/dev/zero")
    assert "is a folder, not a gin file" in refusal(tmp_path)
    assert time.monotonic() - began < 5


# ------------------------------------------------------------------------------ includes


def test_files_that_include_each_other_are_named(write, tmp_path):
    path = write("include 'b.gin'\n", "a.gin")
    write("\ninclude 'a.gin'\n", "b.gin")
    error = refusal(path, search_paths=[tmp_path])
    assert "b.gin, line 2: a.gin includes itself (a.gin -> b.gin -> a.gin)" in error
    with pytest.raises(ConfigError, match="includes itself"):
        gin_files.parse(path.resolve(), [str(tmp_path)])
    path = write("include 'c.gin'\n", "c.gin")
    assert "c.gin includes itself (c.gin -> c.gin)" in refusal(path, search_paths=[tmp_path])


def test_chains_of_includes_end(write, tmp_path):
    for number in range(60):
        write(f"include 'deep{number + 1}.gin'\n", f"deep{number}.gin")
    error = refusal(tmp_path / "deep0.gin", search_paths=[tmp_path])
    assert "include each other more than 50 levels deep" in error
    for number in range(12):
        write(f"include 'wide{number + 1}.gin'\n" * 3, f"wide{number}.gin")
    write("", "wide12.gin")
    error = refusal(tmp_path / "wide0.gin", search_paths=[tmp_path])
    assert "more than 1000 files are included" in error


# --------------------------------------------------------------- names that need each other


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("STEPS = %STEPS\n", "%STEPS needs itself (%STEPS -> %STEPS;"),
        ("STEPS = %B\nB = %STEPS\n", "%STEPS needs itself (%STEPS -> %B -> %STEPS;"),
        ("STEPS = [1, {'a': (%STEPS,)}]\n", "%STEPS needs itself"),
        ("Partitioner.devices = @Partitioner()\n", "@Partitioner needs itself"),
        ("train.loop = @a/train()\n", "@a/train needs itself"),
        (
            "STEPS = %A0\n" + "".join(f"A{n} = %A{n + 1}\n" for n in range(3000)) + "A3000 = 1\n",
            "is the first of more than 50 names that need each other",
        ),
        (
            "STEPS = %A0\n"
            + "".join(f"A{n} = [%A{n + 1}, %A{n + 1}]\n" for n in range(40))
            + "A40 = 1\n",
            "is made of more than 100,000 others: simplify it.",
        ),
    ],
    ids=range(7),
)
def test_values_that_need_themselves_are_refused(write, text, sentence):
    assert sentence in refusal(write(RUN + text))


def test_a_reference_to_another_scope_is_no_cycle(write):
    path = write(
        RUN + "train.self_critical = @SelfCriticalConfig()\n"
        "SelfCriticalConfig.decoding = @few/DecodingConfig()\n"
        "DecodingConfig.max_length = 3\nfew/DecodingConfig.beam_size = 2\n"
    )
    check(path)


# ------------------------------------------------------------------------------ modules


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Returns a marker that a module and a package leave when they are executed."""
    marker = tmp_path / "EXECUTED"
    code = f"open({str(marker)!r}, 'w').close()\n"
    (tmp_path / "own_module_of_a_test.py").write_text(code)
    (tmp_path / "own_package_of_a_test").mkdir()
    (tmp_path / "own_package_of_a_test" / "__init__.py").write_text(code)
    (tmp_path / "own_package_of_a_test" / "part.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0].startswith("own_")]:
        monkeypatch.delitem(sys.modules, name)  # of an earlier test's folder
    return marker


IMPORTS = [
    "import own_module_of_a_test\n",
    "import own_package_of_a_test.part\n",
    "from own_package_of_a_test import part\n",
    "train.mixture_or_task_module = 'own_module_of_a_test'\n",
    "MODULES = ['tasks.pretraining', 'own_package_of_a_test.part']\n"
    "train.mixture_or_task_module = %MODULES\n",
    "train.settings = @PretrainingSettings()\n"
    "PretrainingSettings.task_modules = ('own_module_of_a_test',)\n",
]


@pytest.mark.parametrize("text", IMPORTS)
def test_a_file_imports_nothing_that_nobody_allowed(write, module, text, monkeypatch):
    path = write(RUN + text)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    error = refusal(path)
    assert (
        "is not imported, because importing executes it: allow it with --gin_import=own_" in error
    )
    assert not module.exists()


@pytest.mark.parametrize("text", IMPORTS[:3])
def test_a_module_in_pythonpath_or_named_on_the_command_line_is_imported(
    write, module, text, monkeypatch
):
    path = write(RUN + text)
    monkeypatch.setenv("PYTHONPATH", str(module.parent))
    check(path)
    monkeypatch.delenv("PYTHONPATH")
    check(path, allowed=["own_module_of_a_test", "own_package_of_a_test"])


def test_a_module_that_the_command_line_names_needs_no_permission(write, module, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    check(write(RUN), "train.mixture_or_task_module = 'own_module_of_a_test'")


def test_parts_of_the_standard_library_are_not_imported(write, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for name in ("antigravity", "os", "subprocess"):
        assert f"the module {name} is not imported" in refusal(write(f"import {name}\n"))
    text = "from __gin__ import dynamic_registration\nimport os\nx = @os.system()\n"
    assert "would let the file call any function" in refusal(write(text))
    check(write("import tasks.pretraining\n" + RUN))


# ------------------------------------------------------------------------------ any text

_PIECES = st.sampled_from(
    ["[", "]", "(", "{", "}", "'", '"""', "%", "@", "=", "\n", "  ", ":", ",", "\\", "#", "\0"]
    + ["include ", "import ", "STEPS", "train.", "/", "None", "1e999", "-", "\ufeff", "\u2028"]
    + ["@Stream()", "%STEPS", "'x'", "\r", "\t", "$", "9" * 5000, "\ud7ff", ";", "b'x'", "()"]
)


@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(RUN)), st.integers(0, 6), _PIECES), min_size=1, max_size=5
    )
)
def test_any_mutation_of_a_gin_file_is_read_or_refused_in_a_sentence(tmp_path_factory, edits):
    text = RUN
    for place, length, piece in edits:
        text = text[:place] + piece + text[place + length :]
    path = tmp_path_factory.getbasetemp() / "mutated.gin"
    path.write_bytes(text.encode())
    try:
        check(path)
    except ConfigError as error:
        assert 10 < len(str(error)) < 3000


@given(text=st.text(max_size=60))
def test_any_value_on_the_command_line_is_read_or_refused_in_a_sentence(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "good.gin"
    path.write_text(RUN)
    try:
        check(path, f"train.model_dir = {text}")
    except ConfigError as error:
        assert 10 < len(str(error)) < 3000
