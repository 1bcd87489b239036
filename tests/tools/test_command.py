"""Tests what all tools do on the command line, and that they refuse before they write."""

import importlib
import inspect
import json
import os
import pathlib
import pkgutil
import re
import socket
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import pytest
from shown_progress import assert_shown, every_line

import tools
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.locks import directory_lock
from tools import (
    ablation_results,
    ablations,
    build_scenes,
    output_folders,
    plan_table,
    report_scenes,
    scenes_results,
)
from tools import train_tokenizer as tokenizer_tool
from tools.command import user_command

TOOLS = [
    name
    for _, name, _ in pkgutil.iter_modules(tools.__path__)
    if "__main__" in (pathlib.Path(tools.__path__[0]) / f"{name}.py").read_text()
]


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_reports_mistakes_and_exits_with_their_code(name):
    module = importlib.import_module(f"tools.{name}")
    assert inspect.unwrap(module.main) is not module.main
    assert "sys.exit(main(" in inspect.getsource(module)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("two\n  lines"), 2, "error: two lines\n"),
        (OSError("No space left on device"), 2, "error: No space left on device\n"),
        (ImportError("no rich"), 2, "error: no rich\n"),
        (KeyboardInterrupt(), 130, "Stopped (Ctrl-C).\n"),
        (BrokenProcessPool(), 2, "error: a worker process was killed, perhaps for lack of memory"),
    ],
)
def test_errors_become_a_sentence_and_an_exit_code(error, code, text, capsys):
    @user_command
    def main():
        raise error

    assert main() == code
    assert capsys.readouterr().err.startswith(text)


def test_results_and_bugs_pass_through():
    assert user_command(lambda: None)() == 0
    assert user_command(lambda: 3)() == 3

    @user_command
    def main():
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        main()


# ----------------------------------------------------------------------------- folders and files


def test_temporary_folders_of_other_hosts_are_not_removed(tmp_path):
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    own = output_folders.own_name(".new-")
    assert own == f".new-{socket.gethostname()}-{os.getpid()}"
    names = {
        own: True,
        f".new-{socket.gethostname()}-{finished.pid}": False,
        f".new-{finished.pid}": False,
        f".new-another-host-{finished.pid}": True,
        f".new-{socket.gethostname()}-{'9' * 40}": False,
        ".new-text": True,
    }
    for name in names:
        (tmp_path / name).mkdir()
    output_folders.remove_stale(tmp_path, ".new-")
    assert {path.name for path in tmp_path.iterdir()} == {n for n, kept in names.items() if kept}


def test_a_failed_renaming_keeps_the_old_folder(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "a").touch()
    with pytest.raises(OSError, match="target cannot be written"):
        output_folders.put_in_place(tmp_path / "work" / "gone", tmp_path / "target")
    assert (tmp_path / "target" / "a").exists()


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_foreign_folders_are_not_replaced_by_scenes(tmp_path, capsys, overwrite):
    precious = tmp_path / "scenes" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    assert build_scenes.main([f"--data_dir={tmp_path}", "--num_train=1", *overwrite]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "was not written by this command" in error
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]
    assert precious.read_text() == "mine"


def test_scenes_refuse_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert build_scenes.main([f"--data_dir={tmp_path / 'file' / 'data'}"]) == 2
    assert "cannot be created (Not a directory): choose another --data_dir" in (
        capsys.readouterr().err
    )
    assert build_scenes.main([f"--data_dir={tmp_path}", "--num_train=0"]) == 2
    assert "Every split needs an image" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ------------------------------------------------------------------------------------- tokenizer


def train(tmp_path, *inputs, output="tokenizer.json"):
    return tokenizer_tool.main(
        ["--input", *map(str, inputs), "--vocab_size=300", f"--output={tmp_path / output}"]
    )


