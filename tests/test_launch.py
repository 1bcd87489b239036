"""The supervisor, and the commands that the launchers would run."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest

from launch import supervisor
from ofa_jax.cli import common, compilation_cache
from ofa_jax.cli.errors import ConfigError
from ofa_jax.utils import distributed

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLOUD = {
    "PROJECT": "p",
    "ZONE": "z",
    "NAME": "n",
    "ACCELERATOR_TYPE": "v5litepod-256",
    "RUNTIME_VERSION": "r",
    "IMAGE": "registry/p/ofa",
    "CLUSTER": "c",
    "WORKLOAD": "w",
    "TPU_TYPE": "v5litepod-256",
}


def supervise(*command, **options):
    given = [f"--{name}={value}" for name, value in {"backoff_seconds": 0, **options}.items()]
    return subprocess.run(
        [sys.executable, "-m", "launch.supervisor", *given, "--", sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def failing(tmp_path, times, code):
    """Returns a program that fails a number of times before it succeeds."""
    return [
        "-c",
        (
            f"import pathlib, sys; p = pathlib.Path({str(tmp_path / 'lives')!r}); "
            "n = int(p.read_text()) if p.exists() else 0; p.write_text(str(n + 1)); "
            f"sys.exit({code} if n < {times} else 0)"
        ),
    ]


def test_a_crash_is_followed_by_a_restart(tmp_path):
    done = supervise(*failing(tmp_path, 2, 7))
    assert done.returncode == 0 and (tmp_path / "lives").read_text() == "3"
    assert "The run failed with exit code 7: restart 2 of 10" in done.stderr


def test_the_supervisor_gives_up_after_a_number_of_crashes_with_the_last_exit_code(tmp_path):
    done = supervise(*failing(tmp_path, 9, 7), restarts=1)
    assert done.returncode == 7 and (tmp_path / "lives").read_text() == "2"
    assert "2 times in a row: giving up" in done.stderr


def test_a_healthy_period_resets_the_count_of_restarts(tmp_path):
    done = supervise(*failing(tmp_path, 4, 7), restarts=1, healthy_seconds=0)
    assert done.returncode == 0 and (tmp_path / "lives").read_text() == "5"


def test_a_user_error_is_not_retried(tmp_path):
    done = supervise(*failing(tmp_path, 9, 2))
    assert done.returncode == 2 and (tmp_path / "lives").read_text() == "1"


def test_when_one_process_dies_all_are_ended_and_restarted(tmp_path):
    program = (
        "import os, pathlib, sys, time; k = sys.argv[-1][-1]; "
        f"p = pathlib.Path({str(tmp_path)!r}) / ('lives' + k); "
        "n = int(p.read_text()) if p.exists() else 0; p.write_text(str(n + 1)); "
        "(time.sleep(60) if k == '0' else os.kill(os.getpid(), 9)) if n == 0 else None"
    )
    begun = time.monotonic()
    done = supervise("-c", program, processes=2)
    assert done.returncode == 0 and time.monotonic() - begun < 30
    assert "The run was ended by SIGKILL: restart 1" in done.stderr
    assert [(tmp_path / f"lives{k}").read_text() for k in "01"] == ["2", "2"]


def test_a_program_that_ignores_sigterm_is_killed(tmp_path):
    program = (
        "import pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch(); time.sleep(60)"
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "launch.supervisor",
            "--grace_seconds=0.5",
            "--",
            sys.executable,
            "-c",
            program,
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGKILL and "killing it" in output


@pytest.mark.parametrize(("code", "expected"), [(0, 75), (1, 1)])
def test_a_scheduler_learns_that_a_run_was_stopped(code, expected, tmp_path):
    program = (
        "import pathlib, signal, sys, time; "
        f"signal.signal(signal.SIGTERM, lambda *_: sys.exit({code})); "
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch(); time.sleep(60)"
    )
    options = ["--stopped_exit_code=75", "--", sys.executable, "-c", program]
    process = subprocess.Popen([sys.executable, "-m", "launch.supervisor", *options], cwd=ROOT)
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == expected


def test_the_supervisors_dry_run_prints_each_processs_command(capsys):
    assert supervisor.main(["--processes=2", "--dry_run", "--", "train", "--gin.A='b c'"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [["train", "--gin.A='b c'"]] * 2
    for number, line in enumerate(lines):
        assert line[2:] == [
            "--coordinator_address=127.0.0.1:PORT",
            "--num_processes=2",
            f"--process_id={number}",
        ]


# --------------------------------------------------------------------------------------- launchers


def dry(script, *arguments, without=(), **more):
    environment = {k: v for k, v in (os.environ | CLOUD | more).items() if k not in without}
    return subprocess.run(
        ["bash", f"launch/{script}", "--dry_run", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )


TRAIN = "python -m ofa_jax.train --distributed --gin_file=x --gin.MODEL_DIR=\\'gs://b/r\\'"
FLAGS = ["--gin_file=x", "--gin.MODEL_DIR='gs://b/r'"]
DRY_RUNS = {
    "local_processes.sh": [
        (
            ["2", "--gin_file=x"],
            {},
            ["python -m launch.supervisor --processes=2 -- python -m ofa_jax.train --gin_file=x"],
        ),
        (["2"], {}, ["tools.build_scenes", "gin_configs/runs/pretrain_scenes.gin"]),
    ],
    "tpu_pod_gcloud.sh": [
        (["create"], {}, ["--node-id=n --accelerator-type=v5litepod-256 --runtime-version=r"]),
        (
            ["create"],
            {"SLICES": "2", "CREATE_FLAGS": "--spot"},
            ["--node-count=2 --node-prefix=n", "--spot"],
        ),
        (
            ["run", *FLAGS],
            {"SLICES": "2"},
            [
                "--worker=all --node=all",
                "python -m launch.supervisor -- " + TRAIN,
                "--gin.Partitioner.slices=2",
            ],
        ),
        (["stop"], {}, ["docker stop --time=330"]),
        (["delete"], {}, ["queued-resources delete n"]),
    ],
    "tpu_xpk.sh": [
        (
            ["run", *FLAGS],
            {"SLICES": "4"},
            [
                "xpk workload create --cluster=c",
                "--num-slices=4",
                "--max-restarts=100",
                "--restart-on-exit-codes=75",
                "python -m launch.supervisor --stopped_exit_code=75 -- " + TRAIN,
                "--gin.Partitioner.slices=4",
            ],
        ),
        (["delete"], {}, ["xpk workload delete"]),
    ],
    "gpu_slurm.sh": [
        (
            FLAGS,
            {},
            [
                "python -m launch.supervisor --stopped_exit_code=75 -- "
                "srun --kill-on-bad-exit=1 " + TRAIN
            ],
        )
    ],
    "build_image.sh": [
        (["tpu"], {}, ["--build-arg=ACCELERATOR=tpu --tag=registry/p/ofa", "docker push"])
    ],
}


@pytest.mark.parametrize("script", DRY_RUNS)
def test_a_dry_run_prints_the_commands(script):
    for arguments, settings, expected in DRY_RUNS[script]:
        done = dry(script, *arguments, **settings)
        assert done.returncode == 0, done.stderr
        unquoted = done.stdout + " ".join(
            word for line in done.stdout.splitlines() for word in shlex.split(line)
        )
        for part in expected:
            assert part in unquoted, (part, unquoted)


@pytest.mark.parametrize(
    ("script", "arguments", "without", "sentence"),
    [
        ("tpu_pod_gcloud.sh", ["create"], ["ZONE"], "ZONE is not set"),
        ("tpu_pod_gcloud.sh", ["fly"], [], "the action is 'fly'"),
        ("tpu_xpk.sh", ["run"], ["TPU_TYPE"], "TPU_TYPE is not set"),
        ("build_image.sh", ["abacus"], [], "give tpu, cuda or cpu"),
        ("local_processes.sh", ["--gin_file=x"], [], "the number of processes"),
    ],
)
def test_a_missing_requirement_is_reported(script, arguments, without, sentence):
    done = dry(script, *arguments, without=without)
    assert done.returncode == 2 and sentence in done.stderr and not done.stdout


SLURM_PROGRAM = """#!/usr/bin/env bash
echo "$0 $*" >> "$CALLS"
if [[ $(basename "$0") == python ]]; then
  trap 'exit "$STOPPED"' TERM
  touch "$CALLS.ready"
  if [[ $ENDS ]]; then exit "$ENDS"; fi
  while true; do sleep 0.05; done
