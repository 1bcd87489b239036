"""Recognises files that follow another convention than plain TSV: CSV, quoted cells, Latin-1.

The files are read as they are, since a caption may well be in quotes; a warning names, once, what
seems to be meant otherwise.
"""

from collections.abc import Sequence

from ofa_jax.data.sources.tsv_file import InvalidLineError, OpenTsv

_MAX_LINES = 100
_MAX_BYTES = 4 << 20
_SEPARATORS = {b",": "commas", b";": "semicolons", b"|": "vertical bars"}


def describe_conventions(opened: OpenTsv) -> list[str]:
    """Returns a sentence for each sign of another convention in the first lines of a file."""
    lines = _first_lines(opened)
    found = [_separator(opened, lines), _quotes(opened, lines), _encoding(opened, lines)]
    return [sentence for sentence in found if sentence]


def _first_lines(opened: OpenTsv) -> list[bytes]:
    lines: list[bytes] = []
    left = _MAX_BYTES
    for number in range(min(_MAX_LINES, len(opened))):
        try:
            lines.append(opened.line(number))
        except InvalidLineError:
            continue
        left -= len(lines[-1])
        if left < 0:
            break
    return lines


def _separator(opened: OpenTsv, lines: Sequence[bytes]) -> str:
    """Says that columns are separated by something else, if no line has a tab."""
    if opened.num_columns > 1 or any(b"\t" in line for line in lines):
        return ""
    for separator, name in _SEPARATORS.items():
        counts = {line.count(separator) for line in lines}
        if len(counts) == 1 and counts != {0}:
            return (
                f"The columns of {opened.path} seem to be separated by {name}: write it with "
                "tabs between them."
            )
    return ""


def _quotes(opened: OpenTsv, lines: Sequence[bytes]) -> str:
    """Says that cells are quoted, as spreadsheets and CSV writers do."""
    cells = [line.split(b"\t") for line in lines]
    for number, line in enumerate(cells):
        for cell in line:
            if _is_escaped(cell):
                return _quoted(opened, number)
    for column in range(opened.num_columns):
        values = [line[column] for line in cells if len(line) > column and line[column]]
        if len(values) > 1 and all(_is_quoted(value) for value in values):
            return _quoted(opened, 0)
    return ""


def _is_quoted(cell: bytes) -> bool:
    return len(cell) > 1 and cell[:1] == cell[-1:] == b'"'


def _is_escaped(cell: bytes) -> bool:
    """Returns whether a cell is in quotes and has its own quotes doubled."""
    inner = cell[1:-1]
    return _is_quoted(cell) and b'""' in inner and b'"' not in inner.replace(b'""', b"")


def _quoted(opened: OpenTsv, number: int) -> str:
    return (
        f"{opened.path}, line {opened.line_number(number)}: a column is in quotes, as spreadsheets "
        "write it; the quotes are read as part of the text: write the file without quoting if "
        "they are none."
    )


def _encoding(opened: OpenTsv, lines: Sequence[bytes]) -> str:
    """Says that the text is not UTF-8."""
    for number, line in enumerate(lines):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            return (
                f"{opened.path}, line {opened.line_number(number)}: the text is not UTF-8, perhaps "
                "Latin-1 or Windows-1252: convert the file with `iconv --from-code=WINDOWS-1252 "
                "--to-code=UTF-8`."
            )
    return ""
