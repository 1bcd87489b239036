"""Finds and reads gin files: the project's own by short name, and old names as new ones.

`gin_lint` reads files with `read`, and `parse` hands gin what `read` returns, so that both see the
same names. Lines keep their numbers, so that messages give the right places.
"""

import ast
import dataclasses
import io
import pathlib
import stat
import tokenize
from collections.abc import Iterator, Sequence

import gin
from gin import config_parser

from ofa_jax.cli.errors import ConfigError
from ofa_jax.cli.gin_dynamic import ImportedNames
from ofa_jax.cli.gin_limits import check_import, enter
from ofa_jax.cli.gin_parser import NamedText, lines_of, place_of, statements
from ofa_jax.utils import renamed, text_files
from ofa_jax.utils.modules import find_module
from ofa_jax.utils.option_text import show
from ofa_jax.utils.renamed import COMMAND_LINE
from ofa_jax.utils.suggestions import nearest

__all__ = [
    "COMMAND_LINE",
    "GinText",
    "Renaming",
    "file_renamings",
    "find_file",
    "gin_configs_folder",
    "parse",
    "read",
    "translate",
]

_FOLDER = "gin_configs"
_MAX_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Renaming:
    """An old name in a gin file or on the command line.

    Attributes:
      old: as it was written, without scopes.
      new: what it is called now.
      where: the file and line, or the command line.
    """

    old: str
    new: str
    where: str


@dataclasses.dataclass(frozen=True)
class GinText:
    """Gin statements with new names.

    Attributes:
      text: the statements.
      renamings: the old names that stood in them.
      includes: rows of the `include` statements (first, last), counted from 0, and file names.
      import_rows: rows on which an `import` begins.
    """

    text: str
    renamings: tuple[Renaming, ...] = ()
    includes: tuple[tuple[int, int, str], ...] = ()
    import_rows: frozenset[int] = frozenset()


def gin_configs_folder() -> pathlib.Path:
    """Returns the folder of the project's gin files, in a checkout or in an installed package."""
    package = pathlib.Path(__file__).resolve().parent.parent
    installed = package / _FOLDER
    return installed if installed.is_dir() else package.parent / _FOLDER


def find_file(name: str, search_paths: Sequence[str], where: str = "") -> pathlib.Path:
    """Returns the gin file `name`, looked for as given, in `search_paths`, then in the project's.

    Args:
      name: e.g. "mine.gin", "runs/pretrain_scenes.gin" or "gin_configs/runs/pretrain_scenes.gin".
      search_paths: folders.
      where: the place of the `include` that names it, for the error.

    Raises:
      ConfigError: there is no such file, with the nearest gin file that exists; or it is a folder,
        a fifo or a device.
    """
    folder = gin_configs_folder()
    own = name.removeprefix(f"{_FOLDER}/")
    candidates = [pathlib.Path(directory) / name for directory in ("", *search_paths)]
    candidates += [folder / own, folder / renamed.GIN_FILES.get(own, own)]
    kinds = [_kind(path) for path in candidates]
    if "file" in kinds:
        return candidates[kinds.index("file")].resolve()
    place = f"{where}: " if where else ""
    for path, kind in zip(candidates, kinds, strict=True):
        if kind is not None:
            raise ConfigError(f"{place}{path} is {kind}, not a gin file: give a file.")
    known = [
        str(path.relative_to(directory))
        for directory in (*map(pathlib.Path, search_paths), folder.parent)
        for path in sorted(directory.glob(f"{_FOLDER}/**/*.gin")) + sorted(directory.glob("*.gin"))
    ]
    hint = nearest(name, known) or nearest(
        f"{_FOLDER}/{name}", [path for path in known if path.endswith(pathlib.Path(name).name)]
    )
    looked_in = [*map(pathlib.Path, search_paths), folder]
    places = ", ".join(str(path.resolve()) for path in looked_in)
    shown = show(name)[1:-1]
    raise ConfigError(f"{place}There is no gin file {shown} (looked in {places}).{hint}")


