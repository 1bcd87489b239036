"""Each mistake in gin files or on the command line is one sentence with the nearest right name."""

import pytest

from ofa_jax.cli import gin_files, gin_lint
from ofa_jax.cli.errors import ConfigError


def optimizer(learning_rate=1e-4, weight_decay=0.01):
    return learning_rate, weight_decay


def train(model_dir, total_steps, optimizer=None):
    return model_dir, total_steps, optimizer


REGISTRY = {"optimizer": optimizer, "train": train}
RUN = """
MODEL_DIR = %gin.REQUIRED
TRAIN_STEPS = 10
train.model_dir = %MODEL_DIR
train.total_steps = %TRAIN_STEPS
train.optimizer = @optimizer()
optimizer.learning_rate = 1e-3
"""


def lookup(name):
    if name not in REGISTRY:
        raise ValueError(name)
    return REGISTRY[name]


@pytest.fixture
def check(tmp_path):
    def run(text, *bindings):
        path = tmp_path / "run.gin"
        path.write_text(text)
        gin_lint.check([path], bindings, [str(tmp_path)], lookup, lambda: REGISTRY)

    return run


def test_a_complete_configuration_passes(check):
    check(RUN, "MODEL_DIR = 'runs/mine'")


@pytest.mark.parametrize(
    ("bindings", "sentence"),
    [
        ([], "MODEL_DIR is required (.*run.gin, line 2): set it with --gin.MODEL_DIR=VALUE"),
        (
            ["MODEL_DRI = 'x'"],
            "MODEL_DRI is set (the command line) but nothing uses it. Did you mean MODEL_DIR?",
        ),
        (["MODEL_DIR = 'x'", "TRAIN_STPES = 3"], "Did you mean TRAIN_STEPS?"),
        (
            ["optimiser.learning_rate = 1"],
            "Nothing named optimiser can be configured (the command line). Did you mean optimizer?",
        ),
        (
            ["optimizer.learning_rte = 1"],
            "optimizer has no parameter learning_rte "
            "(the command line). Did you mean learning_rate?",
        ),
        (["train.optimizer = @optimzer()"], "Did you mean optimizer?"),
        (
            ["train.model_dir = %MODEL_DRI"],
            "%MODEL_DRI is used (the command line) but never set. Did you mean MODEL_DIR?",
        ),
        (["MODEL_DIR = runs/mine"], "the command line: cannot read `MODEL_DIR = runs/mine`"),
    ],
)
def test_each_invalid_option_is_named(check, bindings, sentence):
    with pytest.raises(ConfigError) as raised:
        check(RUN, *bindings)
    message = str(raised.value)
    for part in sentence.split(".*"):
        assert part in message
    assert "\n" not in message


def test_a_macro_nobody_uses_is_fine_in_a_file_unless_it_resembles_one(check):
    check(RUN + "MY_NOTE = 1\n", "MODEL_DIR = 'x'")
    with pytest.raises(ConfigError, match="Did you mean TRAIN_STEPS"):
        check(RUN + "TRAIN_STEP = 1\n", "MODEL_DIR = 'x'")


def test_includes_are_followed_and_missing_files_named(tmp_path):
    (tmp_path / "base.gin").write_text("optimizer.learning_rte = 1\n")
    (tmp_path / "run.gin").write_text("include 'base.gin'\n")
    with pytest.raises(ConfigError, match=r"base\.gin, line 1"):
        gin_lint.check([tmp_path / "run.gin"], [], [str(tmp_path)], lookup, lambda: REGISTRY)
    with pytest.raises(ConfigError, match=r"bsae\.gin .*Did you mean base\.gin"):
        gin_files.find_file("bsae.gin", [str(tmp_path)])


def test_a_failed_import_is_reported_with_its_place(check):
    with pytest.raises(ConfigError, match=r"line 1: cannot import no_such_tasks"):
        check("import no_such_tasks\n")
