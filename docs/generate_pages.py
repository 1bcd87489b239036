"""Writes the pages of the documentation that follow from the code, while MkDocs builds it.

* `reference/configuration.md`: every class and function that gin can configure, with the types,
  ranges, defaults and docstrings of its parameters, from `ofa_jax.cli.gin_registry`;
* `api/`: a page for each package, filled in by mkdocstrings, and the navigation of these pages;
* `bad_input.md`: the reasons for which the code refuses, skips or changes input;
* `scenes.md`, `first_run.md`, `images.md` and `ablations.md`: copies of the pages in results, with
  their images;
* `unseen_tasks.md` and `scaling.md`: what is written by hand, and behind it results that exist.
"""

import importlib
import inspect
import pathlib
import pkgutil
import re
import sys
from collections.abc import Sequence

import mkdocs_gen_files

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

_REASONS = "<!-- reasons -->"
_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields|Example|Examples|Note):$", re.M)


# ------------------------------------------------------------------------- configuration reference


def configurables() -> dict[str, object]:
    """Returns everything that the entry points register with gin, by name."""
    import gin

    from ofa_jax.cli import gin_registry
    from ofa_jax.evaluation.build import build_evaluation
    from ofa_jax.inference.build import INPUTS, build_job
    from ofa_jax.model.named_config import model_config
    from ofa_jax.training.build import build_run

    entry_points = {
        "train": build_run,
        "evaluate": build_evaluation,
        "infer": build_job,
        "model_config": model_config,
        **INPUTS,
    }
    gin_registry.register(entry_points)
    return {name: inspect.unwrap(gin.get_configurable(name)) for name in gin_registry.names()}


def described(documentation: str) -> dict[str, str]:
    """Returns the descriptions under `Args:` and `Attributes:` of a Google docstring, by name."""
    found = {}
    parts = _SECTION.split(documentation)
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        if title not in ("Args", "Attributes"):
            continue
        for entry in re.split(r"\n  (?=\S)", body):
            names, colon, text = entry.strip().partition(":")
            if colon and re.fullmatch(r"[\w*, ]+", names):
                found |= {name.strip(" *"): " ".join(text.split()) for name in names.split(",")}
    return found


def introduction(documentation: str) -> str:
    """Returns what a docstring says before its first section."""
    return _SECTION.split(documentation)[0].strip()


def cell(text: str) -> str:
    """Returns the text with the pipes outside of code escaped, for a cell of a table."""
    parts = text.replace("\n", " ").split("`")
    return "`".join([part if i % 2 else part.replace("|", "\\|") for i, part in enumerate(parts)])


def allowed_values(function: object, parameter: inspect.Parameter) -> str:
    """Returns what a parameter can be, in words, as the checks of options have it."""
    from ofa_jax.utils.option_checks import type_hints
    from ofa_jax.utils.option_text import describe

    hint = type_hints(function).get(parameter.name, inspect.Parameter.empty)
    if hint is inspect.Parameter.empty or parameter.kind is parameter.VAR_KEYWORD:
        return ""
    return describe(hint)


def default(parameter: inspect.Parameter) -> str:
    """Returns a default as gin would write it."""
    if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
        return ""
    if parameter.default is inspect.Parameter.empty:
        return "required"
    if callable(parameter.default):
        return "a function"
    if "factory" in repr(parameter.default).lower():
        return "empty"
    return f"`{parameter.default!r}`"


def section(name: str, function: object) -> str:
    """Returns the description of one configurable."""
    documentation = inspect.getdoc(function) or ""
    if inspect.isclass(function):
        documentation += "\n\n" + inspect.cleandoc(function.__init__.__doc__ or "")
    descriptions = described(documentation)
    lines = [f"## {name}", "", introduction(documentation), ""]
    parameters = inspect.signature(function).parameters.values()
    if parameters:
        lines += ["| parameter | value | default | |", "| --- | --- | --- | --- |"]
    for parameter in parameters:
        shown = f"**{parameter.name}" if parameter.kind is parameter.VAR_KEYWORD else parameter.name
        row = [
            f"`{shown}`",
            allowed_values(function, parameter),
            default(parameter),
            descriptions.get(parameter.name, ""),
        ]
        lines.append(f"| {' | '.join(map(cell, row))} |")
    return "\n".join([*lines, ""])


def write_configuration() -> None:
    """Writes the page of everything that gin can configure."""
    found = configurables()
    order = ["train", "evaluate", "infer", "model_config", "train_image_tokenizer"]
    names = [name for name in order if name in found]
    names += sorted(found.keys() - set(names), key=str.lower)
    with mkdocs_gen_files.open("reference/configuration.md", "w") as page:
        page.write(
            "# Configuration reference\n\n"
            "Every class and function that gin can configure, as the code had it when this site "
            "was built. A value of another type or range is refused in one sentence before "
            "anything is built; floats are finite. Set a parameter with `NAME.PARAMETER = VALUE` "
            "in a gin file or `--gin.NAME.PARAMETER=VALUE` on the command line; refer to a "
            "configured object with "
            "`@NAME()`. The macros in capital letters (`MODEL_DIR`, `TRAIN_STEPS`) are those of "
            "the gin files, which set these parameters from them.\n\n"
        )
        for name in names:
            page.write(section(name, found[name]) + "\n")


