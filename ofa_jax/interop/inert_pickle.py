"""Reads a pickle as data, and executes nothing of it.

A pickle is a program: the standard unpickler calls what it names, and sets the state of what it
has. Here a closed list of operations is interpreted on values of our own. A name becomes a `Name`,
and what a name would make becomes a `Record`, which only remembers what it was given; no class,
function or module of the process is ever on the stack. The operations are those of torch's own
`weights_only` loader (torch/_weights_only_unpickler.py), and the unambiguous ones of later
protocols.
"""

import argparse
import dataclasses
import io
import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ofa_jax.utils.wrong_files import shorten

MAX_BYTES = 64 * 2**20
"""Largest pickle that is read. One of OFA-huge with its optimizer's state has 2 MB."""
MAX_OPERATIONS = 5_000_000
"""Longest pickle that is read: it bounds memory, of which an operation takes up to 200 bytes."""
_MAX_INTEGER_BITS = 2048
_MAX_PLAIN_VALUES, _MAX_PLAIN_DEPTH = 1_000_000, 100

_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Name:
    """A class or function that a pickle names; it has no other content.

    Attributes:
      module: dotted, as in Python 3.
      name: within the module.
    """

    module: str
    name: str

    def __str__(self) -> str:
        return shorten(f"{self.module}.{self.name}")


class Record:
    """Stands for an object that is not created: what a pickle does to it.

    Attributes:
      name: of its class or function.
      args: that it would be made with.
      state: that it would be given, or None.
      items: values that would be added to it, with their keys if it has keys.
    """

    __slots__ = ("args", "items", "name", "state")

    def __init__(self, name: Name, args: tuple[Any, ...]):
        self.name, self.args = name, args
        self.state: Any = None
        self.items: list[Any] = []


class ContentError(ValueError):
    """Content that is not read; the message is a clause that says why."""


class ForbiddenNameError(ContentError):
    """A pickle asks for a name that is not allowed; the message is the name."""


Maker = Callable[[tuple[Any, ...]], Any]


