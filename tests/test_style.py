"""Words and docstrings: third-person verbs, the field's terms, no unpublished documents."""

import ast
import io
import pathlib
import re
import tokenize

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("ofa_jax", "tasks", "tools", "launch", "docs", "gin_configs")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
TEXTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(
        path
        for folder in FOLDERS
        for suffix in ("md", "gin", "sh")
        for path in (ROOT / folder).rglob(f"*.{suffix}")
    ),
]
# These hold the data's own texts, or old names as names.
DATA_TEXTS = ("ofa_jax/scenes/", "ofa_jax/preprocessing/prompts.py")
OLD_NAMES = ("ofa_jax/utils/renamed.py",)

MAX_MODULE_LINES, MAX_FUNCTION_LINES = 460, 80
"""Of a module; and of a function without its signature and docstring. Most have far less."""

# First words that look like a verb in the third person and are none.
NOUNS = {"Bins", "Boxes", "Codes", "Examples", "Images", "Ids", "Indices", "Its", "Losses", "Names"}
NOUNS |= {"Options", "Records", "Rows", "Shapes", "Steps", "This", "Values"}

# Words of this project's past -> the field's terms. Prose and names; see CONTRIBUTING.md.
BANNED = {
    r"pictures?": "image",
    r"judg(?:e|es|ed|ing|ement|ings)": "evaluate",
    r"lessons?": "stage",
    r"learned by heart": "overfits",
    r"handed[ _]over": "after_dispatch",
    r"side_by_side": "pack_streams",
    r"taken_apart": "unpack_streams",
    r"open_tasks": "load_tasks",
    r"only_answers": "restrict_to_candidates",
    r"answerers?": "decoder",
    r"askers?": "job",
    r"the original(?! (?:image|size|file|record|order|text|pixels))": "the official code",
    r"original's": "official",
    r"coin(?:'s throw)?": "chance",
    r"a twin|twins?": "counterpart",
}
# What a reader of this repository cannot look up.
UNPUBLISHED = (
    r"(?:of|in) the spec\b",
    r"\bDESIGN\b",
    r"\bSTACK\.md",
    r"\bSTYLE\.md",
    r"RENAMES\.md",
)
MACHINE_PATHS = (r"/(?:work|root)/", r"/home/\w+")


def relative(path):
    return str(path.relative_to(ROOT))


def functions(tree):
    """Yields the functions of a module that are no properties."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
            if not any(name.endswith(("property", "overload")) for name in decorators):
                yield node


def prose_and_names(path):
    """Returns what a style applies to, without the data texts of modules that have some."""
    text = path.read_text()
    if path.suffix != ".py" or not relative(path).startswith(DATA_TEXTS):
        return text
    documentation = {
        node.body[0].lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and ast.get_docstring(node) is not None
    }
    kept = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.NAME) or token.start[0] in documentation:
            kept.append(token.string)
    # Examples of data are quoted.
    return re.sub(r"`[^`]*`|\"[^\"\n]*\"", "", "\n".join(kept).replace('"""', ""))


def test_docstrings_of_functions_begin_with_a_verb_in_the_third_person():
    wrong = []
    for path in SOURCES:
        for node in functions(ast.parse(path.read_text())):
            documentation = ast.get_docstring(node)
            if documentation is None:
                continue
            first = documentation.split()[0].rstrip(",;")
            if not re.fullmatch(r"[A-Z][a-z-]*s", first) or first in NOUNS:
                wrong.append(f"{relative(path)}:{node.lineno} {node.name}: {first}")
    assert not wrong, "\n".join(wrong)


def body_lines(node):
    """Returns how many lines a function has after its signature and docstring."""
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        return node.end_lineno - first.end_lineno
    return node.end_lineno - first.lineno + 1


def test_modules_and_functions_can_be_kept_in_mind():
    wrong = []
    for path in SOURCES:
        text = path.read_text()
        if (lines := len(text.splitlines())) > MAX_MODULE_LINES:
            wrong.append(f"{relative(path)} has {lines} lines: split it by its ideas")
        for node in functions(ast.parse(text)):
            if (lines := body_lines(node)) > MAX_FUNCTION_LINES:
                wrong.append(f"{relative(path)}:{node.lineno} {node.name} has {lines} lines")
    assert not wrong, "\n".join(wrong)


def test_a_command_in_a_docstring_keeps_its_lines():
    wrong = []
    for path in SOURCES:
        documentation = ast.get_docstring(ast.parse(path.read_text())) or ""
        # Without r before the quotes, a backslash at the end of a line joins it to the next.
        if any(len(line) > 100 for line in documentation.splitlines()):
            wrong.append(relative(path))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("word", BANNED)
def test_the_fields_terms_are_used(word):
    pattern = re.compile(rf"(?<![A-Za-z0-9-]){word}(?![A-Za-z0-9])", re.I)
    wrong = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in [*SOURCES, *TEXTS]
        if relative(path) not in OLD_NAMES
        for number, line in enumerate(prose_and_names(path).splitlines(), 1)
        if pattern.search(line)
    ]
    assert not wrong, f"write {BANNED[word]}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("pattern", [*UNPUBLISHED, *MACHINE_PATHS])
def test_nothing_refers_to_what_a_reader_does_not_have(pattern):
    wrong = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in [*SOURCES, *TEXTS]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not wrong, "\n".join(wrong)
