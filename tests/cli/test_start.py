"""What a command loads before it answers `--help`, and how it starts with huge pages."""

import ast
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from ofa_jax.utils import allocator

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMANDS = ("train", "evaluate", "infer", "plan", "demo")
HEAVY = {
    *("jax", "jaxlib", "numpy", "flax", "optax", "orbax", "grain", "clu", "gin", "etils"),
    *("tensorflow", "seqio", "tensorflow_datasets", "scipy", "pandas", "sklearn", "PIL", "cv2"),
    *("rich", "plotly", "jinja2", "tokenizers", "gradio", "fastapi"),
}
MOST_MODULES = 400
"""A start of Python has about 80; JAX alone has a thousand more."""


def environment(**given):
    """Returns the environment without the settings of the launchers."""
    names = ("GLIBC_TUNABLES", allocator.OPT_OUT, allocator._RESTARTED)
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return {**kept, "PYTHONPATH": str(ROOT), **given}


# ------------------------------------------------------------------------------------- --help


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("start", ["module", "script"])
def test_help_is_answered_before_anything_large_is_imported(name, start, tmp_path):
    runs = {
        "module": f"runpy.run_module('ofa_jax.{name}', run_name='__main__', alter_sys=True)",
        "script": f"from ofa_jax import console; console.{name}()",
    }
    program = (
        f"import runpy, sys\nsys.argv = ['ofa-{name}', '--help']\n"
        f"try: {runs[start]}\n"
        "except SystemExit as ended: code = ended.code\n"
        "print(*sys.modules, sep=',')\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    *text, modules = done.stdout.splitlines()
    loaded = set(modules.split(","))
    assert not HEAVY & loaded
    assert len(loaded) < MOST_MODULES
    assert "usage:" in text[0] and any("--gin_file" in line or "--port" in line for line in text)
    assert not done.stderr


@pytest.mark.parametrize("arguments", [["-h"], ["--gin_file=x.gin", "--help"]])
def test_help_is_found_among_other_arguments(arguments, capsys):
    from ofa_jax import train

    with pytest.raises(SystemExit) as ended:
        train.main(arguments)
    assert ended.value.code == 0
    assert "usage: python -m ofa_jax.train" in capsys.readouterr().out


# ------------------------------------------------------------------------------------- huge pages


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """Lets the kernel seem to offer huge pages; returns the file that says so."""
    if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
        pytest.skip("the settings are those of glibc")
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never\n")
    monkeypatch.setattr(allocator, "_HUGE_PAGES", path)
    monkeypatch.setattr(allocator, "_OLDEST_GLIBC", (2, 0))
    return path


def test_the_settings_are_those_of_the_launchers(offered):
    text = (ROOT / "launch" / "environment.sh").read_text()
    name, value = allocator.TUNABLES
    assert f'export {name}="${{{name}:-{value}}}"' in text
    assert allocator.settings({}) == {name: value}


@pytest.mark.parametrize(
    "given", [{"GLIBC_TUNABLES": "glibc.malloc.perturb=1"}, {"GLIBC_TUNABLES": ""}]
)
def test_settings_of_the_users_are_kept(offered, given):
    assert allocator.settings(given) == {}


def test_a_variable_keeps_a_command_from_starting_again(offered):
    assert allocator.settings({allocator.OPT_OUT: "0"}) == {}
    assert allocator.settings({allocator.OPT_OUT: "1"})


@pytest.mark.parametrize("text", ["[always] madvise never", "always madvise [never]", "", None])
def test_nothing_is_done_where_the_kernel_gives_no_huge_pages_on_request(offered, text):
    offered.unlink() if text is None else offered.write_text(text)
    assert allocator.settings({}) == {}


@pytest.mark.parametrize("library", ["musl 1.2", "glibc 2.34", "", None])
def test_nothing_is_done_with_another_library(offered, monkeypatch, library):
    monkeypatch.setattr(allocator, "_OLDEST_GLIBC", (2, 35))
    monkeypatch.setattr(os, "confstr", lambda name: library)
    assert allocator.settings({}) == {}
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.35")
    assert allocator.settings({})


# Starts as a command does, notes every start, and shows what reached it.
PROGRAM = """
import json, os, pathlib, signal, sys
from ofa_jax.utils import allocator
allocator._HUGE_PAGES = pathlib.Path(os.environ["ENABLED"])
allocator._OLDEST_GLIBC = (2, 0)
with open(os.environ["STARTS"], "a") as file:
    file.write(f"{os.getpid()} {os.environ.get('GLIBC_TUNABLES')}\\n")
for _ in range(int(os.environ.get("CALLS", 1))):
    allocator.restart_with_huge_pages()
ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
print(json.dumps([os.getpid(), sys.argv[1:], sys.stdin.readline(), ignored]), flush=True)
if "wait" in sys.argv:
    signal.pause()
sys.exit(7)
"""


@pytest.fixture
def command(tmp_path, offered):
    """Returns the command, its environment, and the file that has a line for every start."""
    program, starts = tmp_path / "program.py", tmp_path / "starts"
    program.write_text(PROGRAM)
    given = environment(ENABLED=str(offered), STARTS=str(starts))
    return [sys.executable, str(program)], given, starts


def starts_of(path):
    return [line.split(" ", 1) for line in path.read_text().splitlines()]


ARGUMENTS = ["--gin.MODEL_DIR='runs/a b'", "", "*", "ü", "--", "-x"]


def test_a_command_starts_again_once_and_everything_reaches_it(command):
    words, given, starts = command
    done = subprocess.run(
        [*words, *ARGUMENTS], input="a line\n", capture_output=True, text=True, env=given
    )
    assert done.returncode == 7, done.stderr
    pid, arguments, line, ignored = json.loads(done.stdout)
    assert arguments == ARGUMENTS and line == "a line\n" and not ignored
    assert starts_of(starts) == [[str(pid), "None"], [str(pid), "glibc.malloc.hugetlb=1"]]
    assert not done.stderr


@pytest.mark.parametrize("start", ["-m", "-c"])
def test_modules_and_programs_on_the_command_line_start_again(command, start):
    words, given, starts = command
    program = pathlib.Path(words[1])
    given["PYTHONPATH"] += os.pathsep + str(program.parent)
    what = program.stem if start == "-m" else PROGRAM
    done = subprocess.run(
        [words[0], "-X", "utf8", start, what, "x y"], input="", capture_output=True, text=True,
        env=given,
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert json.loads(done.stdout)[1] == ["x y"] and len(starts_of(starts)) == 2


def test_signals_reach_the_same_process(command):
    words, given, starts = command
    process = subprocess.Popen([*words, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, env=given)  # fmt: skip
    process.stdin.write("\n")
    process.stdin.flush()
    pid = json.loads(process.stdout.readline())[0]
    assert pid == process.pid
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    process.stdin.close()
    process.stdout.close()
    assert len(starts_of(starts)) == 2


def test_a_signal_that_is_ignored_stays_ignored(command):
    words, given, starts = command
    shell = ["bash", "-c", "trap '' INT; exec \"$@\"", "bash", *words]
    done = subprocess.run(shell, input="", capture_output=True, text=True, env=given)
    assert json.loads(done.stdout)[3] is True and len(starts_of(starts)) == 2


@pytest.mark.parametrize(
    "more", [{allocator.OPT_OUT: "0"}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}]
)
def test_it_starts_once_where_it_is_told_to(command, more):
    words, given, starts = command
    done = subprocess.run(words, input="", capture_output=True, text=True, env=given | more)
    assert done.returncode == 7 and len(starts_of(starts)) == 1


def test_a_system_that_withholds_the_settings_causes_no_loop(command):
    words, given, starts = command
    # As glibc does in programs with special rights: the variable is not there after the start.
    program = pathlib.Path(words[1])
    program.write_text("import os\nos.environ.pop('GLIBC_TUNABLES', None)" + PROGRAM)
    done = subprocess.run(
        words, input="", capture_output=True, text=True, env=given | {"CALLS": "3"}, timeout=120
    )
    assert done.returncode == 7 and len(starts_of(starts)) == 2


def test_a_program_from_standard_input_is_not_started_again(command):
    words, given, starts = command
    done = subprocess.run([words[0], "-"], input=PROGRAM, capture_output=True, text=True, env=given)
    assert done.returncode == 7, done.stderr
    assert len(starts_of(starts)) == 1


@pytest.mark.parametrize("name", [*COMMANDS, "jobs/__main__"])
def test_every_command_begins_with_it(name):
    tree = ast.parse((ROOT / "ofa_jax" / f"{name}.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.body[0]) == "allocator.restart_with_huge_pages()"
