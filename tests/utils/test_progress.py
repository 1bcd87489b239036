"""Long work shows itself: bars on a terminal, plain lines elsewhere, and nothing is torn."""

import io
import multiprocessing
import re
import subprocess
import sys
import types

import pytest
from terminals import ROOT, run_on_terminal, screen

from ofa_jax.utils import progress
from ofa_jax.utils.progress_lines import Lines
from ofa_jax.utils.progress_stage import Stage, WorkerCounts

ESCAPE = "\x1b"


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def every_line(monkeypatch):
    """Prints every change, in a log without a terminal."""
    monkeypatch.setenv(progress.SECONDS, "0")
    monkeypatch.delenv(progress.MODE, raising=False)


# ------------------------------------------------------------------------------ rate and time left


def test_a_stage_knows_its_rate_and_the_time_left(clock):
    stage = Stage("composing", 1200, "images", clock=clock)
    assert stage.text() == "composing: 0/1,200 images"
    for _ in range(3):
        clock.now += 2
        stage.advance(100)
    assert stage.rate() == 50 and stage.seconds_left() == 18
    assert stage.text() == "composing: 300/1,200 images, 50.0 images/s, 0:00:18 left"
    clock.now += 5
    assert stage.left_text() == "0:00:13 left"
    clock.now += 100
    assert stage.left_text() == "0:00:00 left"
    stage.update(1200)
    assert stage.summary() == "composing: 1,200/1,200 images in 0:01:51, 10.8 images/s"


def test_the_compilation_before_the_first_step_does_not_count(clock):
    stage = Stage("decoding", 10, "batches", clock=clock)
    clock.now += 100
    stage.advance()
    assert stage.rate() == 0.01
    for _ in range(2):
        clock.now += 1
        stage.advance()
    assert stage.rate() == 1 and stage.seconds_left() == 7


def test_the_rate_is_of_the_last_minute(clock):
    stage = Stage("reading", 10**6, "lines", clock=clock)
    for step in range(400):
        clock.now += 1
        stage.advance(10 if step < 200 else 20)
    assert stage.rate() == pytest.approx(20)


@pytest.mark.parametrize(
    ("seconds", "unit", "text"),
    [
        (0.002, "images", "500 images/s"),
        (0.4, "steps", "2.50 steps/s"),
        (20, "tasks", "3.00 tasks/min"),
        (1800, "runs", "2.00 runs/h"),
        (0.125, "", "8.00/s"),
    ],
)
def test_slow_work_is_shown_by_the_minute_or_hour(clock, seconds, unit, text):
    stage = Stage("working", None, unit, clock=clock)
    clock.now += seconds
    stage.advance()
    assert stage.rate_text() == text


def test_bytes_are_shown_as_megabytes_and_gigabytes(clock):
    stage = Stage("writing", 4_000_000_000, "bytes", clock=clock)
    clock.now += 2
    stage.advance(500_000_000)
    assert stage.text() == "writing: 0.5/4.0 GB, 250.0 MB/s, 0:00:14 left"
    assert Stage("writing", 3_100_000, "bytes").counts_text() == "0.0/3.1 MB"


def test_without_a_total_there_is_a_rate_and_no_time_left(clock):
    stage = Stage("reading", unit="texts", clock=clock)
    clock.now += 3
    assert stage.text() == "reading: 0:00:03 so far"
    stage.advance(30)
    assert stage.text() == "reading: 30 texts, 10.0 texts/s"
    assert stage.seconds_left() is None
    assert Stage("metrics").summary() == "metrics: done in 0:00:00"


def test_uneven_steps_have_no_time_left(clock):
    stage = Stage("planning", 3, "steps", is_even=False, clock=clock)
    clock.now += 7
    stage.advance()
    assert stage.text() == "planning: 1/3 steps, 0:00:07 so far"
    assert stage.summary() == "planning: 1/3 steps in 0:00:07"


