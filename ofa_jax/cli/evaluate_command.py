"""The command line of `python -m ofa_jax.evaluate`; see there."""

import dataclasses
import functools
import inspect
from collections.abc import Sequence

import gin
from absl import flags, logging

from ofa_jax.checkpoints import storage
from ofa_jax.cli import common, errors, gin_registry, gin_unread
from ofa_jax.data import task_registry
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation.build import Evaluation, build_evaluation
from ofa_jax.evaluation.evaluator import EvaluationError
from ofa_jax.evaluation.run import run_evaluation
from ofa_jax.model.named_config import model_config
from ofa_jax.training.build import build_run
from ofa_jax.utils.locks import LockedError

_OF_TRAINING = (
    "train",
    "model_config",
    "LoopConfig",
    "LossConfig",
    "OptimizerConfig",
    "SelfCriticalConfig",
    "DecodingConfig",
)
"""Options of the run, which may be repeated here; `override_decoding` reads the last."""


def run_command(description: str, arguments: Sequence[str]) -> None:
    """Evaluates as the command line says.

    Args:
      description: for `--help`.
      arguments: the command line without the program.
    """
    flags.FLAGS(["evaluate"])  # grain reads its options from absl
    logging.set_verbosity(logging.WARNING)
    with errors.user_errors():
        gin_registry.register(
            {"evaluate": build_evaluation, "train": build_run, "model_config": model_config}
        )
        common.parse_arguments(
            "python -m ofa_jax.evaluate", description, arguments, may_stay_open=("TRAIN_STEPS",)
        )
        task_registry.forget_cache_dirs()
        _inherit_training_parameters()
        evaluation = gin.get_configurable("evaluate")(override_decoding=override_decoding)
        gin_unread.warn_of_unread(_OF_TRAINING)
        evaluation = dataclasses.replace(
            evaluation,
            operative_config=gin.operative_config_str(),
            at_end=functools.partial(_write_report, evaluation),
        )
    try:
        results = run_evaluation(evaluation)
    except EvaluationError as error:
        errors.fail(error)
    except LockedError as error:
        errors.fail(EvaluationError(f"{error.strerror}."))
    except OSError as error:
        where = "" if error.filename is None else f" ({error.filename})"
        errors.fail(
            EvaluationError(
                f"The evaluation cannot read or write its files: {error.strerror or error}{where}. "
                "Finished predictions are kept: run the command again to continue."
            ),
            errors.FAILURE,
        )
    if results is not None and results.failures:
        errors.fail(
            EvaluationError(
                f"{'; '.join(results.failures)}. Everything else is in {evaluation.directory}; the "
                "predictions are kept, so running the command again repeats only what failed."
            ),
            errors.FAILURE,
        )


def _write_report(evaluation: Evaluation) -> None:
    """Writes the run's report, unless the results are elsewhere."""
    # Imported only now: the curves need plotly, which evaluation does not.
    from ofa_jax.reports import run_report

    # MODEL_DIR may be relative to the current folder; the folder of the results never is.
    model_dir = storage.absolute_path(evaluation.model_dir)
    if storage.absolute_path(evaluation.directory).is_relative_to(model_dir):
        run_report.write_at_end(evaluation.model_dir, evaluation.log)


def _inherit_training_parameters() -> None:
    """Sets parameters of `evaluate` that are not bound to those of `train` with the same name."""
    parameters = (inspect.signature(build).parameters for build in (build_evaluation, build_run))
    own, training = (set(names) for names in parameters)
    sources = {name: f"train.{name}" for name in own & training - {"seed"}}
    sources["last_step"] = "LoopConfig.total_steps"
    for name, source in sources.items():
        if not _is_bound(f"evaluate.{name}") and _is_bound(source):
            with gin.unlock_config():
                gin.bind_parameter(f"evaluate.{name}", gin.query_parameter(source))
    if not (_is_bound("evaluate.model_dir") and _is_bound("evaluate.streams")):
        raise ValueError(
            "There is nothing to evaluate: give the gin files of a run (or the config.gin in its "
            "directory) before gin_configs/runs/evaluate.gin, or use "
            "gin_configs/runs/evaluate_task.gin."
        )


def _is_bound(parameter: str) -> bool:
    """Returns whether gin has a value for a parameter."""
    try:
        gin.query_parameter(parameter)
    except ValueError:
        return False
    return True


def override_decoding(task: str, config: DecodingConfig) -> DecodingConfig:
    """Returns a task's decoding settings with those that gin binds for all tasks or for this one.

    --gin.DecodingConfig.beam_size=1 --gin.visual_grounding/DecodingConfig.max_length=4
    """
    with gin.config_scope(task):
        overrides = gin.get_bindings("DecodingConfig")
    for field in dataclasses.fields(DecodingConfig):
        if field.name in overrides:
            gin_registry.check_parameter(DecodingConfig, field.name, overrides[field.name])
    return config.replace(**overrides)
