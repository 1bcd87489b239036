"""launch/environment.sh: what it installs, and when. Python and pip are stubs that log calls."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# `python3.11 -m venv FOLDER` copies this program there, as FOLDER/bin/python.
STUB = """#!/usr/bin/env bash
echo "$@" >> "$CALLS"
if [[ "$1 $2" == "-m venv" ]]; then
  mkdir -p "$3/bin"
  cp "$0" "$3/bin/python"
  touch "$3/bin/activate"
elif [[ "${PIP_FAILS:-}" ]]; then
  exit 1
fi
"""
PACKAGES = "pip install -r requirements.txt"
PROJECT = "pip install --no-deps --no-build-isolation --editable ."


@pytest.fixture
def launch(tmp_path):
    """Sources environment.sh in a copy of the project's files; returns what it called."""
    project = tmp_path / "project"
    (project / "launch").mkdir(parents=True)
    for name in ("launch/environment.sh", "requirements.txt", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, project / name)
    stub = tmp_path / "bin" / "python3.11"
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)

    def launch(fails=False):
        calls = tmp_path / "calls"
        calls.write_text("")
        environment = {k: v for k, v in os.environ.items() if k != "OFA_JAX_VENV"} | {
            "PATH": f"{stub.parent}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "PIP_FAILS": "1" if fails else "",
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "source launch/environment.sh"],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert (done.returncode == 0) != fails, done.stderr
        found = calls.read_text().splitlines()
        return [
            line.removeprefix("-m ").replace(" --quiet --disable-pip-version-check", "")
            for line in found
        ]

    launch.project = project
    return launch


def test_the_first_start_installs_the_packages_and_the_project(launch):
    assert launch() == ["venv .venv", PACKAGES, PROJECT]


def test_a_second_start_installs_nothing(launch):
    launch()
    assert launch() == []


def test_changed_project_metadata_installs_only_the_project_again(launch):
    launch()
    with (launch.project / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert launch() == [PROJECT]
    assert launch() == []


def test_changed_requirements_install_everything_again(launch):
    launch()
    with (launch.project / "requirements.txt").open("a") as file:
        file.write("# changed\n")
    assert launch() == ["venv .venv", PACKAGES, PROJECT]


def test_a_moved_checkout_is_installed_again(launch):
    launch()
    moved = launch.project.with_name("moved")
    launch.project.rename(moved)
    moved.with_name("project").symlink_to(moved)
    assert launch() == [PROJECT]


def test_a_failed_installation_is_repeated_at_the_next_start(launch):
    launch(fails=True)
    assert launch() == ["venv .venv", PACKAGES, PROJECT]
