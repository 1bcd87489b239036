"""The table of plans: its commands, its rows, and how a later call resumes."""

import json
import pathlib
import subprocess
import types

import pytest
from shown_progress import assert_shown, every_line

from tools import plan_table

ANSWER = {
    "fits": True,
    "chips": 256,
    "devices": 256,
    "memory": {"peak": 7.5 * 2**30, "capacity": 16.0 * 2**30},
    "flops": {"per_device": 2.73e12, "ratio": 1.023},
    "roofline": {
        "compute": 0.0139,
        "memory": 0.0102,
        "interconnect": 0.008,
        "network": 0.0,
        "bottleneck": "compute",
        "examples_per_second": 202_000.0,
        "mfu": 0.977,
    },
}


@pytest.fixture
def files(monkeypatch, tmp_path):
    page = tmp_path / "pods.md"
    page.write_text(f"# Pods\n{plan_table.BEGIN}\nold\n{plan_table.END}\nmore\n")
    monkeypatch.setattr(plan_table, "PAGE", page)
    monkeypatch.setattr(plan_table, "RESULTS", tmp_path / "plans.jsonl")
    return page


@pytest.fixture
def commands(monkeypatch):
    """Records the commands; a step fits only if activations are rematerialised."""
    ran = []

    def run(command, **_):
        ran.append(command)
        fits = any("remat" in argument for argument in command)
        answer = ANSWER | {"fits": fits}
        return types.SimpleNamespace(
            returncode=0 if fits else 3, stdout=json.dumps(answer), stderr=""
        )

    monkeypatch.setattr(subprocess, "run", run)
    return ran


def test_finished_rows_are_kept_and_not_planned_again(files, commands, capsys):
    with every_line() as shown:
        plan_table.main(["--sizes=base", "--systems=v5e-256"])
    assert_shown(shown, "planning rows", "1 rows")
    assert len(commands) == 2 and commands[1][-2] == "--gin.model_config.remat='full'"
    page = files.read_text()
    assert page.startswith("# Pods\n") and page.endswith("\nmore\n") and "old" not in page
    line = [text for text in page.splitlines() if text.startswith("| base")]
    assert line == [capsys.readouterr().out.strip()]
    assert (
        "| 7.5 of 16 | 2.73 (1.023) | 13.9 | 10.2 | 8.0 | 0.0 | compute | 202,000 | 98% |"
        in (line[0])
    )
    plan_table.main(["--sizes=base", "--systems=v5e-256,v6e-256"])
    assert len(commands) == 4 and "--topology=v6e:16x16" in commands[2]
    assert files.read_text().count("| base |") == 2


def test_a_row_with_other_options_is_planned_anew(files, commands):
    plan_table.main(["--sizes=base", "--systems=v5e-256,v6e-256"])
    old = [json.loads(line) for line in plan_table.RESULTS.read_text().splitlines()]
    old[0]["arguments"].append("--gin.model_config.attention_implementation='bias'")
    plan_table.RESULTS.write_text("".join(json.dumps(result) + "\n" for result in old))
    commands.clear()
    plan_table.main(["--sizes=base", "--systems=v6e-256"])
    assert not commands
    plan_table.main(["--sizes=base", "--systems=v5e-256,v6e-256"])
    assert len(commands) == 2 and "--topology=v5e:16x16" in commands[0]
    new = [json.loads(line) for line in plan_table.RESULTS.read_text().splitlines()]
    assert [plan_table.place_of(result)[1] for result in new] == ["v6e-256", "v5e-256"]
    assert all(map(plan_table.is_current, new))


def test_a_failed_command_is_reported_and_nothing_is_kept(files, monkeypatch):
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda *_, **__: types.SimpleNamespace(returncode=2, stdout="", stderr="error: no libtpu"),
    )
    with pytest.raises(RuntimeError, match="no libtpu"):
        plan_table.main(["--sizes=tiny", "--systems=v4-128"])
    assert not plan_table.RESULTS.exists()


def test_the_page_has_a_place_for_the_table():
    page = pathlib.Path(plan_table.PAGE).read_text()
    assert plan_table.with_table(page, "x").count("\nx\n") == 1
    with pytest.raises(ValueError, match="no place for the table"):
        plan_table.with_table("nothing", "x")


def test_a_plan_that_does_not_fit_has_a_row_too():
    result = {
        "size": "huge",
        "system": "v5e-256",
        "arguments": plan_table.arguments("huge", "v5e-256", "full"),
        "plan": ANSWER | {"fits": False, "memory": {"peak": None, "capacity": 2.0**34}},
    }
    assert "| ? of 16 | does not fit |" in plan_table.row(result)
    assert "partitioning/data_fsdp.gin --topology=v5e:16x16" in plan_table.row(result)


def test_a_plan_of_an_earlier_version_has_the_same_row():
    former = dict(ANSWER["roofline"])
    former["binds"] = former.pop("bottleneck")
    rows = [
        plan_table.row(
            {
                "size": "base",
                "system": "v5e-256",
                "arguments": plan_table.arguments("base", "v5e-256", "full"),
                "plan": ANSWER | {"roofline": roofline},
            }
        )
        for roofline in (former, ANSWER["roofline"])
    ]
    assert rows[0] == rows[1] and "| compute |" in rows[0]
