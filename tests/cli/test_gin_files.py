"""Gin files are found by short name, and old names in them are read as the new ones."""

import gin
import pytest

from ofa_jax.cli import gin_files, gin_lint
from ofa_jax.utils import modules, renamed

OLD_RUN = """# train.schedule stays in a comment
include 'base.gin'

train.schedule = @LoopConfig()
train.only_answers = True
note.text = 'train.schedule'
many/scenes_settings.picture_size = 64
ofa_jax.LoopConfig.stuck_seconds = \\
    60
OptimizerConfig:
  trained = ('adapters',)
  total_steps = @steps_of_epochs()
mine.LoopConfig.stuck_seconds = 1
Partitioner.logical_axis_rules = (('activation_pictures', 'data'), ('x', 'activation_pictures '))
"""
NEW_RUN = """# train.schedule stays in a comment
include 'base.gin'

train.loop = @LoopConfig()
train.restrict_to_candidates = True
note.text = 'train.schedule'
many/scenes_settings.image_size = 64
ofa_jax.LoopConfig.watchdog_timeout_secs = \\
    60
OptimizerConfig:
  trainable_groups = ('adapters',)
  total_steps = @epochs_to_steps()
mine.LoopConfig.stuck_seconds = 1
Partitioner.logical_axis_rules = (('activation_images', 'data'), ('x', 'activation_pictures '))
"""


def test_old_names_become_new_ones_and_nothing_else_changes():
    content = gin_files.translate(OLD_RUN, "run.gin")
    assert content.text == NEW_RUN
    found = {(one.old, one.new, one.where) for one in content.renamings}
    assert found == {
        ("train.schedule", "train.loop", "run.gin, line 4"),
        ("train.only_answers", "train.restrict_to_candidates", "run.gin, line 5"),
        ("scenes_settings.picture_size", "scenes_settings.image_size", "run.gin, line 7"),
        (
            "ofa_jax.LoopConfig.stuck_seconds",
            "ofa_jax.LoopConfig.watchdog_timeout_secs",
            "run.gin, line 8",
        ),
        ("OptimizerConfig.trained", "OptimizerConfig.trainable_groups", "run.gin, line 11"),
        ("steps_of_epochs", "epochs_to_steps", "run.gin, line 12"),
        ("'activation_pictures'", "'activation_images'", "run.gin, line 14"),
    }
    assert gin_files.translate(NEW_RUN, "run.gin").renamings == ()


@pytest.mark.parametrize("text", ["", "a = (1,\n", "x y z\n", "  a.b = 1\n c.d = 2\n", "a.b = $\n"])
def test_text_that_gin_cannot_read_stays_as_it_is(text):
    assert gin_files.translate(text, "run.gin").text == text


@pytest.fixture
def configurables():
    """Registers functions under names of ours, for one test."""

    def train(loop=None, restrict_to_candidates=False, steps=1):
        return loop, restrict_to_candidates, steps

    with gin.unlock_config():
        gin.clear_config()
    # Below a module of ours: the registry of gin is global.
    gin.external_configurable(train, name="train", module="renaming_test")
    yield gin.get_configurable("renaming_test.train")
    gin.config._REGISTRY.pop("renaming_test.train")  # or `train` would be ambiguous hereafter
    with gin.unlock_config():
        gin.clear_config()


def test_gin_reads_files_and_included_files_under_new_names(tmp_path, configurables, monkeypatch):
    monkeypatch.setitem(renamed.GIN_NAMES, "train.schedule", "train.loop")
    monkeypatch.setattr(renamed, "_OWN_MODULE", "renaming_test")
    (tmp_path / "base.gin").write_text(
        "STEPS = 2\nrenaming_test.train.schedule = 'of base'\nrenaming_test.train.steps = %STEPS\n"
    )
    run = tmp_path / "run.gin"
    run.write_text("STEPS = 1\ninclude 'base.gin'\nrenaming_test.train.only_answers = True\n")
    gin_files.parse(run, [str(tmp_path)])
    assert configurables() == ("of base", True, 2)
    gin.clear_config()
    run.write_text("renaming_test.train.schedule = 'mine'\n\ninclude 'base.gin'\nSTEPS = 3\n")
    gin_files.parse(run, [str(tmp_path)])
    assert configurables() == ("of base", False, 3)


def test_each_old_name_yields_one_sentence_with_the_new_one(tmp_path):
    def train(loop, steps=1):
        return loop, steps

    registry = {"train": train}
    (tmp_path / "base.gin").write_text("train.schedule = 1\n")
    run = tmp_path / "run.gin"
    run.write_text("include 'base.gin'\ntrain.steps = 3\ntrain.schedule = 2\n")
    sentences = []
    gin_lint.check(
        [run],
        ["train.schedule = 3"],
        [str(tmp_path)],
        registry.__getitem__,
        lambda: registry,
        warn=sentences.append,
    )
    base = tmp_path / "base.gin"
    assert sentences == [
        f"train.schedule is now called train.loop: rename it in {run}, line 3; {base}, line 1 "
        "and on the command line."
    ]


@pytest.mark.parametrize("name", ["models/base.gin", "gin_configs/models/base.gin"])
def test_the_projects_gin_files_are_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = gin_files.find_file(name, ["."])
    assert found == gin_files.gin_configs_folder() / "models" / "base.gin"
    (tmp_path / "models").mkdir()
    mine = tmp_path / "models" / "base.gin"
    mine.write_text("")
    assert gin_files.find_file("models/base.gin", ["."]) == mine
    assert gin_files.find_file(name, [str(tmp_path)]) == (mine if name[0] == "m" else found)


def test_a_renamed_gin_file_is_found_under_its_old_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(renamed, "GIN_FILES", {"models/basis.gin": "models/base.gin"})
    path = gin_files.find_file("gin_configs/models/basis.gin", ["."])
    assert path.name == "base.gin"
    (one,) = gin_files.file_renamings("gin_configs/models/basis.gin", path, "run.gin, line 1")
    assert (one.old, one.new) == ("gin_configs/models/basis.gin", "models/base.gin")
    assert gin_files.file_renamings("models/base.gin", path, "run.gin, line 1") == ()


def test_task_modules_are_found_below_the_package_and_under_old_names(monkeypatch, capsys):
    assert modules.find_module("tasks.pretraining") == "tasks.pretraining"
    assert modules.find_module("tasks.judged_objectives") == "tasks.pretraining_eval"
    # What a wheel has below ofa_jax; any module of the package will do.
    assert modules.find_module("utils.files") == "ofa_jax.utils.files"
    assert modules.find_module("no_such.module") == "no_such.module"
    modules.import_modules(["utils.files"])
    with pytest.raises(ValueError, match="'no_such_tasks', which cannot be imported"):
        modules.import_modules("no_such_tasks")
    assert not capsys.readouterr().err
    modules.import_modules("tasks.judged_objectives")
    assert capsys.readouterr().err == (
        "warning: tasks.judged_objectives is now called tasks.pretraining_eval: rename it in "
        "MIXTURE_OR_TASK_MODULE.\n"
    )


def test_a_rename_sentence_gives_each_place_once():
    sentence = renamed.rename_sentence("a", "b", ["x.gin, line 1", "x.gin, line 1"])
    assert sentence == "a is now called b: rename it in x.gin, line 1."
    sentence = renamed.rename_sentence("a", "b", [renamed.COMMAND_LINE])
    assert sentence == "a is now called b: rename it on the command line."