def _kind(path: pathlib.Path) -> str | None:
    """Returns "file", what else a path is, or None where there is nothing."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # also a name that is too long, or that has a NUL
        return None
    if stat.S_ISREG(mode):
        return "file"
    return "a folder" if stat.S_ISDIR(mode) else "a fifo or a device"


def file_renamings(name: str, path: pathlib.Path, where: str) -> tuple[Renaming, ...]:
    """Returns the renaming of a gin file that was found under its new name, if it was.

    Args:
      name: as it was given.
      path: what `find_file` returned for it.
      where: the place where the name stands.
    """
    new = renamed.GIN_FILES.get(name.removeprefix(f"{_FOLDER}/"))
    if new is None or path != gin_configs_folder() / new:
        return ()
    return (Renaming(name, new, where),)


def read(path: pathlib.Path) -> GinText:
    """Reads a gin file, with new names in place of old ones.

    Raises:
      ConfigError: it is too large, is not text in UTF-8, or has NUL characters.
    """
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise ConfigError(
            f"{path} has {size:,} bytes; a gin file has at most {_MAX_BYTES:,}: is it another file?"
        )
    try:
        text = text_files.read_text(path)
    except text_files.DamagedFileError as error:
        raise ConfigError(str(error)) from error
    # Python's tokenizer takes a lone carriage return for the end of a line in some places only.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ConfigError(f"{path}, line {line}: there is a NUL character: is it a gin file?")
    return translate(text, str(path))


def translate(text: str, origin: str) -> GinText:
    """Replaces the old names in gin statements.

    Names are replaced where gin reads them as names: what a binding binds, what `@` refers to, the
    modules of `import`, and strings in the values of a few parameters (`renamed.GIN_STRINGS`).
    Comments and other strings stay. Names in the form of dynamic registration become short ones,
    see `gin_dynamic`.

    Args:
      text: a gin file, or a binding of the command line.
      origin: the file's name, or COMMAND_LINE; for the places.

    Returns:
      The text, with as many lines. Text that is not gin is returned as it is: gin says why.
    """
    translator = _Translator(origin)
    try:
        for line in _logical_lines(text):
            translator.add(line)
    except (tokenize.TokenError, SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return GinText(text)
    return GinText(
        translator.apply(text),
        tuple(translator.renamings),
        tuple(translator.includes),
        frozenset(translator.import_rows),
    )


def _logical_lines(text: str) -> Iterator[list[tokenize.TokenInfo]]:
    """Yields the tokens of each statement, or of a line of a block; indentation is a token."""
    line: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL):
            continue
        if token.type in (tokenize.NEWLINE, tokenize.ENDMARKER):
            if line:
                yield line
            line = []
        else:
            line.append(token)


class _Translator:
    """Collects the edits of one text, statement by statement."""

    def __init__(self, origin: str):
        self._origin = origin
        self._edits: list[tuple[tokenize.TokenInfo, tokenize.TokenInfo, str]] = []
        self._block: str | None = None  # the configurable of an indented block
        self._imported = ImportedNames()
        self.renamings: list[Renaming] = []
        self.includes: list[tuple[int, int, str]] = []
        self.import_rows: set[int] = set()

    def add(self, line: list[tokenize.TokenInfo]) -> None:
        """Translates a statement."""
        while line and line[0].type in (tokenize.INDENT, tokenize.DEDENT):
            if line[0].type == tokenize.DEDENT:
                self._block = None
            line = line[1:]
        selector, rest = _take_selector(line)
        if not selector or not rest:
            return
        word = "".join(token.string for token in selector)
        if word == "include" and rest[0].type == tokenize.STRING:
            name = "".join(_string(token) for token in rest if token.type == tokenize.STRING)
            self.includes.append((line[0].start[0] - 1, line[-1].end[0] - 1, name))
        elif word in ("import", "from"):
            self.import_rows.add(line[0].start[0] - 1)
            if self._imported.add(line):
                self._edit(line, "")
            elif word == "import":
                self._translate_import(line[1:])
        elif rest[0].string == "=":
            parameter = self._translate_key(selector, word)
            self._translate_value(rest[1:], parameter)
        elif rest[0].string == ":":
            self._block = self._translate_reference(selector)

    def _translate_import(self, line: list[tokenize.TokenInfo]) -> None:
        name, _ = _take_selector(line)
        module = "".join(token.string for token in name)
        found = find_module(module)
        if found != module:
            self._edit(name, found)
            if module in renamed.MODULES:
                self._note(name[0], module, renamed.current_module(module))

    def _translate_key(self, name: list[tokenize.TokenInfo], key: str) -> str:
        """Translates what a statement binds; returns `configurable.parameter` under new names."""
        scope, slash, selector = key.rpartition("/")
        if self._block is not None:
            selector = short = f"{self._block}.{selector}"
        else:
            short = self._imported.shorten(selector, 2)
        configurable, _, parameter = short.rpartition(".")
        if not configurable:
            return ""  # a macro
        new, new_parameter = renamed.current_gin_name(configurable, parameter)
        if (new, new_parameter) != (configurable, parameter):
            bound = new_parameter if self._block else f"{scope}{slash}{new}.{new_parameter}"
            self._edit(name, bound)
            self._note(name[0], short, f"{new}.{new_parameter}")
        elif short != selector:
            self._edit(name, f"{scope}{slash}{short}")
        return f"{new.rpartition('.')[2]}.{new_parameter}"

    def _translate_value(self, value: list[tokenize.TokenInfo], parameter: str) -> None:
        strings = renamed.GIN_STRINGS.get(parameter, {})
        while value:
            if value[0].string == "@":
                name, value = _take_selector(value[1:])
                self._translate_reference(name)
                continue
            if value[0].type == tokenize.STRING and (old := _string(value[0])) in strings:
                self._edit(value[:1], repr(strings[old]))
                self._note(value[0], repr(old), repr(strings[old]))
            value = value[1:]

    def _translate_reference(self, name: list[tokenize.TokenInfo]) -> str:
        """Translates a configurable's name; returns it without scopes, under its new name."""
        scope, slash, selector = "".join(token.string for token in name).rpartition("/")
        short = self._imported.shorten(selector, 1)
        new, _ = renamed.current_gin_name(short)
        if new != selector:
            self._edit(name, f"{scope}{slash}{new}")
        if new != short:
            self._note(name[0], short, new)
        return new

    def _edit(self, tokens: list[tokenize.TokenInfo], new: str) -> None:
        self._edits.append((tokens[0], tokens[-1], new))

    def _note(self, token: tokenize.TokenInfo, old: str, new: str) -> None:
        where = self._origin
        if where != COMMAND_LINE:
            where = f"{where}, line {token.start[0]}"
        self.renamings.append(Renaming(old, new, where))

    def apply(self, text: str) -> str:
        """Returns the text with all edits; each lies within a line."""
        lines = lines_of(text)
        for first, last, new in reversed(self._edits):
            row = first.start[0] - 1
            line = lines[row]
            lines[row] = line[: first.start[1]] + new + line[last.end[1] :]
        return "".join(lines)