# ------------------------------------------------------------------------------------- bad input


def declared_reasons() -> list:
    """Returns the reasons that any module of the library declares."""
    import ofa_jax
    from ofa_jax.utils import bad_input

    for module in pkgutil.walk_packages(ofa_jax.__path__, "ofa_jax."):
        if module.name.split(".")[1] not in ("tasks", "tools", "gin_configs", "t5x"):
            importlib.import_module(module.name)
    return list(bad_input.declared_reasons().values())


def reasons_table(reasons: Sequence) -> str:
    """Returns the reasons in Markdown, grouped by what is done."""
    from ofa_jax.utils import bad_input

    lines = []
    for treatment in bad_input.Treatment:
        chosen = sorted((r for r in reasons if r.treatment is treatment), key=lambda r: r.name)
        if chosen:
            lines += ["", f"### {treatment.value.capitalize()}", ""]
            lines += ["| reason | condition |", "| --- | --- |"]
            lines += [f"| {cell(r.name)} | {cell(r.description)} |" for r in chosen]
    return "\n".join([*lines, ""])


def write_bad_input() -> None:
    """Adds the declared reasons to the page about bad input."""
    text = (ROOT / "docs" / "bad_input.md").read_text().split(_REASONS)[0]
    with mkdocs_gen_files.open("bad_input.md", "w") as page:
        page.write(text + reasons_table(declared_reasons()))


# ----------------------------------------------------------------------------------------- the API


def public_modules() -> dict[str, list[str]]:
    """Returns the packages of ofa_jax, and the public modules of each."""
    packages: dict[str, list[str]] = {}
    for path in sorted((ROOT / "ofa_jax").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1].startswith("_") and parts[-1] != "__init__":
            continue
        is_package = parts[-1] == "__init__"
        package = ".".join(parts[:-1])
        packages.setdefault(package, [])
        packages[package].append(package if is_package else ".".join(parts))
    return packages


def write_api() -> None:
    """Writes a page for each package, and the navigation of these pages."""
    navigation = mkdocs_gen_files.Nav()
    for package, modules in public_modules().items():
        name = f"{package}.md"
        navigation[(package,)] = name
        with mkdocs_gen_files.open(f"api/{name}", "w") as page:
            page.write(f"# {package}\n\n")
            for module in sorted(modules, key=lambda module: (module != package, module)):
                page.write(f"::: {module}\n\n")
    with mkdocs_gen_files.open("api/SUMMARY.md", "w") as page:
        page.writelines(navigation.build_literate_nav())


# --------------------------------------------------------------------------------- Scenes results


def write_scenes() -> None:
    """Writes the pages of the results on Scenes."""
    from tools import ablation_pages, images_results

    own = [name for name in ("ablations.md", "ablations.svg") if (ROOT / "results" / name).exists()]
    for name in ("scenes.md", "first_run.md", *own):
        with mkdocs_gen_files.open(name, "w") as page:
            page.write((ROOT / "results" / name).read_text())
    if not own:
        with mkdocs_gen_files.open("ablations.md", "w") as page:
            page.write(ablation_pages.page([], ""))
    results = images_results.load(ROOT / "results" / "images.json")
    with mkdocs_gen_files.open("images.md", "w") as page:
        page.write(images_results.page(results))
    for path in sorted((ROOT / "results").glob("images_*.png")):
        with mkdocs_gen_files.open(path.name, "wb") as image:
            image.write(path.read_bytes())
    for page_name, name in (("unseen_tasks.md", "zero_shot"), ("scaling.md", "scaling")):
        measured, plot = (ROOT / "results" / f"{name}.{kind}" for kind in ("md", "svg"))
        if measured.exists():
            written = (ROOT / "docs" / page_name).read_text()
            with mkdocs_gen_files.open(page_name, "w") as page:
                page.write(with_results(written, measured.read_text()))
        if plot.exists():
            with mkdocs_gen_files.open(plot.name, "w") as image:
                image.write(plot.read_text())


def with_results(page: str, results: str) -> str:
    """Returns a page with a page of results behind it, whose headings are a level lower."""
    parts = re.split(r"^(```.*?^```)$", results, flags=re.S | re.M)
    parts[::2] = [re.sub(r"^(#+ )", r"#\1", part, flags=re.M) for part in parts[::2]]
    return page.rstrip() + "\n\n" + "".join(parts)


if __name__ != "generate_pages":  # a test imports the functions
    write_configuration()
    write_api()
    write_bad_input()
    write_scenes()
