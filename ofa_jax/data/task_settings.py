"""How the settings of a run reach the tasks that are registered before it begins.

A task is registered with seqio when its module is imported; which data set, vocabulary and sizes it
runs over is known only when a run is configured. So a task is registered with a `SettingsSource`,
and whoever builds its data passes a `TaskContext`, which holds the run's settings:

    run's settings -> TaskContext(settings, training) -> records, preprocessor, vocabulary, rates

Plain seqio (`seqio.get_mixture_or_task(name).get_dataset(...)`) has no place for such an argument.
There, and only there, a task falls back on the settings of the enclosing `default_settings` block,
on those of `set_default_settings`, or on the default of its `SettingsSource`. Threads that seqio
starts within a block, such as that of `seqio.Evaluator`'s metrics, see the block as well.
"""

import contextlib
import contextvars
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from ofa_jax.data.sources.base import RecordSource
from ofa_jax.preprocessing.records import Record
from ofa_jax.tokenizers.vocabulary import OFAVocabulary


class TaskSettings(Protocol):
    """What a family of tasks runs over; implemented by the classes that gin configures."""

    @property
    def vocabulary(self) -> OFAVocabulary:
        """The vocabulary of instructions and targets."""

    @property
    def code_image_size(self) -> int:
        """Pixels a side of the image that a target of image codes stands for."""

    @property
    def evaluation_config(self) -> Any:
        """The preprocessing configuration without augmentation."""

    @property
    def task_modules(self) -> tuple[str, ...]:
        """Modules that register tasks, besides those that a run names."""

    def config_for(self, training: bool) -> Any:
        """Returns the preprocessing configuration, with augmentation if `training`."""

    def records(self, name: str, split: str, training: bool) -> RecordSource:
        """Opens the records that a task reads, by the name that it was registered with."""


Settings = TypeVar("Settings", bound=TaskSettings)

_defaults: contextvars.ContextVar[tuple[Any, ...]] = contextvars.ContextVar("defaults", default=())


@dataclasses.dataclass(frozen=True, eq=False)
class _Block:
    """An open `default_settings` block, and the thread that has opened it."""

    settings: tuple[Any, ...]
    thread: int


_open_blocks: list[_Block] = []
_of_process: list[Any] = []


@dataclasses.dataclass(frozen=True)
class TaskContext:
    """What the data of a task is built for.

    Attributes:
      settings: of the run, for tasks that need some; None for the defaults.
      training: whether records are augmented and drawn from as in training, or read as they are.
    """

    settings: Any = None
    training: bool = False


@dataclasses.dataclass(frozen=True)
class SettingsSource(Generic[Settings]):
    """Finds the settings of one family of tasks.

    Attributes:
      kind: the class of its settings.
      default: makes the settings that hold where none are given; may raise ValueError with a
        sentence that says how to give some.
    """

    kind: type[Settings]
    default: Callable[[], Settings]

    def of(self, settings: Any = None) -> Settings:
        """Returns `settings` if they are of this family, else those in effect by default."""
        for candidate in (settings, *_defaults.get(), *_settings_of_other_threads(), *_of_process):
            if isinstance(candidate, self.kind):
                return candidate
        return self.default()


@contextlib.contextmanager
def default_settings(*settings: Any) -> Iterator[None]:
    """Makes settings the default within a block, for plain seqio, which cannot pass them on.

    >>> with default_settings(scenes_settings()):  # doctest: +SKIP
    ...     seqio.get_mixture_or_task("ofa_pretrain").get_dataset(...)
    """
    token = _defaults.set((*settings, *_defaults.get()))
    block = _Block(settings, threading.get_ident())
    _open_blocks.append(block)
    try:
        yield
    finally:
        _open_blocks.remove(block)
        _defaults.reset(token)


def set_default_settings(*settings: Any) -> None:
    """Makes settings the default of this process, e.g. in a module that a seqio tool imports.

    They take the place of those of an earlier call.
    """
    _of_process[:] = settings


def _settings_of_other_threads() -> Iterator[Any]:
    """Yields the settings of blocks that other threads have open, the innermost first."""
    own = threading.get_ident()
    for block in reversed(tuple(_open_blocks)):
        if block.thread != own:
            yield from block.settings


def available_splits(source: SettingsSource, name: str) -> Sequence[str] | None:
    """Returns the splits that the settings in effect have data of; None if that is not known.

    Args:
      source: of the settings.
      name: of the records, as for `open_configured`.
    """
    try:
        settings = source.of()
        find = getattr(settings, "available_splits", None)
        return None if find is None else find(name)
    except (ValueError, OSError):
        return None  # opening the records says what is wrong


@dataclasses.dataclass(frozen=True)
class ConfiguredPreprocessor:
    """`(record, rng, config) -> example` with its configuration; what data workers carry."""

    function: Callable[..., Any]
    config: Any

    def __call__(self, record: Record, rng: np.random.Generator) -> Any:
        """Returns the example that the function makes of a record."""
        return self.function(record, rng, self.config)


def configured(
    function: Callable[..., Any], source: SettingsSource
) -> Callable[[TaskContext], ConfiguredPreprocessor]:
    """Returns a factory of preprocessors, for `numpy_preprocessor(..., factory=True)`.

    Args:
      function: `(record, rng, config) -> example`.
      source: of the settings whose `config_for` gives the configuration.
    """

    def make(context: TaskContext) -> ConfiguredPreprocessor:
        config = source.of(context.settings).config_for(context.training)
        return ConfiguredPreprocessor(function, config)

    return functools.update_wrapper(make, function, assigned=("__name__", "__doc__"), updated=())


def open_configured(
    source: SettingsSource, name: str, split: str, context: TaskContext
) -> RecordSource:
    """Opens the records that the settings in effect have under a name."""
    return source.of(context.settings).records(name, split, context.training)