def _take_selector(
    tokens: list[tokenize.TokenInfo],
) -> tuple[list[tokenize.TokenInfo], list[tokenize.TokenInfo]]:
    """Splits off the names, dots and slashes at the beginning that stand without spaces."""
    count = 0
    for token in tokens:
        if token.type != tokenize.NAME and token.string not in (".", "/"):
            break
        if count and token.start != tokens[count - 1].end:
            break
        count += 1
    return tokens[:count], tokens[count:]


def _string(token: tokenize.TokenInfo) -> str:
    return ast.literal_eval(token.string)


def parse(
    path: pathlib.Path,
    search_paths: Sequence[str],
    skip_unknown: bool | Sequence[str] = False,
    allowed: Sequence[str] = (),
    trail: Sequence[pathlib.Path] = (),
) -> None:
    """Configures gin from a file, as `gin.parse_config_file` does, with new names for old ones.

    Args:
      path: the file.
      search_paths: where the files that it includes are looked up, see `find_file`.
      skip_unknown: as for gin.
      allowed: modules that it may import, see `modules.may_import`.
      trail: the files that include it.

    Raises:
      ConfigError: it cannot be read, imports what it may not, or includes a file that is missing
        or includes itself.
    """
    trail = enter(path, trail, str(path))
    content = read(path)
    for statement in statements(content.text, str(path)):
        if isinstance(statement, config_parser.ImportStatement):
            check_import(statement, allowed)
    lines = lines_of(content.text)
    start = 0
    for first, last, name in (*content.includes, (len(lines), len(lines), "")):
        # gin looks up includes its own way, so it gets what stands between them, on the same rows.
        # Imports hold for the rest of a file.
        kept = [
            line if row >= start or row in content.import_rows else "\n"
            for row, line in enumerate(lines[:first])
        ]
        gin.parse_config(NamedText("".join(kept), str(path)), skip_unknown)
        if name:
            found = find_file(name, search_paths, place_of(str(path), first + 1))
            parse(found, search_paths, skip_unknown, allowed, trail)
        start = last + 1
