"""Declares the types and ranges of options, for the annotations of everything configurable.

    @checked
    @dataclasses.dataclass(frozen=True)
    class LoopConfig:
        total_steps: options.Steps
        max_minutes: options.Positive | None = None

An annotation is a type, or `Annotated[type, constraint, ...]`; the names at the end of this module
are those in use. `option_checks.checked` enforces them when an object is made in Python, the
commands enforce them on gin files before anything is built, and the configuration reference prints
them. Floats are finite unless `MayBeInfinite` is declared, and a bool is no number.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Annotated, Any

from ofa_jax.utils.suggestions import nearest

LARGEST = 2**31 - 1
"""The largest count: steps, sizes and ids are int32 in compiled programs."""

LARGEST_FLOAT = 3.4e38
"""The largest number that a float32 can hold."""


class Constraint:
    """What a value must fulfil besides its type."""

    def holds(self, value: Any) -> bool:
        """Returns whether a value of the right type fulfils it."""
        raise NotImplementedError

    @property
    def phrase(self) -> str:
        """What follows "it must be"."""
        raise NotImplementedError

    def advice(self, value: Any) -> str:
        """Returns a sentence that helps to correct a value, after a space, or ""."""
        del value
        return ""


@dataclasses.dataclass(frozen=True)
class AtLeast(Constraint):
    """Numbers from `low` on."""

    low: float

    def holds(self, value: Any) -> bool:
        """Returns whether the number is large enough."""
        return value >= self.low

    @property
    def phrase(self) -> str:
        """What follows "it must be"."""
        return f"at least {self.low}"


@dataclasses.dataclass(frozen=True)
class AtMost(Constraint):
    """Numbers up to `high`."""

    high: float

    def holds(self, value: Any) -> bool:
        """Returns whether the number is small enough."""
        return value <= self.high

    @property
    def phrase(self) -> str:
        """What follows "it must be"."""
        return f"at most {self.high}"


@dataclasses.dataclass(frozen=True)
class Above(Constraint):
    """Numbers larger than `low`."""

    low: float

    def holds(self, value: Any) -> bool:
        """Returns whether the number is larger."""
        return value > self.low

    @property
    def phrase(self) -> str:
        """What follows "it must be"."""
        return f"above {self.low}"


@dataclasses.dataclass(frozen=True)
class Below(Constraint):
    """Numbers smaller than `high`."""

    high: float

    def holds(self, value: Any) -> bool:
        """Returns whether the number is smaller."""
        return value < self.high

    @property
    def phrase(self) -> str:
        """What follows "it must be"."""
        return f"below {self.high}"


@dataclasses.dataclass(frozen=True)
class MultipleOf(Constraint):
    """Whole numbers that `factor` divides."""

    factor: int

    def holds(self, value: Any) -> bool:
        """Returns whether the number is a multiple."""
        return value % self.factor == 0

    @property
    def phrase(self) -> str:
        """What follows "it must be"."""
        return f"a multiple of {self.factor}"


class MayBeInfinite:
    """Lets a float be infinite; NaN stays refused."""


@dataclasses.dataclass(frozen=True)
class OneOf(Constraint):
    """Values of an enumeration.

    Attributes:
      names: all of them, or a function that returns them.
    """

    names: Sequence[str] | Callable[[], Sequence[str]]

    @property
    def known(self) -> Sequence[str]:
        """All values."""
        return self.names() if callable(self.names) else self.names

    def holds(self, value: Any) -> bool:
        """Returns whether the value is one of them."""
        return value in self.known

    @property
    def phrase(self) -> str:
        """What follows "it must be"."""
        return f"one of {', '.join(self.known)}"

    def advice(self, value: Any) -> str:
        """Suggests the nearest value."""
        return nearest(str(value), self.known)


@dataclasses.dataclass(frozen=True)
class NotBlank(Constraint):
    """Text with something to read in it."""

    def holds(self, value: Any) -> bool:
        """Returns whether the text has more than white space."""
        return bool(os.fspath(value).strip())

    @property
    def phrase(self) -> str:
        """What follows "it must be"."""
        return "text that is not empty"


@dataclasses.dataclass(frozen=True)
class IsPath(Constraint):
    """Text that a file system or an object store takes as a path, or an object of a path."""

    def holds(self, value: Any) -> bool:
        """Returns whether the text is short, and has no NUL and no lone surrogates."""
        text = os.fspath(value)
        if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            return False
        names = text.encode().split(b"/")
        return len(text) <= 4096 and max(map(len, names)) <= 255

    @property
    def phrase(self) -> str:
        """What follows "it must be"."""
        return "a path in UTF-8 without NUL characters and names of more than 255 bytes"


@dataclasses.dataclass(frozen=True)
class NotEmpty(Constraint):
    """Lists and dicts with at least one item."""

    def holds(self, value: Sized) -> bool:
        """Returns whether there is an item."""
        return len(value) > 0

    @property
    def phrase(self) -> str:
        """What follows "it must be"."""
        return "non-empty"


@dataclasses.dataclass(frozen=True)
class FieldsOf:
    """A dict of options: each is checked as a parameter of a class.

    Attributes:
      owner: the class.
      without: parameters that cannot be given.
    """

    owner: type
    without: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Help:
    """A sentence that follows every error of an option.

    Attributes:
      text: what to do.
    """

    text: str


class ModuleName:
    """Marks names of modules that will be imported; see `ofa_jax.utils.modules`."""


def is_finite(value: Any) -> bool:
    """Returns whether a number fits into a float32."""
    try:
        return math.isfinite(value) and abs(value) <= LARGEST_FLOAT
    except OverflowError:  # a whole number that is too large for a float
        return False


Count = Annotated[int, AtLeast(1), AtMost(LARGEST)]
"""How many, at least one."""

Natural = Annotated[int, AtLeast(0), AtMost(LARGEST)]
"""How many; 0 is allowed."""

Steps = Count
"""A number of training steps."""

Amount = Annotated[int, AtLeast(1), AtMost(2**62)]
"""A number of bytes or pixels."""

Layers = Annotated[int, AtLeast(1), AtMost(1000)]
"""A number of layers or blocks."""

Dtype = Annotated[str, OneOf(("float32", "bfloat16"))]
"""Of computation."""

Seed = Annotated[int, AtLeast(0), AtMost(2**32 - 1)]
"""Of a random generator: JAX uses 32 bits of it."""

TokenId = Annotated[int, AtLeast(0), AtMost(LARGEST)]
"""An id of the vocabulary."""

Threads = Annotated[int, AtLeast(1), AtMost(1024)]
"""Threads of a process."""

Workers = Annotated[int, AtLeast(0), AtMost(1024)]
"""Processes beside the first one; 0 for none."""

Positive = Annotated[float, Above(0)]
"""A finite number above 0."""

NonNegative = Annotated[float, AtLeast(0)]
"""A finite number from 0 on."""

Rate = Annotated[float, AtLeast(0), Below(1)]
"""A share or a probability that is never 1, such as a dropout rate."""

Share = Annotated[float, AtLeast(0), AtMost(1)]
"""A share or a probability."""

Seconds = Annotated[float, Above(0), AtMost(10**9)]
"""A time to wait."""

Timeout = Annotated[float, AtLeast(0), AtMost(10**9)]
"""A time in seconds; 0 for none."""

Name = Annotated[str, NotBlank()]
"""Text that identifies something."""

Path = Annotated[str, NotBlank(), IsPath()]
"""A file or a folder."""

PathLike = Annotated[str | os.PathLike, NotBlank(), IsPath()]
"""A file or a folder, from Python also as a path object."""

Folder = Annotated[str, IsPath()]
"""A folder; "" for the current one."""

Pixels = Annotated[int, AtLeast(1), AtMost(2**16)]
"""The side of an image."""

Modules = Annotated[Name | Annotated[Sequence[Name], NotEmpty()], ModuleName()]
"""A module, or several."""

Weights = Mapping[Name, NonNegative]
"""Relative frequencies by name."""
