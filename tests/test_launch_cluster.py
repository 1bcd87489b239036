"""The job files for Kubernetes and SkyPilot: their fields, and what their own tools say of them.

The checks of `FIELDS` were written from the published API of Kubernetes (batch/v1), the resource
definition of JobSet (v1alpha2) and the YAML specification of SkyPilot. If the packages
`kubernetes_validate` or `sky` are installed, the same files go through these tools' own schemas.
"""

import os
import pathlib
import re
import shlex
import subprocess

import pytest

from launch import manifest, supervisor

ROOT = pathlib.Path(__file__).resolve().parent.parent
yaml = pytest.importorskip("yaml", reason="needs PyYAML")

SETTINGS = {"NAME": "ofa", "IMAGE": "registry/p/ofa:1", "CLAIM": "shared"}
TPU = SETTINGS | {"TPU_ACCELERATOR": "tpu-v5-lite-podslice", "TPU_TOPOLOGY": "4x8"}
FLAGS = ["--gin_file=a.gin", "--gin.MODEL_DIR='/shared/r'", '--gin.A="$(HOME) ${NAME}: # \\ {x"']
STOPPED = 75

POD = {
    "containers": {
        "name": str, "image": str, "command": [str], "env": [dict], "ports": [dict],
        "resources": dict, "securityContext": dict, "volumeMounts": [dict],
    },
    "restartPolicy": str, "terminationGracePeriodSeconds": int, "tolerations": [dict],
    "volumes": [dict], "hostNetwork": bool, "dnsPolicy": str, "nodeSelector": dict,
}  # fmt: skip
JOB = {
    "backoffLimit": int, "completions": int, "parallelism": int, "completionMode": str,
    "podFailurePolicy": {"rules": {"action": str, "onExitCodes": dict, "onPodConditions": [dict]}},
    "template": {"spec": POD},
}  # fmt: skip
FIELDS = {
    "Job": {"spec": JOB},
    "JobSet": {
        "spec": {
            "failurePolicy": {
                "maxRestarts": int,
                "rules": {"name": str, "action": str, "onJobFailureReasons": [str]},
            },
            "replicatedJobs": {"name": str, "replicas": int, "template": {"spec": JOB}},
        }
    },
}
for one in FIELDS.values():
    one |= {"apiVersion": str, "kind": str}
    one["metadata"] = {"name": str, "namespace": str, "annotations": dict}
SKY = {
    "name": str, "workdir": str, "num_nodes": int, "setup": str, "run": str, "envs": dict,
    "resources": {
        "infra": str, "accelerators": str, "accelerator_args": {"runtime_version": str},
        "use_spot": bool,
        "job_recovery": {"max_restarts_on_errors": int, "recover_on_exit_codes": [int]},
    },
}  # fmt: skip


def check_fields(value, fields, place=""):
    """Checks that a value has known fields alone, of the right types."""
    if isinstance(fields, dict):
        for item in value if isinstance(value, list) else [value]:
            assert isinstance(item, dict), place
            for name, own in item.items():
                assert name in fields, f"{place}.{name} is unknown"
                check_fields(own, fields[name], f"{place}.{name}")
    elif isinstance(fields, list):
        assert isinstance(value, list) and value, place
        for item in value:
            check_fields(item, fields[0], place)
    else:
        assert type(value) is fields, f"{place} is {value!r}"


def made(kind, settings, *arguments):
    """Returns a manifest as an object."""
    return yaml.safe_load(manifest.manifest(kind, arguments or FLAGS, settings))


MANIFESTS = {
    "a GPU host": ("gpu", SETTINGS),
    "GPU hosts": ("gpu", SETTINGS | {"HOSTS": "3", "CHIPS": "4"}),
    "a TPU slice": ("tpu", TPU),
    "TPU slices": ("tpu", TPU | {"SLICES": "2", "NAMESPACE": "team", "CACHE_DIR": "gs://b/c"}),
}