def test_marks_and_line_ends_do_not_change_a_tokenizer(tmp_path):
    text = "red apple red apple\nrock\u2028roll rock\u2028roll\nblue\u0085sky\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    with every_line() as shown:
        assert train(tmp_path, tmp_path / "a.txt", output="a.json") == 0
    assert_shown(shown, "learning the vocabulary", "0.0 MB")
    assert train(tmp_path, tmp_path / "b.txt", output="b.json") == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert OFAVocabulary.from_tokenizer_json(tmp_path / "a.json").num_text > 256


def test_a_tokenizer_replaces_nothing_else(tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text("some text\n")
    for output, content, sentence in (
        ("a.txt", None, "is one of the inputs"),
        ("notes.txt", "mine", "exists and is not a tokenizer's JSON"),
        ("other.json", "{}", "exists and is not a tokenizer's JSON"),
        ("a.txt/b.json", None, "cannot be created"),
    ):
        if content:
            (tmp_path / output).write_text(content)
        assert train(tmp_path, text, output=output) == 2
        assert sentence in capsys.readouterr().err
        assert content is None or (tmp_path / output).read_text() == content
    assert text.read_text() == "some text\n"
    assert train(tmp_path, text) == 0
    assert train(tmp_path, text) == 0, "a tokenizer may be replaced"
    (tmp_path / "latin.txt").write_bytes(b"a\ncaf\xe9\n")
    before = (tmp_path / "tokenizer.json").read_bytes()
    assert train(tmp_path, tmp_path / "latin.txt") == 2
    assert "latin.txt, line 2 is not UTF-8" in capsys.readouterr().err
    assert (tmp_path / "tokenizer.json").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# --------------------------------------------------------------------------------------- results


def trained_run(folder):
    """Returns a folder that looks like a trained run."""
    (folder / "run" / "checkpoints" / "40" / "state").mkdir(parents=True)
    (folder / "run" / "config.gin").write_text("")
    return folder / "run"


# Name of the results -> the command, what reads them, and what they must not be.
RESULTS = {
    "scenes": (report_scenes, scenes_results, ["[]", '{"run": {}}', '{"splits": {"test": 3}}']),
    "ablations": (ablations, ablation_results, ["{}", '[{"run": 3}]', "[3]"]),
}


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, content) for name, (*_, wrong) in RESULTS.items() for content in ["", "{", *wrong]],
)
def test_damaged_results_are_refused_before_anything_runs(tmp_path, name, content, capsys):
    command, results, _ = RESULTS[name]
    path = tmp_path / f"{name}.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        results.load(path)
    calls = []
    run = {
        "scenes": f"--model_dir={trained_run(tmp_path)}",
        "ablations": f"--runs_dir={tmp_path / 'runs'}",
    }[name]
    arguments = [f"--results_dir={tmp_path}", run]
    assert command.main(arguments, lambda command: calls.append(command) or 0) == 2
    assert str(path) in capsys.readouterr().err
    assert not calls and path.read_text() == content


def test_two_commands_do_not_write_the_same_results(tmp_path, capsys):
    calls = []
    model_dir = trained_run(tmp_path)
    with directory_lock(tmp_path, "--results_dir"):
        arguments = [f"--results_dir={tmp_path}", f"--model_dir={model_dir}"]
        assert report_scenes.main(arguments, lambda command: calls.append(command) or 0) == 2
    assert not calls
    assert "Another process is writing to" in capsys.readouterr().err


def test_a_torn_list_of_plans_is_a_sentence(tmp_path, monkeypatch, capsys):
    page = tmp_path / "pods.md"
    page.write_text(f"{plan_table.BEGIN}\nold\n{plan_table.END}\n")
    monkeypatch.setattr(plan_table, "PAGE", page)
    monkeypatch.setattr(plan_table, "RESULTS", tmp_path / "plans.jsonl")
    good = json.dumps({"size": "base", "system": "x", "plan": {}, "arguments": []})
    for torn in (good[:20], "3", "{}"):
        (tmp_path / "plans.jsonl").write_text(f"{torn}\n")
        assert plan_table.main(["--sizes=base"]) == 2
        assert "plans.jsonl, line 1 is not a result" in capsys.readouterr().err
    assert "old" in page.read_text()
