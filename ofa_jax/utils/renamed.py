"""Old names -> new names: what earlier versions wrote is still read.

Run directories, checkpoints, data sets and users' gin files keep the names of the version that
wrote them. Readers translate them with the tables below; a name that a user wrote (in a gin file or
on the command line) also yields one sentence that gives the new one. To rename something that is
stored, add a line here.
"""

import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import ParamSpec, TypeVar

__all__ = [
    "KEYWORDS",
    "COMMAND_LINE",
    "GIN_FILES",
    "GIN_NAMES",
    "GIN_STRINGS",
    "MODULES",
    "PLANS",
    "RESULTS",
    "SCENES",
    "SWAPPED_IMAGE_SUFFIX",
    "TOOL_FLAGS",
    "current_gin_name",
    "current_module",
    "former_names",
    "accept_former_keywords",
    "rename_sentence",
    "warn",
    "with_new_names",
]

_Value = TypeVar("_Value")
_Parameters = ParamSpec("_Parameters")

GIN_NAMES: Mapping[str, str] = {
    "infer.answers": "infer.candidates",
    "infer.answers_file": "infer.candidates_file",
    "LoopConfig.stuck_seconds": "LoopConfig.watchdog_timeout_secs",
    "OptimizerConfig.trained": "OptimizerConfig.trainable_groups",
    "Partitioner.gather_once": "Partitioner.gather_params_once",
    "scenes_settings.picture_size": "scenes_settings.image_size",
    "steps_of_epochs": "epochs_to_steps",
    "train.only_answers": "train.restrict_to_candidates",
    "train.schedule": "train.loop",
}
"""Configurables, and parameters as `configurable.parameter`, under the configurable's new name."""

GIN_STRINGS: Mapping[str, Mapping[str, str]] = {
    "Partitioner.logical_axis_rules": {"activation_pictures": "activation_images"},
}
"""Parameter, under its new name -> strings inside its value. `config.gin` writes them."""

GIN_FILES: Mapping[str, str] = {
    "runs/pretrain_scenes_names.gin": "runs/scenes_stage1_nouns.gin",
    "runs/pretrain_scenes_agreement.gin": "runs/scenes_stage2_matching.gin",
    "runs/pretrain_scenes_statements.gin": "runs/scenes_stage3_questions.gin",
    "runs/pretrain_scenes_which.gin": "runs/scenes_stage4_regions.gin",
    "runs/pretrain_scenes_full.gin": "runs/scenes_stage5_all.gin",
}
"""Files below gin_configs/, by the name that `include` and --gin_file give without the folder."""

MODULES: Mapping[str, str] = {
    "tasks.judged_objectives": "tasks.pretraining_eval",
    "tasks.scenes_controls": "tasks.scenes_negative_controls",
}
"""Modules that MIXTURE_OR_TASK_MODULE and a gin file's `import` name."""

PLANS: Mapping[str, str] = {"exchanges": "collectives", "binds": "bottleneck"}
"""Keys of a plan (docs/plans.jsonl, `ofa_jax.plan --json`) and of its roofline."""

KEYWORDS: Mapping[str, str] = {"answers": "candidates"}
"""Keyword arguments of the Predictor's methods."""

SCENES: Mapping[str, str] = {"pictures": "images", "picture_size": "image_size"}
"""The folder of a TFDS config, keys of scenes.json, and options of tools.build_scenes."""

RESULTS: Mapping[str, str] = {"aim": "threshold", "lessons": "stages"}
"""Keys of results/scenes.json and of its rows."""

SWAPPED_IMAGE_SUFFIX = "_swapped_picture"
"""The suffix of tasks whose records have the image of another record, which is not renamed.

Evaluations on disk have folders and results under the names of these tasks, and the names seed the
random draws of their examples.
"""

TOOL_FLAGS: Mapping[str, str] = {"lesson_dirs": "stage_dirs", "pictures": "images"}
"""Flags of tools.report_scenes and tools.benchmark_loader, without the dashes."""

COMMAND_LINE = "the command line"
"""The place of a name that is not in a file."""

_OWN_MODULE = "ofa_jax"  # what a selector may begin with, as in ofa_jax.train.loop


def current_gin_name(selector: str, parameter: str = "") -> tuple[str, str]:
    """Returns the new names of a configurable and of its parameter.

    Args:
      selector: of the configurable, without scopes; "ofa_jax." may stand before it.
      parameter: "" for the configurable alone.

    Returns:
      (selector, parameter), each as it was where it has not been renamed.
    """
    module, _, name = selector.rpartition(".")
    if module not in ("", _OWN_MODULE):
        return selector, parameter  # a configurable of the user's
    name = GIN_NAMES.get(name, name)
    selector = f"{module}.{name}" if module else name
    if parameter:
        parameter = GIN_NAMES.get(f"{name}.{parameter}", f".{parameter}").rpartition(".")[2]
    return selector, parameter


def current_module(name: str) -> str:
    """Returns the new name of a module that registers tasks."""
    return MODULES.get(name, name)


def with_new_names(values: Mapping[str, _Value], table: Mapping[str, str]) -> dict[str, _Value]:
    """Returns the values under the new names of their keys."""
    return {table.get(name, name): value for name, value in values.items()}


def former_names(name: str, table: Mapping[str, str]) -> tuple[str, ...]:
    """Returns all former names of a name."""
    return tuple(former for former, current in table.items() if current == name)


def rename_sentence(old: str, new: str, places: Iterable[str]) -> str:
    """Returns the sentence on a renamed thing, with the places where to rename it."""
    distinct = dict.fromkeys(places)
    files = "; ".join(place for place in distinct if place != COMMAND_LINE)
    found = [f"in {files}"] if files else []
    if COMMAND_LINE in distinct:
        found.append(f"on {COMMAND_LINE}")
    return f"{old} is now called {new}: rename it {' and '.join(found)}."


def warn(sentence: str) -> None:
    """Prints a warning on standard error."""
    print(f"warning: {sentence}", file=sys.stderr, flush=True)


def accept_former_keywords(
    function: Callable[_Parameters, _Value],
) -> Callable[_Parameters, _Value]:
    """Lets a function take the former names of its keyword arguments, with a FutureWarning."""

    @functools.wraps(function)
    def renaming(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Value:
        for former, current in KEYWORDS.items():
            if former in kwargs:
                if current in kwargs:
                    raise TypeError(f"Give {current} alone: {former} is its former name.")
                warnings.warn(
                    f"{former}= is now called {current}=: rename it in the call.",
                    FutureWarning,
                    stacklevel=2,
                )
                kwargs[current] = kwargs.pop(former)
        return function(*args, **kwargs)

    return renaming
