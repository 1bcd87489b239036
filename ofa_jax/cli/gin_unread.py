"""Finds options on the command line that gin accepts, but that nothing has read.

`--gin.Scenes.data_dir=...` binds a parameter of a configurable that exists. If no gin file has a
reference such as `@Scenes()`, and no code asks gin for it, the value has no effect; likewise
`--gin.pair/Stream.batch_size=8` where the scope is called `pairs`. What was read is known when a
command has built everything that it will run, before it runs it.
"""

from collections.abc import Callable, Collection, Sequence

from absl import logging
from gin import config as gin_config
from gin import config_parser

from ofa_jax.cli import gin_files, gin_registry
from ofa_jax.cli.gin_parser import statements
from ofa_jax.utils.renamed import COMMAND_LINE
from ofa_jax.utils.suggestions import nearest

__all__ = ["describe_unread", "remember", "warn_of_unread"]

_given: list[str] = []
_in_files: set[tuple[str, str]] = set()


def remember(bindings: Sequence[str]) -> None:
    """Keeps the `NAME = value` statements of the command line, in place of earlier ones.

    To be called when gin has read the files, but not the command line.
    """
    _given[:] = bindings
    _in_files.clear()
    _in_files.update(
        (scope, selector.rpartition(".")[2])
        for scope, selector in gin_config._CONFIG  # noqa: SLF001  gin has no other way to ask
    )


def warn_of_unread(read_elsewhere: Collection[str] = ()) -> None:
    """Logs a warning for each option of the command line that was not read."""
    for sentence in describe_unread(read_elsewhere):
        logging.warning("%s", sentence)


def describe_unread(
    read_elsewhere: Collection[str] = (),
    was_read: Callable[[str, str], bool] | None = None,
) -> list[str]:
    """Returns a sentence for each option of the command line that nothing has read so far.

    Left out are configurables of the user's own modules, which may be called later, and those that
    a gin file binds as well: a run may leave out a stream of its file.

    Args:
      read_elsewhere: names of configurables that are read without being called.
      was_read: (scope, name) -> whether a configurable was called within a scope; gin's own record
        by default.
    """
    was_read = was_read or _was_called
    known = set(gin_registry.names()) - set(read_elsewhere)
    sentences = []
    for text in _given:
        for statement in statements(gin_files.translate(text, COMMAND_LINE).text, COMMAND_LINE):
            if not isinstance(statement, config_parser.BindingStatement):
                continue
            name = statement.selector.rpartition(".")[2]
            if not statement.arg_name or name not in known or was_read(statement.scope, name):
                continue
            if (statement.scope, name) in _in_files:
                continue
            where = f"{statement.scope}/{name}" if statement.scope else name
            sentences.append(
                f"{where}.{statement.arg_name} is set ({COMMAND_LINE}), but nothing reads it."
                f"{_hint(statement.scope, name)}"
            )
    return sentences


def _was_called(scope: str, name: str) -> bool:
    """Returns whether a configurable was called within a scope, or within one inside of it."""
    return any(
        scope in ("", called) or called.startswith(f"{scope}/") for called in _scopes_of(name)
    )


def _scopes_of(name: str) -> list[str]:
    """Returns the scopes that a configurable was called in."""
    called = tuple(gin_config._OPERATIVE_CONFIG)  # noqa: SLF001  gin has no other way to ask
    return [scope for scope, selector in called if selector.rpartition(".")[2] == name]


def _hint(scope: str, name: str) -> str:
    """Returns what to do about a configurable that was not called."""
    if scopes := sorted(set(filter(None, _scopes_of(name)))):
        return nearest(scope, scopes) or f" {name} is read as {', '.join(scopes)}/{name}."
    return f" Give @{name}() to a parameter that takes it, or leave the option out."
