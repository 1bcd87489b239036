"""`python -m tools.benchmark_peer`: what it reads, in which order it runs, what it writes."""

import json
import os
import pathlib
import shlex
import sys

import pytest

from tools import benchmark_peer, benchmark_peer_turns, benchmark_peer_works
from tools.benchmark_peer_turns import PeerError, parse_output
from tools.benchmark_peer_works import Work

# Prints the seconds that its first argument says, and appends what it was given to a log.
STUB = """
import json, os, sys
print(sys.argv[1])
names = [n for n in os.environ if n.startswith("OFA_BENCHMARK_")] + ["OMP_NUM_THREADS"]
given = {name: os.environ[name] for name in [*names, "GLIBC_TUNABLES"]}
inputs = sorted(os.listdir(given["OFA_BENCHMARK_FOLDER"]))
cores = len(os.sched_getaffinity(0))
line = {"arguments": sys.argv[2:], "inputs": inputs, "cores": cores, **given}
with open(os.environ["STUB_LOG"], "a") as log:
    log.write(json.dumps(line) + "\\n")
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Returns a function that gives a command which prints a text; its log is `log.jsonl`."""
    program = tmp_path / "stub.py"
    program.write_text(STUB)
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "log.jsonl"))
    monkeypatch.chdir(tmp_path)

    def command(text, *arguments):
        return shlex.join([sys.executable, str(program), text, *arguments])

    return command


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---------------------------------------------------------------------------- what commands print


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ('{"seconds": 1.5}\n{"seconds": 2}\n', [1.5, 2.0]),
        ('{"seconds": [1.5, 2.5], "of no meaning": null}', [1.5, 2.5]),
        ("1.5\n\n2.5\n", [1.5, 2.5]),
        ("[0.5, 1e-3]\r\n", [0.5, 0.001]),
    ],
)
def test_seconds_are_read_from_one_line_a_repeat_or_one_for_all(text, seconds):
    assert parse_output(text, "the peer").seconds == seconds


def test_parts_and_notes_are_read():
    line = {"seconds": [3, 4], "parts": {"encoder": [1, 1.5]}, "notes": {"rate": 4.9e11}}
    found = parse_output(json.dumps(line), "the peer")
    assert found.parts == {"encoder": [1.0, 1.5]} and found.notes == {"rate": 4.9e11}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "printed no seconds"),
        ("\n \n", "printed no seconds"),
        ('{"seconds": 1.5', "is no JSON"),
        ("Loading checkpoint ...", "is no JSON (Loading checkpoint ...)"),
        ('{"second": 1}', "has no `seconds`"),
        ('{"seconds": []}', "has [] where positive seconds"),
        ('{"seconds": [1, "2"]}', 'has "2" where positive seconds'),
        ('{"seconds": true}', "has true where positive seconds"),
        ('{"seconds": NaN}', "has NaN where positive seconds"),
        ('{"seconds": -1}', "has -1 where positive seconds"),
        ('{"seconds": 0}', "has 0 where positive seconds"),
        ('{"seconds": 1e999}', "has Infinity where positive seconds"),
        (f'{{"seconds": 1{"0" * 400}}}', "where positive seconds"),
        ('{"seconds": {"median": 1}}', "where positive seconds"),
        ('{"seconds": 1, "parts": [1]}', "has `parts` that are no object"),
        ('{"seconds": 1, "parts": {"encoder": null}}', "part encoder, has null"),
        ("[" * 100_000, "is no JSON"),
        ("null", "has null where"),
        ('"\\ud800"', "where positive seconds"),
    ],
)
def test_damaged_lines_give_a_sentence(text, problem):
    with pytest.raises(PeerError) as error:
        parse_output(text, "the peer")
    assert problem in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    str(error.value).encode()


def test_the_number_of_a_damaged_line_is_named():
    with pytest.raises(PeerError, match="Line 2 of what the peer printed"):
        parse_output('{"seconds": 1}\nseconds: 2\n', "the peer")


# ---------------------------------------------------------------------------- turns


