"""The real entry point as several processes over loopback, with the code that a pod runs."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from test_train import RUN, SMALL

from ofa_jax.checkpoints import storage

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = 3
# Each of three processes compiles every stream, so there are only two. They have images, batch
# statistics and two groups of losses; test_partitioning.py splits rows of codes over devices.
STREAMS = "--gin.train.streams=[@pairs/Stream(), @text/Stream()]"


def train(processes, data_dir, model_dir, *flags, restarts=0):
    """Trains on two devices in all, shared by the processes; returns the finished process."""
    flags_of_tests = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {
        "OFA_DATA_DIR": str(data_dir),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": (
            f"{flags_of_tests} --xla_force_host_platform_device_count={2 // processes}"
        ).strip(),
    }
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "launch.supervisor",
            f"--processes={processes}",
            f"--restarts={restarts}",
            "--",
            sys.executable,
            "-m",
            "ofa_jax.train",
            RUN,
            *SMALL,
            f"--gin.TRAIN_STEPS={STEPS}",
            "--gin.Partitioner.data=1",
            "--gin.Partitioner.fsdp=2",
            "--gin.train.validation_split=None",
            STREAMS,
            f"--gin.MODEL_DIR='{model_dir}'",
            *flags,
        ],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )


def losses(model_dir):
    """Returns {step: training losses}, as TensorBoard has them."""
    events = EventAccumulator(str(model_dir)).Reload()
    losses_by_step = {}
    for tag in events.Tags()["tensors"]:
        if tag.startswith("train/loss"):
            for event in events.Tensors(tag):
                losses_by_step.setdefault(event.step, {})[tag] = float(
                    make_ndarray(event.tensor_proto)
                )
    return losses_by_step


@pytest.fixture(scope="module")
def runs(small_scenes, tmp_path_factory):
    """Returns the directories of the same run on one process and on two."""
    directories = {}
    for processes in (1, 2):
        directories[processes] = tmp_path_factory.mktemp(f"on_{processes}")
        done = train(processes, small_scenes, directories[processes])
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("Starting a new run") == 1, "only the first host speaks"
        assert "on 2 cpu device(s), mesh data 1 x fsdp 2 x tensor 1" in done.stdout
    return directories


def test_two_processes_have_the_losses_of_one(runs):
    """float32, the same mesh: 1e-5 relative."""
    one, two = losses(runs[1]), losses(runs[2])
    assert set(one) == set(range(1, STEPS + 1)) and len(set().union(*one.values())) == 7
    for step, expected in one.items():
        assert two[step].keys() == expected.keys()
        for name, loss in expected.items():
            assert two[step][name] == pytest.approx(loss, rel=1e-5), (step, name)


def test_two_processes_end_with_the_parameters_of_one(runs):
    """float32: 1e-5 of the largest entry of each array."""
    one, two = (storage.load_numpy_variables(str(runs[k])) for k in (1, 2))
    flat = lambda tree: dict(_flatten(tree))  # noqa: E731
    one, two = flat(one), flat(two)
    assert one.keys() == two.keys() and len(one) > 50
    for name, array in one.items():
        np.testing.assert_allclose(
            two[name], array, rtol=0, atol=1e-5 * np.abs(array).max() + 1e-12, err_msg=name
        )


def _flatten(tree, path=""):
    for name, node in tree.items():
        if isinstance(node, dict):
            yield from _flatten(node, f"{path}/{name}")
        else:
            yield f"{path}/{name}", np.asarray(node)


def test_a_user_error_is_not_retried_and_every_host_reports_it(small_scenes, tmp_path):
    done = train(
        2, small_scenes, tmp_path, "--gin.pairs/Stream.batch_size=3", "--gin.SEED=1", restarts=1
    )
    assert done.returncode == 2
    assert "batch_size 3 does not divide over the 2 data shards" in done.stderr
    # In the supervisor's own words: JAX's about a lost peer may have "restarted".
    assert "restart 1 of 1" not in done.stderr and "giving up" not in done.stderr