fi
"""


@pytest.mark.parametrize(
    ("sent", "stopped", "ends", "expected", "requeued"),
    [
        (signal.SIGUSR1, 75, "", 75, True),  # the time limit is near
        (signal.SIGUSR1, 1, "", 1, False),  # it could not save
        (signal.SIGTERM, 75, "", 75, False),  # of the user's, or SLURM requeues it itself
        (None, 75, "0", 0, False),
        (None, 75, "2", 2, False),
    ],
)
def test_slurm_continues_a_run_at_its_time_limit(tmp_path, sent, stopped, ends, expected, requeued):
    (tmp_path / "launch").mkdir()
    for name in ("gpu_slurm.sh", "dry_run.sh"):
        shutil.copy(ROOT / "launch" / name, tmp_path / "launch")
    (tmp_path / "launch" / "environment.sh").write_text("")
    for name in ("python", "scontrol"):
        (tmp_path / name).write_text(SLURM_PROGRAM)
        (tmp_path / name).chmod(0o755)
    calls = tmp_path / "calls"
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "17",
        "CALLS": str(calls),
        "STOPPED": str(stopped),
        "ENDS": ends,
    }
    process = subprocess.Popen(["bash", str(tmp_path / "launch/gpu_slurm.sh")], env=environment)
    while not (tmp_path / "calls.ready").exists():
        time.sleep(0.05)
    if sent:
        process.send_signal(sent)
    assert process.wait(timeout=30) == expected
    assert ("scontrol requeue 17" in calls.read_text()) == requeued


SUPERVISED = {
    "tpu_xpk.sh": (["run", *FLAGS], "--termination-grace-period-seconds="),
    "tpu_pod_gcloud.sh": (["run", *FLAGS], "--stop-timeout="),
}


@pytest.mark.parametrize("script", SUPERVISED)
def test_a_scheduler_waits_until_the_supervisor_has_ended_the_run(script):
    arguments, option = SUPERVISED[script]
    printed = dry(script, *arguments).stdout
    (seconds,) = map(float, re.findall(rf"{option}(\d+)", printed))
    assert seconds > supervisor.arguments(["x"]).grace_seconds


def test_slurm_waits_until_the_supervisor_has_ended_the_run():
    script = (ROOT / "launch" / "gpu_slurm.sh").read_text()
    (seconds,) = map(float, re.findall(r"^#SBATCH --signal=B:USR1@(\d+)$", script, re.M))
    assert seconds > supervisor.arguments(["x"]).grace_seconds


# ------------------------------------------------------------------------------------- the cluster


def cluster(*arguments, **environment):
    parser = common.ArgumentParser()
    distributed.add_arguments(parser)
    return distributed.from_arguments(parser.parse_args(arguments), environment)


def test_a_program_is_a_single_process_by_default():
    assert not cluster().several
    distributed.initialize(cluster())  # does nothing


def test_flags_or_the_environment_set_the_processes():
    expected = distributed.Cluster(False, "10.0.0.1:8476", 4, 3)
    assert expected.several and expected.heartbeat_timeout_seconds == 30
    assert (
        cluster("--coordinator_address=10.0.0.1:8476", "--num_processes=4", "--process_id=3")
        == expected
    )
    assert (
        cluster(JAX_COORDINATOR_ADDRESS="10.0.0.1:8476", JAX_NUM_PROCESSES="4", JAX_PROCESS_ID="3")
        == expected
    )
    assert cluster("--distributed", "--heartbeat_timeout_seconds=9") == distributed.Cluster(
        True, heartbeat_timeout_seconds=9
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--process_id=1"], "--coordinator_address and --num_processes are missing"),
        (
            ["--coordinator_address=a:1", "--num_processes=2", "--process_id=2"],
            "give a number from 0 to 1.",
        ),
        (["--coordinator_address=a", "--num_processes=2", "--process_id=1"], "give HOST:PORT"),
    ],
)
def test_an_impossible_cluster_is_reported_in_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        cluster(*arguments)


def test_an_invalid_number_is_reported_in_one_sentence():
    with pytest.raises(ConfigError, match="invalid int value: 'two'"):
        cluster("--num_processes=two")


def test_compiled_programs_are_cached_unless_the_environment_disables_it(monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    try:
        for elsewhere in ("", "gs://bucket/programs"):
            monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", elsewhere)
            compilation_cache.cache_compiled_programs()
            assert jax.config.jax_compilation_cache_dir == before
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        monkeypatch.setitem(
            compilation_cache._COMPILATION_CACHE, "JAX_COMPILATION_CACHE_DIR", "/of/the/user"
        )
        compilation_cache.cache_compiled_programs()
        assert jax.config.jax_compilation_cache_dir == "/of/the/user"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("full", [False, True])
def test_a_local_run_goes_from_the_data_to_a_summary(tmp_path, full):
    (tmp_path / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "local.sh", tmp_path / "launch")
    (tmp_path / "launch" / "environment.sh").write_text('python() { echo "$@"; }\n')
    arguments = ["full"] * full + ["--gin.MODEL_DIR='runs/mine'"]
    done = subprocess.run(
        ["bash", "launch/local.sh", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OFA_DATA_DIR": "mydata"},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    stages = ["scenes_first_run"]
    if full:
        stages += ["scenes_full_objectives", "scenes_full_matching", "scenes_full"]
    expected = ["tools.build_scenes", "tools.pretrain_encoder", *["ofa_jax.train"] * len(stages)]
    expected += ["tools.report_scenes"] * full + ["tools.summarise_scenes"]
    assert [line.split()[1] for line in lines] == expected
    assert lines[1].endswith("--output=mydata/scenes/encoder")
    initial = "mydata/scenes/encoder"
    for stage, line in zip(stages, lines[2:], strict=False):
        assert (ROOT / "gin_configs" / "runs" / f"{stage}.gin").is_file()
        assert f"--gin_file=gin_configs/runs/{stage}.gin " in line
        assert f"--gin.INITIAL_CHECKPOINT_PATH='{initial}' " in line
        initial = f"runs/mine_{stage.removeprefix('scenes_').removeprefix('full_')}"
        model_dir = "runs/mine" if stage == stages[-1] else initial
        assert line.endswith(f"--gin.MODEL_DIR='{model_dir}'")
    if full:
        directories = "runs/mine_first_run runs/mine_objectives runs/mine_matching"
        assert lines[-2].endswith(f"--stage_dirs {directories}")
    summary = lines[-1]
    assert f"--model_dir=runs/mine --kind={'full' if full else 'first'} " in summary
    command = " ".join(["bash launch/local.sh", *arguments])
    assert f"--train_command={command} --started=" in summary