def test_both_sides_run_in_turn_under_the_same_conditions(stub, tmp_path, capsys):
    peer = stub('{"seconds": [4, 2], "parts": {"encoder": [1, 1]}}', "peer", "{work}", "{folder}")
    ours = stub('{"seconds": 1, "parts": {"encoder": 0.5, "decoder": 1}}', "ours")
    before = os.sched_getaffinity(0)
    code = benchmark_peer.main(
        [
            f"--peer={peer}",
            f"--ours={ours}",
            "--works=greedy_base",
            "--turns=2",
            "--repeats=2",
            "--threads=1",
            "--output=found.json",
        ]
    )
    assert code == 0
    assert os.sched_getaffinity(0) == before
    turns = lines_of(tmp_path / "log.jsonl")
    assert [turn["arguments"][0] for turn in turns] == ["peer", "ours", "peer", "ours"]
    folder = turns[0]["OFA_BENCHMARK_FOLDER"]
    assert turns[0]["arguments"] == ["peer", "greedy_base", folder]
    assert turns[0]["inputs"] == ["tensors.npz", "work.json"]
    conditions = [{k: v for k, v in turn.items() if k != "arguments"} for turn in turns]
    assert all(condition == conditions[0] for condition in conditions)
    assert conditions[0]["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert conditions[0]["OMP_NUM_THREADS"] == "1" and conditions[0]["cores"] == 1
    assert conditions[0]["OFA_BENCHMARK_REPEATS"] == "2"
    assert not os.path.exists(folder)
    found = json.loads((tmp_path / "found.json").read_text())["works"]["greedy_base"]
    assert found["sides"]["peer"]["seconds"] == [4, 2, 4, 2]
    assert found["summary"][""] == {
        "peer_median": 3,
        "ours_median": 1,
        "ratio": pytest.approx(1 / 3),
        "peer_min": 2,
        "ours_min": 1,
        "ratio_of_minima": 0.5,
    }
    assert list(found["summary"]) == ["", "encoder"]  # the peer has no decoder
    shown = capsys.readouterr().out
    assert "0.33" in shown and "0.50" in shown and "its encoder" in shown


def test_a_work_that_fails_is_reported_and_the_others_are_kept(stub, tmp_path, capsys):
    program = (
        "import os, sys; failing = os.environ['OFA_BENCHMARK_WORK'] == 'beam_base'\n"
        "print('Traceback', file=sys.stderr)\n"
        "sys.exit('RuntimeError: no memory') if failing else print(2)"
    )
    code = benchmark_peer.main(
        [
            f"--peer={shlex.join([sys.executable, '-c', program])}",
            f"--ours={stub('1')}",
            "--works=beam_base,greedy_base",
            "--turns=1",
            "--threads=1",
            "--output=found.json",
        ]
    )
    assert code == 1
    captured = capsys.readouterr()
    assert captured.err.strip() == (
        "error: The peer failed at beam_base with exit code 1: RuntimeError: no memory"
    )
    works = json.loads((tmp_path / "found.json").read_text())["works"]
    assert "failed" in works["beam_base"] and works["greedy_base"]["summary"][""]["ratio"] == 0.5
    assert "not measured" in captured.out


def test_a_work_that_a_side_does_not_do_is_skipped(stub, tmp_path):
    arguments = [f"--peer={stub(json.dumps({'skipped': 'no decoder'}))}", f"--ours={stub('1')}"]
    arguments += ["--works=greedy_base", "--threads=1", "--output=found.json"]
    assert benchmark_peer.main(arguments) == 0
    works = json.loads((tmp_path / "found.json").read_text())["works"]
    assert works["greedy_base"]["skipped"] == "peer: no decoder"
    assert len(lines_of(tmp_path / "log.jsonl")) == 1


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("import time; time.sleep(60)", "took more than 1 s for greedy_base"),
        ("print('x' * 2_000_000)", "printed 2,000,001 bytes"),
        ("import os; os.kill(os.getpid(), 9)", "failed at greedy_base with exit code -9"),
    ],
)
def test_a_command_that_hangs_floods_or_dies_is_reported(tmp_path, program, problem):
    variables = benchmark_peer_turns.environment(1, {"OFA_BENCHMARK_WORK": "greedy_base"})
    command = shlex.join([sys.executable, "-c", program])
    with pytest.raises(PeerError, match=problem):
        timeout = 1 if "sleep" in program else 100
        benchmark_peer_turns.run(command, "the peer", variables, tmp_path, timeout)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--peer=no_such_program_here", "is not there: no_such_program_here"),
        ("--peer='python", "cannot be read"),
        ("--peer= ", "The command of the peer is empty"),
        ("--works=step_tiny,step", "there is no work 'step'; choose from step_tiny"),
        ("--works=,", "there is no work ''"),
        ("--turns=0", "--turns must be at least 1"),
        ("--timeout=nan", "--timeout must be positive"),
        ("--threads=100000", "--threads is 100000, and there are"),
        ("--output=missing/found.json", "is no folder"),
    ],
)
def test_mistakes_on_the_command_line_are_sentences(stub, capsys, option, sentence):
    try:
        code = benchmark_peer.main([f"--peer={stub('1')}", f"--ours={stub('1')}", option])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_without_a_peer_there_is_nothing_to_do(capsys):
    with pytest.raises(SystemExit):
        benchmark_peer.main([])
    assert "give the other side" in capsys.readouterr().err


