"""How a task's answers are generated, read and judged: one frozen description of each task.

`tasks/` registers a description beside each seqio task (of the same name); `python -m
ofa_jax.evaluate` and `infer` look it up. An answer is read as one of

    text      str
    box       float32 [4]                     x0 y0 x1 y1, pixels of the stored image
    objects   {"boxes": float32 [K, 4], "labels": list[str]}      the same pixels
    codes     int32 [n]                       image codes, 0 the first one
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ofa_jax.decoding import DecodingConfig
from ofa_jax.preprocessing.records import Record
from ofa_jax.utils.suggestions import nearest

KINDS = ("text", "box", "objects", "codes")

Metric = Callable[[Sequence[Any], Sequence[Any]], Mapping[str, float]]
"""(references of every example, its answer) -> values by name; both lists in the same order."""


@dataclasses.dataclass(frozen=True)
class EvalSpec:
    """How the answers to a task are found and judged.

    Attributes:
      task: name in the seqio registry.
      kind: what an answer is read as, see the module's text.
      references: record -> what the metrics compare an answer with, plain values that json takes
        (for boxes: in pixels of the stored image).
      metrics: functions of all references and all answers.
      decoding: how answers are searched.
      answers: gives the only answers allowed, as they would be encoded (a space in front, as in
        training); None where all are. Called once, when an evaluation begins.
      score_all: score every one of `answers` instead of searching among them.
      main_metric: the one that "best" means; the first of the results when None.
      max_image_size: pixels that the last location bin stands for.
    """

    task: str
    kind: str
    references: Callable[[Record], Any]
    metrics: tuple[Metric, ...]
    decoding: DecodingConfig = DecodingConfig()
    answers: Callable[[], Sequence[str]] | None = None
    score_all: bool = False
    main_metric: str | None = None
    max_image_size: float = 512.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"EvalSpec of task {self.task!r}: kind is {self.kind!r}; choose from "
                f"{', '.join(KINDS)}."
            )
        if self.score_all and self.answers is None:
            raise ValueError(
                f"EvalSpec of task {self.task!r}: score_all needs the answers to score; give "
                "`answers`."
            )

    def replace(self, **overrides: Any) -> "EvalSpec":
        """The same description with some fields changed."""
        return dataclasses.replace(self, **overrides)


_registry: dict[str, Callable[[], EvalSpec]] = {}


def register(judging: EvalSpec) -> EvalSpec:
    """Makes a description known; the last one of a task counts.

    Returns:
      The description.
    """
    register_later(judging.task, lambda: judging)
    return judging


def register_later(task: str, describe: Callable[[], EvalSpec]) -> None:
    """Makes a description known that follows from settings: it is made when it is asked for.

    Args:
      task: name in the seqio registry.
      describe: gives the description under the settings as they are then.
    """
    _registry[task] = describe


def is_known(task: str) -> bool:
    """Whether a task has a description."""
    return task in _registry


def find(task: str) -> EvalSpec:
    """The description of a task, under the settings as they are now.

    Raises:
      ValueError: there is none; names the nearest one.
    """
    if task not in _registry:
        raise ValueError(
            f"Task {task!r} has no description of how it is judged: register an "
            f"ofa_jax.evaluation.EvalSpec for it beside the task.{nearest(task, _registry)}"
        )
    return _registry[task]()
