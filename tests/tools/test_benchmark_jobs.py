"""`python -m tools.benchmark_jobs`: its commands run, and its rates and table are right."""

import json
import re
import subprocess
import sys
import time

import pytest

from tools import benchmark_jobs

INPUT = re.compile(r"/(images|records)_(\d+)\.tsv$")
SMALL = ["--images=4", "--records=4", "--image_size=32", "--batch_size=2", "--num_workers=2"]


def test_rates_are_of_the_further_records(tmp_path, capsys, monkeypatch):
    """A clock that each command advances by its start and by its records."""
    clock, commands = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def run(command):
        commands.append(list(command))
        text = " ".join(command)
        (count,) = (int(found[2]) for found in map(INPUT.search, command) if found)
        clock[0] += 5 + count * (0.5 if "multi_processing" in text else 1.0)

    page = tmp_path / "page.md"
    page.write_text(f"# A\n\n{benchmark_jobs.BEGIN}\nold\n{benchmark_jobs.END}\nlast\n")
    assert benchmark_jobs.main([*SMALL, "--width=32", "--json", f"--docs={page}"], run) == 0
    printed = capsys.readouterr().out
    rates = json.loads(printed.splitlines()[-1])
    assert [rate["per_second"] for rate in rates] == pytest.approx([1, 1, 2, 1, 1, 2])
    assert [rate["start_seconds"] for rate in rates] == pytest.approx([5] * 6)
    assert len(commands) == 12
    text = page.read_text()
    assert "old" not in text and text.startswith("# A\n") and text.endswith("\nlast\n")
    assert "| converting TSV | after: 2 processes | 2.0 records | " in text


def test_mistakes_are_sentences(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    for arguments, message in (
        (["--images=2", "--batch_size=2"], "give more images"),
        (["--records=1"], "at least 4"),
        ([f"--docs={page}"], "has no lines <!-- tools.benchmark_jobs -->"),
    ):
        assert benchmark_jobs.main(arguments, lambda command: None) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"python -c raise SystemExit\(3\)` failed"):
        benchmark_jobs.run_python(["-c", "raise SystemExit(3)"])


@pytest.mark.slow
def test_all_commands_run():
    pytest.importorskip("apache_beam", reason="needs the extra 'beam'")
    command = [sys.executable, "-m", "tools.benchmark_jobs", *SMALL, "--width=32", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rates = json.loads(done.stdout.splitlines()[-1])
    assert len(rates) == 6
