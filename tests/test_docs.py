"""README and docs: what they name exists, their commands parse, their code runs."""

import ast
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import gin
import numpy as np
import pytest
import small_flags
from PIL import Image
from run_fixtures import *  # noqa: F403  the fixtures of a small run

from ofa_jax.cli import gin_files, gin_lint, gin_registry
from ofa_jax.utils import renamed

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
}
# Files that runs make, and examples of a reader's own.
NOT_IN_THE_REPOSITORY = ("runs/pretrain_scenes/config.gin", "my_run.gin", "RUN.gin")


def blocks(page, language):
    """Returns the contents of the fenced blocks of a language, also of indented ones."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", PAGES[page], re.S | re.M)
    return [re.sub(rf"^{indent}", "", code, flags=re.M) for indent, code in found]


def commands(page):
    """Yields the commands of a page as lists of words."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                if words := shlex.split(part, comments=True):
                    yield words


ALL_COMMANDS = [(page, words) for page in PAGES for words in commands(page)]


def test_the_readme_is_short():
    assert len(README.split()) < 900


def test_the_figure_equals_the_output_of_its_script():
    spec = importlib.util.spec_from_file_location("draw", ROOT / "docs" / "draw_architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "architecture.svg").read_text() == module.draw(), (
        "run python docs/draw_architecture.py"
    )


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page):
    text = PAGES[page]
    named = re.findall(r"\b(?:ofa_jax|tasks|tools|tests|launch|gin_configs)/[\w./-]*\w", text)
    named += [f"gin_configs/{name}" for name in re.findall(r"--gin_file=(\w+/\w+\.gin)", text)]
    missing = [
        name
        for name in named
        if name.removeprefix("gin_configs/") not in NOT_IN_THE_REPOSITORY
        and not name.startswith("gin_configs/runs/pretrain_scenes/")
        and not name.startswith("gin_configs/gin_configs/")
        and not name.endswith("/SIZE.gin")
        and not (ROOT / name).exists()
    ]
    assert not missing


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[page]):
        if "://" not in target:
            assert (ROOT / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_modules_and_scripts_of_commands_exist(page):
    for words in commands(page):
        if "-m" in words and words[0].endswith(("python", "python3.11")):
            module = words[words.index("-m") + 1]
            assert module in ("venv", "pytest") or importlib.util.find_spec(module), words
        elif words[0] == "bash":
            assert (ROOT / words[1]).is_file(), words
        elif words[0].startswith("ofa-"):
            assert importlib.util.find_spec(f"ofa_jax.{words[0].removeprefix('ofa-')}"), words


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_valid_bash(page):
    for block in blocks(page, "bash"):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + block


@pytest.mark.parametrize("page", PAGES)
def test_python_code_parses(page):
    for code in blocks(page, "python"):
        ast.parse(code)


@pytest.fixture(scope="module")
def pages():
    """Returns the module that writes the generated pages."""
    path = ROOT / "docs" / "generate_pages.py"
    spec = importlib.util.spec_from_file_location("generate_pages", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_about_bad_input_lists_every_reason(pages):
    reasons = pages.declared_reasons()
    table = pages.reasons_table(reasons)
    for reason in reasons:
        if reason.name.startswith("test: "):
            continue
        assert reason.description.endswith("."), f"{reason.name}: describe it in a sentence"
        assert importlib.import_module(reason.declared_in), reason.name
        assert f"\n| {pages.cell(reason.name)} | {pages.cell(reason.description)} |" in table


def test_results_stand_behind_a_page_one_level_lower(pages):
    results = "# Measured\n\n## By type\n\n```bash\n# a comment\n```\n\ntext # no heading\n"
    assert pages.with_results("# Page\n\nHow.\n", results) == (
        "# Page\n\nHow.\n\n## Measured\n\n### By type\n\n```bash\n# a comment\n```\n\n"
        "text # no heading\n"
    )


@pytest.mark.parametrize("page", [page for page in PAGES if "--gin" in PAGES[page]])
def test_gin_files_and_parameters_of_commands_exist(page, pages):
    pages.configurables()  # registers them
    search_paths = [str(ROOT), str(ROOT / "gin_configs")]
    entry_points = {f"ofa-{name}" for name in ("train", "evaluate", "infer", "plan")}
    for words in commands(page):
        module = words[words.index("-m") + 1] if "-m" in words else words[0]
        program = module.replace("ofa_jax.", "ofa-")
        if program not in entry_points or "--gin_file=my_run.gin" in words:
            continue
        names = [word.partition("=")[2] for word in words if word.startswith("--gin_file=")]
        names = [
            name.replace("runs/pretrain_scenes/config.gin", "runs/pretrain_scenes.gin")
            for name in names
        ]
        bindings = [
            word.removeprefix("--gin.").replace("=", " = ", 1)
            for word in words
            if word.startswith("--gin.")
        ]
        gin_lint.check(
            [gin_files.find_file(name, search_paths) for name in names],
            bindings,
            search_paths,
            gin.get_configurable,
            gin_registry.names,
            # Planning needs neither data nor a place for the run.
            ("MODEL_DIR", "DATA_SET", "VOCABULARY") if program == "ofa-plan" else (),
        )


@pytest.mark.parametrize("table", ["GIN_NAMES", "GIN_FILES", "MODULES"])
def test_the_changelog_lists_all_renamed_things(table):
    changelog = (ROOT / "CHANGELOG.md").read_text()
    for old, new in getattr(renamed, table).items():
        assert f"`{old}`" in changelog and f"`{new}`" in changelog, (old, new)


# ---------------------------------------------------------------------------------- code that runs


def test_the_model_runs_as_shown():
    code = next(code for code in blocks("docs/getting_started.md", "python") if "OFA(" in code)
    result: dict = {}
    small = (
        "width=16, ffn_width=32, num_heads=2, encoder_layers=1, decoder_layers=1, resnet_width=4"
    )
    exec(code.replace("OFAConfig.tiny()", f"OFAConfig.tiny({small})"), result)
    assert result["logits"].shape == (1, 2, 59457) and result["logits"].dtype == np.float32


@pytest.fixture
def beside_a_run(run_directory, image, tmp_path, monkeypatch):
    """Returns a folder with a run and an image, under the names of the README."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "pretrain_scenes").symlink_to(run_directory)
    image.resize((480, 360)).save(tmp_path / "room.jpg")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", ["README.md", "docs/getting_started.md"])
def test_the_predictor_runs_as_shown(page, beside_a_run, capsys):
    code = next(code for code in blocks(page, "python") if "Predictor(" in code)
    exec(code, {})
    if "print(" in code:
        assert capsys.readouterr().out.count("\n") >= 5


@pytest.fixture
def own_data(tmp_path):
    """Returns the guide's folder: ten images with captions, and the two files that it shows."""
    page = PAGES["docs/guides/own_data.md"]
    (tmp_path / "my_data.py").write_text(blocks("docs/guides/own_data.md", "python")[0])
    (config,) = re.findall(r"^```\n(import my_data.*?)^```", page, re.S | re.M)
    (tmp_path / "my_run.gin").write_text(config)
    (quick,) = re.findall(r"^```\n(include 'gin_configs/models.*?)^```", page, re.S | re.M)
    (tmp_path / "quick.gin").write_text(quick)
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    captions = [f"a {color} apple on a table" for color in ("red", "green")] * 5
    lines = []
    for number, caption in enumerate(captions):
        name = f"images/{number}.jpg"
        pixels = rng.integers(0, 256, (90 + number, 120, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        lines.append(json.dumps({"image": name, "captions": [caption]}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    (tmp_path / "captions.txt").write_text("\n".join(captions))
    return tmp_path


def test_own_data_trains_as_shown(own_data):
    tokenizer, train = commands("docs/guides/own_data.md")
    assert train[0] == "PYTHONPATH=." and train[-1] == "--gin_file=my_run.gin"
    # The checkout takes the place of an installation.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((".", str(ROOT)))}
    for words in (tokenizer, [*train[1:], *small_flags.MODEL]):
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=own_data,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert (own_data / "runs" / "my_run" / "checkpoints" / "2").is_dir()


@pytest.mark.slow
def test_own_data_trains_without_any_code(own_data):
    page = PAGES["docs/guides/own_data.md"]
    found = re.findall(r"`python (-m (?:tools|ofa_jax)\.[^`]*)`", page)
    tokenizer, inspect, train, convert = map(shlex.split, found)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    small = ["--gin.TRAIN_STEPS=2", *small_flags.MODEL]
    for words in (tokenizer, inspect, [*train, *small], convert):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=own_data,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert (own_data / "runs" / "quick" / "checkpoints" / "2").is_dir()
    assert (own_data / "data" / "converted" / "vision_language" / "train").is_dir()