# --------------------------------------------------------------------------------------- the lines


def opened(lines, *stages):
    for count in range(1, len(stages) + 1):
        stages[count - 1].on_change = lines.changed
        lines.opened(list(stages[:count]))


def test_there_is_at_most_a_line_in_every_interval(clock):
    stream = io.StringIO()
    lines = Lines(stream, 10, clock, has_watch=False)
    stage = Stage("converting", 100, "lines", clock=clock)
    opened(lines, stage)
    for _ in range(45):
        clock.now += 1
        stage.advance()
    assert stream.getvalue().splitlines() == [
        f"converting: {done}/100 lines, 1.00 lines/s, {left} left"
        for done, left in ((10, "0:01:30"), (20, "0:01:20"), (30, "0:01:10"), (40, "0:01:00"))
    ]
    lines.closed([], stage, has_failed=False)
    last = stream.getvalue().splitlines()[-1]
    assert last == "converting: 45/100 lines in 0:00:45, 1.00 lines/s"
    assert "\r" not in stream.getvalue() and ESCAPE not in stream.getvalue()


def test_a_line_names_the_stages_around(clock):
    stream = io.StringIO()
    lines = Lines(stream, 10, clock, has_watch=False)
    outer, inner = (
        Stage("evaluating step 5", 8, "tasks", clock=clock),
        Stage("grounding", 40, "batches", clock=clock),
    )
    opened(lines, outer, inner)
    clock.now += 10
    inner.advance(4)
    assert stream.getvalue() == (
        "evaluating step 5: 0/8 tasks > grounding: 4/40 batches, 0.40 batches/s, 0:01:30 left\n"
    )
    lines.closed([outer], inner, has_failed=False)
    assert stream.getvalue().count("\n") == 1, "only what is inside nothing else has a summary"


def test_what_happens_elsewhere_is_noticed_and_silence_is_broken_seldom(clock):
    stream = io.StringIO()
    lines = Lines(stream, 10, clock, has_watch=False)
    stage = Stage("compiling", clock=clock)
    opened(lines, stage)
    for _ in range(13):
        clock.now += 10
        lines.tick()
    assert stream.getvalue().splitlines() == [
        "compiling: 0:01:00 so far",
        "compiling: 0:02:00 so far",
    ]
    counts = WorkerCounts(multiprocessing.get_context("spawn"), 2)
    stage.follow(counts)
    first, second = counts.take(), counts.take()
    first(3)
    second(4)
    clock.now += 10
    lines.tick()
    assert stream.getvalue().splitlines()[-1] == "compiling: 7, 3.00/min"


def test_a_failed_stage_has_no_summary(capsys, every_line):
    with pytest.raises(ValueError), progress.stage("converting", 3, "lines") as stage:
        stage.advance()
        raise ValueError
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"converting: 1/3 lines, [\d,.]+ lines/s, 0:00:00 left", line)


def test_a_log_that_cannot_be_written_does_not_end_the_work(clock):
    stream = io.StringIO()
    lines = Lines(stream, 0, clock)
    stage = Stage("converting", 3, clock=clock)
    opened(lines, stage)
    stream.close()
    stage.advance()
    assert stage.done == 1


# ------------------------------------------------------------------------------- one for a process


def test_stages_share_a_display_and_libraries_are_silent_without_one(capsys, every_line):
    with progress.substage("reading", 2, "tensors") as stage:
        stage.advance()
    progress.advance()
    assert capsys.readouterr() == ("", "")
    with progress.stage("converting", 1, "files") as outer:
        with progress.substage("reading", 2, "tensors"):
            progress.advance(2)
        outer.advance()
    output, lines = capsys.readouterr()
    assert output == "" and [line.split(",")[0] for line in lines.splitlines()] == [
        "converting: 0/1 files > reading: 2/2 tensors",
        "converting: 1/1 files",
        "converting: 1/1 files in 0:00:00",
    ]