class Interpreter:
    """Interprets one pickle."""

    def __init__(
        self,
        makers: Mapping[Name, Maker],
        is_allowed: Callable[[Name], bool],
        storage: Callable[[Any], Any],
    ):
        """Defines what names and references stand for.

        Args:
          makers: makes values of the arguments of certain names; raises ContentError.
          is_allowed: whether another name may become a record.
          storage: returns what a persistent reference stands for; raises ContentError.
        """
        self._makers, self._is_allowed, self._storage = makers, is_allowed, storage
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self, stream: io.BytesIO) -> Any:
        """Reads a pickle up to its end.

        Args:
          stream: at the pickle's first byte; it is left behind the last one.

        Raises:
          ContentError: it is damaged, too large, or asks for something that is not allowed.
        """
        for count, (operation, argument) in enumerate(_operations(stream)):
            if count >= MAX_OPERATIONS:
                raise ContentError(f"it has more than {MAX_OPERATIONS:,} operations")
            if operation in _LITERALS:
                if isinstance(argument, int) and argument.bit_length() > _MAX_INTEGER_BITS:
                    raise ContentError("it holds a number of absurd size")
                self._stack.append(argument)
            elif operation == "STOP":
                return self._pop()
            else:
                handler = _HANDLERS.get(operation)
                if handler is None:
                    raise ContentError(f"it uses {operation}, an operation that torch does not")
                handler(self, argument)
        raise ContentError("it has no end")

    # --------------------------------------------------------------------------------- the stack

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ContentError("it takes more values than it made")
        return self._stack.pop()

    def _top(self, kinds: tuple[type, ...], what: str) -> Any:
        """Returns the last value, which must be of one of these very types."""
        value = self._pop()
        if type(value) not in kinds:
            raise ContentError(f"it {what} {_describe(value)}")
        self._stack.append(value)
        return value

    def _pop_marked(self, _: Any = None) -> list[Any]:
        """Returns the values since the last mark."""
        if not self._marks:
            raise ContentError("it closes a group that it did not open")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _discard(self, _: Any) -> None:
        # Right above a mark, the mark itself is meant.
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop()

    def _put(self, index: int | None) -> None:
        value = self._pop()
        self._stack.append(value)
        # A dictionary: the index may be any number of 32 bits.
        self._memo[len(self._memo) if index is None else index] = value

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise ContentError("it refers to a value that it did not make")
        self._stack.append(self._memo[index])

    # -------------------------------------------------------------------------------- containers

    def _tuple(self, length: int) -> None:
        values = [self._pop() for _ in range(length)]
        self._stack.append(tuple(reversed(values)))

    def _extend(self, values: list[Any]) -> None:
        target = self._top((list, Record), "appends to")
        (target if isinstance(target, list) else target.items).extend(values)

    def _update(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise ContentError("it has a key without a value")
        target = self._top((dict, Record), "sets items of")
        pairs = [(_key(key), value) for key, value in zip(values[::2], values[1::2], strict=True)]
        if isinstance(target, dict):
            target.update(pairs)
        else:
            target.items.extend(pairs)

    def _set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._update([key, value])

    def _dict(self, _: Any) -> None:
        values = self._pop_marked()
        self._stack.append({})
        self._update(values)

    def _add_items(self, _: Any) -> None:
        values = self._pop_marked()
        self._top((set,), "adds to").update(map(_key, values))

    # --------------------------------------------------------------------------- names and objects

    def _name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ContentError("it has a name that is not text")
        # Protocol 2, torch's, has the names of Python 2.
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        found = Name(module, name)
        if found not in self._makers and not self._is_allowed(found):
            raise ForbiddenNameError(str(found))
        self._stack.append(found)

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._name(module, name)

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        self._name(module, name)

    def _call(self, _: Any) -> None:
        args = self._pop()
        name = self._top((Name,), "calls")
        if type(args) is not tuple:
            raise ContentError(f"it calls {name} without arguments")
        self._stack[-1] = self._makers[name](args) if name in self._makers else Record(name, args)

    def _call_with_keywords(self, _: Any) -> None:
        self._pop()  # the keywords
        self._call(None)

    def _build(self, _: Any) -> None:
        state = self._pop()
        target = self._top((Record, argparse.Namespace, dict), "sets the state of")
        if isinstance(target, Record):
            target.state = state
        elif isinstance(target, argparse.Namespace):
            if type(state) is not dict or not all(type(key) is str for key in state):
                raise ContentError("it has arguments without names")
            vars(target).update(state)
        # A dictionary's state is its attributes, such as a state dict's `_metadata`: not needed.

    def _persistent(self, _: Any) -> None:
        self._stack.append(self._storage(self._pop()))


_HANDLERS: dict[str, Callable[[Interpreter, Any], None]] = {
    "PROTO": lambda self, version: None,
    "FRAME": lambda self, size: None,
    "NONE": lambda self, _: self._stack.append(None),
    "NEWTRUE": lambda self, _: self._stack.append(True),
    "NEWFALSE": lambda self, _: self._stack.append(False),
    "BINSTRING": lambda self, text: self._stack.append(_python2_text(text)),
    "SHORT_BINSTRING": lambda self, text: self._stack.append(_python2_text(text)),
    "EMPTY_LIST": lambda self, _: self._stack.append([]),
    "EMPTY_DICT": lambda self, _: self._stack.append({}),
    "EMPTY_SET": lambda self, _: self._stack.append(set()),
    "EMPTY_TUPLE": lambda self, _: self._stack.append(()),
    "TUPLE1": lambda self, _: self._tuple(1),
    "TUPLE2": lambda self, _: self._tuple(2),
    "TUPLE3": lambda self, _: self._tuple(3),
    "TUPLE": lambda self, _: self._stack.append(tuple(self._pop_marked())),
    "LIST": lambda self, _: self._stack.append(self._pop_marked()),
    "DICT": Interpreter._dict,
    "APPEND": lambda self, _: self._extend([self._pop()]),
    "APPENDS": lambda self, _: self._extend(self._pop_marked()),
    "SETITEM": Interpreter._set_item,
    "SETITEMS": lambda self, _: self._update(self._pop_marked()),
    "ADDITEMS": Interpreter._add_items,
    "MARK": Interpreter._mark,
    "POP": Interpreter._discard,
    "POP_MARK": lambda self, _: self._pop_marked().clear(),
    "BINPUT": Interpreter._put,
    "LONG_BINPUT": Interpreter._put,
    "MEMOIZE": Interpreter._put,
    "BINGET": Interpreter._get,
    "LONG_BINGET": Interpreter._get,
    "GLOBAL": Interpreter._global,
    "STACK_GLOBAL": Interpreter._stack_global,
    "REDUCE": Interpreter._call,
    "NEWOBJ": Interpreter._call,
    "NEWOBJ_EX": Interpreter._call_with_keywords,
    "BUILD": Interpreter._build,
    "BINPERSID": Interpreter._persistent,
}
"""Every operation that is carried out, besides the literals; all others are refused."""


def _operations(stream: io.BytesIO) -> Iterator[tuple[str, Any]]:
    """Yields the operations of a pickle and their arguments."""
    try:
        for operation, argument, _ in pickletools.genops(stream):
            yield operation.name, argument
    except ValueError as error:
        raise ContentError("its operations are cut off or garbled") from error


def _python2_text(text: str) -> str:
    """Returns text that Python 2 wrote: UTF-8, which pickletools decodes as Latin-1."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return text


def _key(value: Any) -> Any:
    """Returns a key; nested ones are refused, whose hash would recurse without a bound."""
    parts = value if type(value) is tuple else (value,)
    if any(type(part) not in _KEY_TYPES for part in parts):
        raise ContentError("it has a key of a type that is not allowed")
    return value


_PLAIN_TYPES = {str, int, float, bool, bytes, type(None)}
_KEY_TYPES = _PLAIN_TYPES | {Name}


def _describe(value: Any) -> str:
    return str(value) if isinstance(value, Name) else f"a value of type {type(value).__name__}"


def make_dict(args: tuple[Any, ...]) -> dict[Any, Any]:
    """Returns an OrderedDict's items: none yet in Python 3, a list of pairs in Python 2.

    Raises:
      ContentError: the pairs are none.
    """
    pairs = args[0] if len(args) == 1 else []
    if type(pairs) is not list or not all(
        type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs
    ):
        raise ContentError("it has a dictionary of something else than pairs")
    return {_key(key): value for key, value in pairs}


def plain(value: Any) -> Any:
    """Converts namespaces, OmegaConf nodes and other records to plain containers, a tree.

    What is neither plain nor a container, such as a tensor, becomes None.

    Raises:
      ContentError: the value refers to itself, or is too large or too deep for a configuration.
    """
    left = _MAX_PLAIN_VALUES

    def convert(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > _MAX_PLAIN_DEPTH:
            raise ContentError("its configuration is too large, or refers to itself")
        if isinstance(value, Record):
            return convert(_content_of(value), depth + 1)
        if isinstance(value, argparse.Namespace):
            value = vars(value)
        if isinstance(value, Mapping):
            return {key: convert(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [convert(item, depth + 1) for item in value]
        return value if type(value) in _PLAIN_TYPES else None

    return convert(value, 0)


def _content_of(record: Record) -> Any:
    """Returns what an OmegaConf container or node holds; None for other objects."""
    state = record.state
    if isinstance(state, tuple):
        state = next((part for part in state if isinstance(part, Mapping)), None)
    if isinstance(state, Mapping):
        return state.get("_content", state.get("_val"))
    return None