def parts(found):
    """Returns the specifications of the job and of the pod of a manifest."""
    job = found["spec"]
    if found["kind"] == "JobSet":
        (replicated,) = job["replicatedJobs"]
        job = replicated["template"]["spec"]
    return job, job["template"]["spec"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_has_the_fields_of_its_kind(name):
    found = made(*MANIFESTS[name])
    check_fields(found, FIELDS[found["kind"]], found["kind"])
    job, pod = parts(found)
    (container,) = pod["containers"]
    # Kubernetes refuses a policy for failures of pods that restart themselves.
    assert pod["restartPolicy"] == "Never"
    mistake = job["podFailurePolicy"]["rules"][0]
    assert mistake["action"] == "FailJob" and mistake["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [supervisor._MISTAKE],
    }
    grace = supervisor.arguments(["x"]).grace_seconds
    assert pod["terminationGracePeriodSeconds"] > grace
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_pod_runs_the_supervisor_around_the_training(name):
    kind, settings = MANIFESTS[name]
    _, pod = parts(made(kind, settings))
    command = pod["containers"][0]["command"]
    options = supervisor.arguments(command[3:])
    assert command[:3] == ["python", "-m", "launch.supervisor"]
    assert options.stopped_exit_code == STOPPED
    assert options.command[:3] == ["python", "-m", "ofa_jax.train"]
    arguments = options.command[3:]
    # Kubernetes replaces $(NAME), and makes $$(NAME) of it.
    passed = [argument.replace("$$(", "$(") for argument in arguments]
    for flag in FLAGS:
        assert flag in passed
    others = [one for one, plain in zip(arguments, passed, strict=True) if plain not in FLAGS]
    assert (
        others
        == {
            "a GPU host": [],
            "GPU hosts": [
                "--coordinator_address=ofa-hosts-0-0.ofa:8476",
                "--num_processes=3",
                "--process_id=$(JOB_COMPLETION_INDEX)",
            ],
            "a TPU slice": ["--distributed"],
            "TPU slices": ["--distributed", "--gin.Partitioner.slices=2"],
        }[name]
    )


def test_the_settings_are_in_their_places():
    job, pod = parts(made(*MANIFESTS["GPU hosts"]))
    assert job["completions"] == job["parallelism"] == 3 and job["completionMode"] == "Indexed"
    assert job["backoffLimit"] == 0, "the set begins again, not a pod alone"
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 4}
    found = made(*MANIFESTS["TPU slices"])
    job, pod = parts(found)
    assert found["metadata"]["namespace"] == "team"
    assert found["spec"]["replicatedJobs"][0]["replicas"] == 2
    assert job["completions"] == 8, "32 chips, four on each host"
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["containers"][0]["env"] == [
        {"name": "JAX_COMPILATION_CACHE_DIR", "value": "gs://b/c"}
    ]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x8"


def test_no_setting_can_change_what_is_around_it():
    hostile = 'x", evil: [${NAME}]\n  hostPID: true # '
    settings = TPU | {"IMAGE": hostile, "CLAIM": hostile, "TPU_ACCELERATOR": hostile}
    for kind in ("gpu", "tpu"):
        found = made(kind, settings, hostile)
        check_fields(found, FIELDS[found["kind"]])
        _, pod = parts(found)
        assert pod["containers"][0]["image"] == hostile
        assert pod["containers"][0]["command"][-1] == hostile


@pytest.mark.parametrize(
    ("kind", "changed", "sentence"),
    [
        ("gpu", {"NAME": "My_Run"}, "NAME is 'My_Run'; give up to 40 small letters"),
        ("gpu", {"CLAIM": ""}, "CLAIM is not set; the header of launch/kubernetes.sh"),
        ("gpu", {"HOSTS": "two"}, "HOSTS is 'two'; give a number"),
        ("tpu", {"SLICES": "0"}, "SLICES is '0'; give a number"),
        ("tpu", {"TPU_TOPOLOGY": "16"}, "TPU_TOPOLOGY is '16'; give the slice's"),
        ("tpu", {"TPU_TOPOLOGY": "3x3"}, "9 chips, which is no multiple of the 4 of a host"),
    ],
)
def test_a_wrong_setting_is_one_sentence(kind, changed, sentence):
    with pytest.raises(manifest.SettingError, match=re.escape(sentence)) as raised:
        manifest.manifest(kind, FLAGS, TPU | changed)
    assert "\n" not in str(raised.value)


def kubernetes(*arguments, **settings):
    return subprocess.run(
        ["bash", "launch/kubernetes.sh", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **SETTINGS, **settings},
    )


