"""Reads gin files in the form of gin's dynamic registration, in which those of t5x are written.

    from __gin__ import dynamic_registration
    import __main__ as train_script
    from ofa_jax.data import features

    features.Stream.batch_size = 32
    train_script.train.streams = [@features.Stream()]

gin itself would let such a file call any function of any module that it imports. Here the module in
front of a name is dropped, so that names reach what the project registers, and nothing else:
`features.Stream` is `Stream`. The modules are those that any gin file may import.
"""

import re
import tokenize
from collections.abc import Sequence

__all__ = ["ImportedNames"]

_IMPORT = re.compile(
    r"(?:from (?P<package>[\w.]+) )?import (?P<module>[\w.]+)(?: as (?P<alias>\w+))?"
)
_COMMAND = "__main__"
_OWN = ("ofa_jax", "tasks", "tools", _COMMAND)


class ImportedNames:
    """What the imports of a gin file bind, once it has asked for dynamic registration."""

    def __init__(self) -> None:
        self._is_dynamic = False
        self._modules: dict[str, str] = {}  # as names begin -> the module

    def add(self, line: Sequence[tokenize.TokenInfo]) -> bool:
        """Reads an import statement.

        Args:
          line: its tokens.

        Returns:
          Whether gin is not to see it: it asks for dynamic registration, or names the command.
        """
        text = " ".join(token.string for token in line).replace(" . ", ".")
        found = _IMPORT.fullmatch(text)
        if found is None:
            return False
        package, module, alias = found.group("package", "module", "alias")
        if package == "__gin__":
            if module != "dynamic_registration" or alias is not None:
                return False
            self._is_dynamic = True
            return True
        if not self._is_dynamic:
            return False
        whole = module if package is None else f"{package}.{module}"
        self._modules[alias or module] = whole
        return whole == _COMMAND

    def shorten(self, selector: str, parts: int) -> str:
        """Returns a name as it is registered.

        Args:
          selector: without scopes, such as `features.Stream.batch_size`.
          parts: how many names a registered one has: 1, or 2 with a parameter.

        Returns:
          `Stream.batch_size`; for a module of a user's own its whole name and the rest; the
          selector itself where no import binds its beginning.
        """
        bound = [name for name in self._modules if selector.startswith(f"{name}.")]
        if not bound:
            return selector
        name = max(bound, key=len)
        module, rest = self._modules[name], selector[len(name) + 1 :]
        if module.partition(".")[0] not in _OWN:
            return f"{module}.{rest}"
        return ".".join(rest.split(".")[-parts:])
