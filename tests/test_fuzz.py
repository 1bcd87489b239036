"""The fuzzer (`bash tests/run.sh fuzz`): a few cases of each target, and that it notices faults."""

import random

import pytest
from fuzz import __main__ as command
from fuzz import mutations, runner
from fuzz.targets import TARGETS
from fuzz.targets.planted import FAULTS

CASES = 24


@pytest.fixture(scope="module")
def worker():
    process = runner.WorkerProcess()
    yield process
    process.close()


def case_of(fault):
    """Returns a planted case that commits a fault."""
    wanted = list(FAULTS).index(fault)
    return next(
        case
        for number in range(1_000)
        if (case := runner.Case(1, "planted", number))
        and random.Random(f"1/planted/{number}").randrange(len(FAULTS)) == wanted
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed_and_the_next_case_runs(fault, worker):
    result = worker.run(case_of(fault), seconds=1.0 if fault == "it hangs" else 30.0)
    assert result["outcome"] == "failed"
    assert fault in result["failure"]


def test_no_case_of_a_fixed_seed_fails(tmp_path, capsys):
    arguments = [f"--seed={command.FIXED_SEED}", f"--cases={CASES}", "--workers=1", "--seconds=20"]
    code = command.main([*arguments, f"--report={tmp_path}"])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert " 0 failures in 0 groups" in printed
    assert all(name in printed for name in TARGETS)


def test_a_failing_case_is_kept_with_the_command_that_runs_it_again(tmp_path):
    report = runner.Report(tmp_path)
    case, files = runner.Case(3, "tsv", 8), tmp_path / "case"
    files.mkdir()
    (files / "lines.tsv").write_bytes(b"a\tb\n")
    result = {"outcome": "failed", "failure": "it hangs", "kind": "hang", "place": "?"}
    report.add(case, result, files)
    report.add(runner.Case(3, "tsv", 9), result, files)
    assert "--seed=3 --target=tsv --case=8" in (tmp_path / "tsv-3-8" / "report.txt").read_text()
    assert (tmp_path / "tsv-3-8" / "files" / "lines.tsv").read_bytes() == b"a\tb\n"
    assert "FAILED 2 x tsv" in "\n".join(report.lines())


@pytest.mark.parametrize("mutate", [mutations.mutate_bytes, mutations.mutate_text])
def test_mutations_follow_from_the_seed(mutate):
    data = b"a red apple\tand a green apple\n" * 4
    changed = [mutate(random.Random(seed), data) for seed in range(50)]
    assert changed == [mutate(random.Random(seed), data) for seed in range(50)]
    assert len(set(changed)) > 40


def test_a_wrong_target_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["--target=nothing"])
    assert "choose from" in capsys.readouterr().err