# ---------------------------------------------------------------------------- our side


SMALL = {
    "step": Work("step", "a step", "scenes", 1, 32, 2, 3, 2),
    "decode": Work("decode", "a search", "scenes", 1, 32, 0, 3, 2, beam_size=2),
    "data": Work("data", "examples", batch_size=2, image_size=64, examples=4, images=6),
}


# A training step takes long to compile.
@pytest.mark.parametrize("kind", [pytest.param("step", marks=pytest.mark.slow), "decode", "data"])
def test_our_side_prints_what_the_tool_reads(kind, tmp_path, capsys, monkeypatch):
    work = SMALL[kind]
    monkeypatch.setitem(benchmark_peer_works.WORKS, kind, work)
    monkeypatch.setattr(benchmark_peer_works, "WARM_UP_BATCHES", 1)
    work.write_inputs(tmp_path)
    described = json.loads((tmp_path / "work.json").read_text())
    assert described["model"]["width"] == work.config.width
    capsys.readouterr()
    benchmark_peer_works.main([f"--work={kind}", f"--folder={tmp_path}", "--repeats=2"])
    found = parse_output(capsys.readouterr().out, "our side")
    assert len(found.seconds) == 2
    expected = {"step": [], "decode": ["encoder", "decoder"], "data": []}
    assert list(found.parts) == expected[kind]
    if kind == "data":
        assert len((tmp_path / "pairs.tsv").read_text().splitlines()) == work.images


def test_our_command_is_the_module_with_the_options():
    command, directory = benchmark_peer.our_side(3, 2)
    words = shlex.split(command)
    assert words[1:3] == ["-m", "tools.benchmark_peer_works"] and words[-1] == "--threads=2"
    assert (directory / "tools" / "benchmark_peer_works.py").is_file()


# ---------------------------------------------------------------------------- the page


RESULTS = {
    "turns": 2,
    "repeats": 3,
    "threads": 2,
    "machine": {
        "processor": "A processor",
        "allocator": "GLIBC_TUNABLES=glibc.malloc.hugetlb=1",
        "versions": {"jax": "0.1"},
        "load_before": 0.04,
    },
    "works": {
        "step_tiny": {
            "title": "training step, tiny",
            "summary": {
                "": {
                    "peer_median": 1.5,
                    "peer_min": 1.25,
                    "ours_median": 1.0,
                    "ours_min": 0.98765,
                    "ratio": 2 / 3,
                    "ratio_of_minima": 0.79,
                }
            },
        },
        "pairs": {"title": "data", "skipped": "peer: a | b"},
    },
}


def test_the_page_is_made_from_the_results(tmp_path):
    block = benchmark_peer.page_block(RESULTS)
    line = "| training step, tiny | 1.5 s (1.25 s) | 1 s (0.988 s) | 0.67 | 0.79 |"
    assert line in block.split("\n")
    assert "| data | not measured (peer: a / b) |  |  |  |" in block
    assert "Not measured yet: training step, base, batch 4; base, beam 5" in block
    page = tmp_path / "page.md"
    page.write_text(f"a\n{benchmark_peer.BEGIN}\nold\n<!-- end -->\nb\n")
    benchmark_peer.write_page(RESULTS, page)
    assert page.read_text() == f"a\n{benchmark_peer.BEGIN}\n{block}\n<!-- end -->\nb\n"


def test_the_documentation_has_the_block_of_the_results():
    found = None
    if benchmark_peer.RESULTS.exists():
        found = benchmark_peer.read_results(benchmark_peer.RESULTS)
    page = benchmark_peer.PAGE.read_text()
    block = page.partition(benchmark_peer.BEGIN)[2].partition("<!-- end -->")[0]
    assert block == f"\n{benchmark_peer.page_block(found)}\n", (
        "run python -m tools.benchmark_peer --write_docs"
    )


def test_results_of_something_else_are_refused(tmp_path):
    path = pathlib.Path(tmp_path / "other.json")
    for text in ("[]", "{", '{"works": {}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="other.json"):
            benchmark_peer.read_results(path)