def test_the_launchers_dry_run_prints_the_manifest_and_the_commands():
    done = kubernetes("--dry_run", "run", "gpu", *FLAGS, HOSTS="2")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout) == made("gpu", SETTINGS | {"HOSTS": "2"})
    done = kubernetes("--dry_run", "delete", NAMESPACE="team")
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert lines[0][:5] == ["kubectl", "--namespace=team", "delete", "job", "ofa"]
    assert lines[1][:5] == ["kubectl", "--namespace=team", "delete", "jobset", "ofa"]
    done = kubernetes("--dry_run", "logs")
    assert "--selector=jobset.sigs.k8s.io/jobset-name=ofa" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (["fly"], {}, "the action is 'fly'"),
        (["run", "abacus"], {}, "the accelerator is 'abacus'; give gpu or tpu"),
        (["run", "gpu"], {"CLAIM": ""}, "CLAIM is not set"),
        (["run", "gpu"], {"NAME": ""}, "NAME is not set"),
    ],
)
def test_a_missing_requirement_is_reported(arguments, settings, sentence):
    done = kubernetes("--dry_run", *arguments, **settings)
    assert done.returncode == 2 and sentence in done.stderr and not done.stdout


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_schema_of_kubernetes_accepts_the_job(name):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="not installed")
    job, _ = parts(made(*MANIFESTS[name]))
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": job}
    kubernetes_validate.validate(whole, "1.33", strict=True)


# ---------------------------------------------------------------------------------------- SkyPilot


def task(accelerator):
    return yaml.safe_load((ROOT / "launch" / f"sky_{accelerator}.yaml").read_text())


@pytest.mark.parametrize("accelerator", ["gpu", "tpu"])
def test_a_task_of_skypilot_has_its_fields(accelerator):
    found = task(accelerator)
    check_fields(found, SKY, "task")
    assert all(value is None or isinstance(value, str) for value in found["envs"].values())
    assert found["envs"]["MODEL_DIR"] is None, "SkyPilot asks for it"
    assert found["resources"]["job_recovery"]["recover_on_exit_codes"] == [STOPPED]
    assert (ROOT / found["envs"]["GIN_FILE"]).is_file()
    extra = {"gpu": "cuda"}.get(accelerator, accelerator)
    assert f"'.[{extra}]'" in found["setup"]


SCRIPT_TEST = {
    "gpu": (
        {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "a\nb"},
        ["--coordinator_address=a:8476", "--num_processes=2", "--process_id=1"],
    ),
    "one gpu host": (
        {"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "a"},
        [],
    ),
    "tpu": ({}, ["--distributed"]),
}


@pytest.mark.parametrize("case", SCRIPT_TEST)
def test_the_script_of_skypilot_starts_the_training(case, tmp_path):
    found = task("tpu" if case == "tpu" else "gpu")
    environment, expected = SCRIPT_TEST[case]
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text(f"PATH={tmp_path}:$PATH\n")
    (tmp_path / "python").write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@" "$JAX_COMPILATION_CACHE_DIR"\n'
    )
    (tmp_path / "python").chmod(0o755)
    given = {
        "CACHE_DIR": "gs://b/c",
        "GIN_FILE": "my run.gin",
        "MODEL_DIR": "gs://b/r",
        "FLAGS": "--gin.A=1 --gin.B='x'",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", found["run"]],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **environment, **given},
    )
    assert done.returncode == 0, done.stderr
    *arguments, cache = done.stdout.splitlines()
    assert cache == "gs://b/c"
    assert arguments[:2] == ["-m", "launch.supervisor"]
    options = supervisor.arguments(arguments[2:])
    assert options.stopped_exit_code == STOPPED
    assert options.command == [
        *["python", "-m", "ofa_jax.train", *expected],
        *["--gin_file=my run.gin", "--gin.MODEL_DIR='gs://b/r'", "--gin.A=1", "--gin.B='x'"],
    ]


@pytest.mark.parametrize("accelerator", ["gpu", "tpu"])
def test_skypilot_reads_the_task(accelerator):
    sky = pytest.importorskip("sky", reason="SkyPilot is not installed")
    overrides = [("MODEL_DIR", "gs://b/r")]
    found = sky.Task.from_yaml_config(task(accelerator), env_overrides=overrides)
    assert found.envs["MODEL_DIR"] == "gs://b/r"
