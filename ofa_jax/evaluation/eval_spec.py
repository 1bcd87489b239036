"""How a task's predictions are decoded, parsed and scored: one frozen `EvalSpec` per task.

`python -m ofa_jax.evaluate` and `infer` look up the spec that was registered under the name of the
seqio task. Its `kind` says what a decoded token sequence is parsed as:

    text      str
    box       float32 [4]                     x0 y0 x1 y1, pixels of the stored image
    objects   {"boxes": float32 [K, 4], "labels": list[str]}      the same pixels
    codes     int32 [n]                       image codes, counted from 0
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from ofa_jax.decoding import DecodingConfig
from ofa_jax.preprocessing.records import Record
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked
from ofa_jax.utils.suggestions import nearest

KINDS = ("text", "box", "objects", "codes")

Metric = Callable[[Sequence[Any], Sequence[Any]], Mapping[str, float]]
"""(references, predictions), one of each per example in the same order -> {name: value}."""


@checked
@dataclasses.dataclass(frozen=True)
class EvalSpec:
    """How a task is evaluated.

    Attributes:
      task: name in the seqio registry.
      kind: what predictions are parsed as, see the module's docstring.
      references: record -> what the metrics compare a prediction with, in JSON-serialisable values
        (boxes in pixels of the stored image).
      metrics: functions of all references and all predictions.
      decoding: settings of the decoder.
      candidates: returns the only outputs allowed, as text with a leading space as in training;
        None for free generation. It is called once, when an evaluation begins.
      score_all: whether to score every candidate instead of searching among them.
      main_metric: the metric that selects the best checkpoint; the first one when None.
      max_image_size: pixels that the last location bin stands for.
      example_metric: the metric that orders the examples of a gallery; when None, the main one, or
        the first one that needs no corpus.
      unconditional: the instruction without its caption, which guidance compares with
        (`DecodingConfig.guidance_scale`); None for tasks that have no guidance.
    """

    task: options.Name
    kind: Annotated[str, options.OneOf(KINDS)]
    references: Callable[[Record], Any]
    metrics: tuple[Metric, ...]
    decoding: DecodingConfig = DecodingConfig()
    candidates: Callable[[], Sequence[str]] | None = None
    score_all: bool = False
    main_metric: options.Name | None = None
    max_image_size: options.Positive = 512.0
    example_metric: options.Name | None = None
    unconditional: str | None = None

    def __post_init__(self) -> None:
        if self.score_all and self.candidates is None:
            raise ValueError(
                f"EvalSpec of task {self.task!r}: score_all is set without candidates; give "
                "`candidates`."
            )
        if self.decoding.is_guided and (self.unconditional is None or self.score_all):
            raise ValueError(
                f"EvalSpec of task {self.task!r}: guidance_scale is "
                f"{self.decoding.guidance_scale}, but guidance is for images from captions; leave "
                "it at 1."
            )

    def replace(self, **overrides: Any) -> "EvalSpec":
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **overrides)


_registry: dict[str, Callable[[Any], EvalSpec]] = {}


def register(spec: EvalSpec) -> EvalSpec:
    """Registers a spec under the name of its task, in place of an earlier one.

    Returns:
      The spec.
    """
    register_factory(spec.task, lambda settings: spec)
    return spec


def register_factory(task: str, make_spec: Callable[[Any], EvalSpec]) -> None:
    """Registers a spec that depends on the settings of a run.

    Args:
      task: name in the seqio registry.
      make_spec: settings of a run (None for the task's defaults) -> the spec.
    """
    _registry[task] = make_spec


def is_registered(task: str) -> bool:
    """Returns whether a task has a spec."""
    return task in _registry


def find(task: str, settings: Any = None) -> EvalSpec:
    """Returns the spec of a task under the settings of a run.

    Args:
      task: name in the seqio registry.
      settings: settings of the run; None for the task's defaults.

    Raises:
      ValueError: there is none; names the nearest one.
    """
    if task not in _registry:
        raise ValueError(
            f"Task {task!r} has no EvalSpec: register an ofa_jax.evaluation.EvalSpec beside the "
            f"task.{nearest(task, _registry)}"
        )
    return _registry[task](settings)