@pytest.mark.parametrize("mode", ["off", "OFF"])
def test_it_can_be_switched_off(capsys, every_line, monkeypatch, mode):
    monkeypatch.setenv(progress.MODE, mode)
    with progress.stage("converting", 3, "lines") as stage:
        stage.advance(3)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("host", [0, 1])
def test_only_the_first_host_shows_anything(capsys, every_line, monkeypatch, host):
    fake = types.SimpleNamespace(
        distributed=types.SimpleNamespace(is_initialized=lambda: True),
        process_index=lambda: host,
    )
    monkeypatch.setitem(sys.modules, "jax", fake)
    with progress.stage("converting", 3, "lines") as stage:
        stage.advance(3)
    assert bool(capsys.readouterr().err) == (host == 0)


@pytest.mark.parametrize("value", ["", "often", "-1", "nan", "inf"])
def test_an_impossible_interval_is_the_usual_one(monkeypatch, capsys, value):
    monkeypatch.setenv(progress.SECONDS, value)
    with progress.stage("converting", 3, "lines") as stage:
        stage.advance(3)
    assert capsys.readouterr().err.startswith("converting: 3/3 lines in")


def test_it_needs_no_rich_where_there_is_no_terminal(tmp_path):
    program = (
        "import sys; sys.modules['rich'] = None\n"
        "from ofa_jax.utils import progress\n"
        "with progress.stage('converting', 3, 'lines') as stage: stage.advance(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "" and done.stderr.startswith("converting: 3/3 lines in")
    code, output = run_on_terminal(program)
    assert code == 0 and screen(output)[0].startswith("converting: 3/3 lines in")


# -------------------------------------------------------------------------------- worker processes

WORKERS = """
import os, sys, time
from tools.command import user_command, worker_processes
from ofa_jax.utils import progress

@user_command
def main():
    with progress.stage("converting", 60, "lines") as stage, worker_processes(2) as executor:
        list(executor.map(progress.advance, [10] * 6))
        assert stage.done == 60
        stage.advance(0)
        {then}

sys.exit(main())
"""


@pytest.mark.parametrize(
    ("then", "code", "last"),
    [
        ("pass", 0, "converting: 60/60 lines in "),
        ("executor.submit(os._exit, 1).result()", 2, "error: a worker process was killed"),
        ("executor.submit(os.stat, '/gone').result()", 2, "error: [Errno 2] No such file"),
    ],
    ids=["finished", "killed", "failed"],
)
def test_worker_processes_count_in_one_stage(then, code, last):
    program = WORKERS.format(then=then)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    lines = done.stderr.splitlines()
    assert done.returncode == code and lines[-1].startswith(last) and len(lines) == 1
    found, output = run_on_terminal(program)
    assert found == code and "60/60 lines" in output and "lines/s" in output
    assert [line for line in screen(output) if "converting" in line] == []


# ------------------------------------------------------------------------------------ on a terminal

SHOWN = """
import logging, sys
from absl import logging as absl_logging
from ofa_jax.utils import progress

logging.basicConfig(format="%(message)s")
with progress.stage("evaluating step 500", 2, "tasks") as outer:
    for task in ("captioning", "grounding"):
        with progress.substage(task, 4, "batches") as stage:
            print(f"{task} begins")
            for number in range(4):
                stage.advance()
                logging.warning("%s: a warning", task)
                print("in parts, ", end="")
                print("one line", file=sys.stderr)
                print("and the end")
        outer.advance()
print("The results are in a folder " + "whose name is longer than the terminal is wide " * 3)
"""
PRINTED = [
    line
    for task in ("captioning", "grounding")
    for line in [
        f"{task} begins",
        *[f"{task}: a warning", "one line", "in parts, and the end"] * 4,
    ]
]


def test_a_terminal_shows_bars_rates_and_times_left_and_keeps_only_what_was_printed():
    code, output = run_on_terminal(SHOWN)
    assert code == 0
    assert "━" in output and "batches/s" in output and re.search(r"0:00:0\d left", output)
    assert "4/4 batches" in output and "1/2 tasks" in output and "  grounding" in output
    *lines, last = screen(output)
    assert lines == PRINTED
    assert last.startswith("The results are in a folder whose name is longer than the terminal")
    assert "\x1b[?25l" not in output, "a killed command could not show the cursor again"


def test_a_narrow_terminal_keeps_the_numbers():
    _, output = run_on_terminal(SHOWN, columns=70)
    assert "4/4 batches" in output and "batches/s" in output and "left" in output
    assert screen(output)[:-1] == PRINTED


def test_a_machine_reads_standard_output_while_a_terminal_shows_bars(tmp_path):
    with (tmp_path / "out").open("w") as stdout:
        code, output = run_on_terminal(SHOWN, stdout=stdout)
    written = (tmp_path / "out").read_text().splitlines()
    assert code == 0 and "4/4 batches" in output
    assert written[:-1] == [line for line in PRINTED if line[-3:] in ("ins", "end")]
    assert screen(output) == [line for line in PRINTED if line[-3:] in ("ing", "ine")]


@pytest.mark.parametrize(
    "environment",
    [{"TERM": "dumb"}, {"OFA_PROGRESS": "lines"}],
    ids=["dumb", "lines"],
)
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(environment):
    program = "def print(*args, **kwargs): pass\n" + SHOWN.replace("logging.warning", "print")
    code, output = run_on_terminal(program, OFA_PROGRESS_SECONDS="0", **environment)
    lines = output.replace("\r\n", "\n")
    assert code == 0 and ESCAPE not in lines and "\r" not in lines
    assert "evaluating step 500: 0/2 tasks > captioning: 4/4 batches, " in lines
    assert re.search(r"evaluating step 500: 2/2 tasks in 0:00:0\d, ", lines)


def test_no_color_is_respected():
    _, output = run_on_terminal(SHOWN, NO_COLOR="1")
    assert "4/4 batches" in output and screen(output)[:-1] == PRINTED
    assert not re.search(r"\x1b\[[\d;]*(3\d|9\d|38;[\d;]*)m", output)


def test_unknown_totals_have_a_rate_alone():
    program = (
        "from ofa_jax.utils import progress\n"
        "with progress.stage('reading', unit='texts') as stage: stage.advance(30)\n"
    )
    code, output = run_on_terminal(program)
    assert code == 0 and "30 texts" in output and "texts/s" in output
    assert "left" not in output and "so far" in output and screen(output) == []


INTERRUPTED = """
import os, signal, sys, time
from tools.command import user_command
from ofa_jax.utils import progress

@user_command
def main():
    with progress.stage("converting", 10, "lines") as stage, progress.substage("reading"):
        stage.advance(3)
        print("half a line", end="")
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

sys.exit(main())
"""


def test_an_interrupted_command_leaves_the_terminal_clean():
    code, output = run_on_terminal(INTERRUPTED)
    assert code == 130 and "3/10 lines" in output
    assert screen(output) == ["half a lineStopped (Ctrl-C)."]


def test_an_interrupted_command_leaves_no_lines_without_a_terminal():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (130, "Stopped (Ctrl-C).\n")


def test_a_tool_shows_its_work_on_a_terminal_and_leaves_its_result(tmp_path):
    (tmp_path / "texts.txt").write_text("red apple, blue sky\n" * 50)
    output = tmp_path / "vocabulary.json"
    code, shown = run_on_terminal(
        "-m tools.train_tokenizer",
        f"--input={tmp_path / 'texts.txt'}",
        "--vocab_size=260",
        f"--output={output}",
        columns=200,
    )
    assert code == 0 and "learning the vocabulary" in shown and "MB/s" in shown
    assert screen(shown) == [f"Wrote {output}."]
