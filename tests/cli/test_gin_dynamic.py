"""Gin files with dynamic registration are read, and reach only what is registered."""

import gin
import pytest

from ofa_jax.cli import gin_files, gin_lint, gin_registry
from ofa_jax.cli.errors import ConfigError
from ofa_jax.training.build import build_run

DYNAMIC = """# As t5x's files begin.
from __gin__ import dynamic_registration
import __main__ as train_script
from ofa_jax.data import features
from ofa_jax.training import optimizer as optimizers
import ofa_jax.training.loop_config
from ofa_jax import model  # a package
import mine.things as things

STEPS = 100
train_script.train.optimizer = @optimizers.OptimizerConfig()
train_script.train.streams = [@pairs/features.Stream(), @text/features.Stream()]
pairs/features.Stream.batch_size = 8
train_script.train:
  loop = @ofa_jax.training.loop_config.LoopConfig()
  model = @model_config()
ofa_jax.training.loop_config.LoopConfig.stuck_seconds = 60
model.config.OFAConfig.width = 8
things.Thing.size = %STEPS
text = 'features.Stream'
"""
PLAIN = """# As t5x's files begin.


from ofa_jax.data import features
from ofa_jax.training import optimizer as optimizers
import ofa_jax.training.loop_config
from ofa_jax import model  # a package
import mine.things as things

STEPS = 100
train.optimizer = @OptimizerConfig()
train.streams = [@pairs/Stream(), @text/Stream()]
pairs/Stream.batch_size = 8
train:
  loop = @LoopConfig()
  model = @model_config()
LoopConfig.watchdog_timeout_secs = 60
OFAConfig.width = 8
mine.things.Thing.size = %STEPS
text = 'features.Stream'
"""
RUN = """from __gin__ import dynamic_registration
import __main__ as train_script
from ofa_jax.data import features
from ofa_jax.training import optimizer
train_script.train.model_dir = 'runs/mine'
train_script.train.streams = [@features.Stream()]
train_script.train.optimizer = @optimizer.OptimizerConfig()
features.Stream:
  name = 'pairs'
  batch_size = 8
optimizer.OptimizerConfig.total_steps = 100
"""


@pytest.fixture
def check(tmp_path):
    """Checks a gin file as the commands do; then configures gin with it."""
    gin_registry.register({"train": build_run})

    def check(text, **options):
        path = tmp_path / "run.gin"
        path.write_text(text)
        gin_lint.check([path], (), (), gin.get_configurable, gin_registry.names, **options)
        gin_files.parse(path, (), allowed=options.get("allowed", ()))

    yield check
    gin.clear_config()


def test_names_lose_the_modules_in_front_of_them():
    assert gin_files.translate(DYNAMIC, "run.gin").text == PLAIN


def test_without_the_first_line_nothing_is_changed():
    text = DYNAMIC.replace("from __gin__ import dynamic_registration\n", "")
    text = text.replace("stuck_seconds", "watchdog_timeout_secs")
    assert gin_files.translate(text, "run.gin").text == text


def test_a_file_with_dynamic_registration_configures_the_commands(check):
    check(RUN)
    assert gin.query_parameter("Stream.batch_size") == 8
    assert gin.query_parameter("train.model_dir") == "runs/mine"
    assert gin.query_parameter("OptimizerConfig.total_steps") == 100


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("features.Strem.batch_size = 8", "Did you mean Stream?"),
        ("features.Stream.batch_sise = 8", "Did you mean batch_size?"),
        ("features.stack.rows = 1", "Nothing named stack can be configured"),
        ("x = @features.np.load()", "Nothing named load can be configured"),
        ("from t5x import partitioning", "t5x.partitioning"),
        ("import subprocess as features", "the module subprocess is not imported"),
        ("from __gin__ import another_feature", "would let the file call any function"),
    ],
)
def test_other_names_are_refused(check, monkeypatch, line, sentence):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    # `x` is used, so that the reference itself is what is wrong.
    use = "features.Stream.image_size = %x\n" if line.startswith("x = ") else ""
    with pytest.raises(ConfigError, match=".") as caught:
        check(f"{RUN}{use}{line}\n")
    assert sentence in str(caught.value)
