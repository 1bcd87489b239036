"""Every option of everything that gin can configure refuses what it cannot be, by its name."""

import inspect
import math
import typing
from typing import Any

import gin
import pytest

from ofa_jax.cli import gin_registry
from ofa_jax.evaluation.build import build_evaluation
from ofa_jax.inference.build import INPUTS, build_job
from ofa_jax.model import OFAConfig
from ofa_jax.model.named_config import model_config
from ofa_jax.planning.programs import PlannedRun
from ofa_jax.preprocessing.downstream import DownstreamConfig
from ofa_jax.preprocessing.objective_config import ObjectiveConfig
from ofa_jax.training.build import build_run
from ofa_jax.utils import memory
from ofa_jax.utils.decode_options import DecodeOptions
from ofa_jax.utils.option_checks import OptionError, check_option, is_checked, type_hints

ENTRY_POINTS = {
    "train": build_run,
    "evaluate": build_evaluation,
    "infer": build_job,
    "plan": PlannedRun,
    "model_config": model_config,
    **INPUTS,
}
gin_registry.register(ENTRY_POINTS)
CONFIGURABLES = {
    name: inspect.unwrap(gin.get_configurable(name)) for name in gin_registry.names()
} | {cls.__name__: cls for cls in (OFAConfig, ObjectiveConfig, DownstreamConfig, DecodeOptions)}
CONFIGURABLES.pop("evaluated", None)


class _Other:
    """An object that is nothing an option could be."""


def kinds(hint) -> set[Any]:
    """Returns the types that an annotation allows at its outermost level."""
    while typing.get_origin(hint) is typing.Annotated:
        hint = hint.__origin__
    parts = typing.get_args(hint)
    if type(None) in parts or typing.get_origin(hint) in (typing.Union, type(int | str)):
        return set().union(*(kinds(part) for part in parts))
    return {hint}


OPTIONS = [
    (name, parameter)
    for name, function in CONFIGURABLES.items()
    for parameter, hint in type_hints(function).items()
    if Any not in kinds(hint)
]


def test_there_are_options_of_every_command():
    assert {name for name, _ in OPTIONS} > {"train", "evaluate", "infer", "plan", "Stream"}
    assert len(OPTIONS) > 200


IN_PYTHON = ENTRY_POINTS | gin_registry._FUNCTIONS
IN_PYTHON |= {name: one for name, one in CONFIGURABLES.items() if inspect.isclass(one)}


@pytest.mark.parametrize("name", CONFIGURABLES)
def test_everything_configurable_checks_its_options_in_python_too(name):
    assert is_checked(IN_PYTHON[name])


@pytest.mark.parametrize("name", CONFIGURABLES)
def test_every_parameter_has_an_annotation(name):
    function = CONFIGURABLES[name]
    parameters = set(inspect.signature(function).parameters) - {"self", "cls"}
    assert parameters <= set(type_hints(function)) | {"overrides"}


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_a_value_of_another_type_is_refused_by_the_name_of_the_option(name, option):
    allowed = kinds(type_hints(CONFIGURABLES[name])[option])
    wrong = [_Other(), _Other, b"x"]
    if type(None) not in allowed:
        wrong.append(None)
    if not {int, float, bool} & allowed:
        wrong.append(-3)
    if bool not in allowed:
        wrong.append(True)
    if not any(isinstance(kind, type) and issubclass(kind, str) for kind in allowed):
        wrong.append("some text")
    if {int, float} & allowed:
        wrong += [math.inf, -math.inf, math.nan, 10**400, -(10**400)]
    for value in wrong:
        if callable(value) and any("Callable" in str(kind) for kind in allowed):
            continue
        with pytest.raises(OptionError) as raised:
            check_option(CONFIGURABLES[name], option, value, name)
        assert f"{name}.{option}" in str(raised.value)
        assert " at 0x" not in str(raised.value) and "\n" not in str(raised.value)


# Numbers of any sign.
SIGNED = {
    ("DecodingConfig", "length_penalty"),
    ("DecodingConfig", "unk_penalty"),
    ("Partitioner", "data"),
    ("Partitioner", "fsdp"),
    ("Partitioner", "tensor"),
}
NUMBERS = [
    (name, option)
    for name, option in OPTIONS
    if {int, float} & kinds(type_hints(CONFIGURABLES[name])[option])
]


@pytest.mark.parametrize(("name", "option"), NUMBERS)
def test_no_number_may_be_negative_unless_it_has_a_meaning(name, option):
    for value in (-2, -(2**70), -0.5):
        if (name, option) in SIGNED and (value == -0.5 or "penalty" in option):
            continue
        with pytest.raises(OptionError, match=rf"{name}\.{option} is "):
            check_option(CONFIGURABLES[name], option, value, name)


@pytest.mark.parametrize(("name", "option"), NUMBERS)
def test_whole_numbers_have_an_upper_bound(name, option):
    if float not in kinds(type_hints(CONFIGURABLES[name])[option]):
        with pytest.raises(OptionError, match=rf"{name}\.{option} is "):
            check_option(CONFIGURABLES[name], option, 2**70, name)


PATHS = ("model_dir", "output_dir", "checkpoint", "checkpoint_path", "path", "bpe_dir")


@pytest.mark.parametrize(("name", "option"), [pair for pair in OPTIONS if pair[1] in PATHS])
def test_a_path_is_neither_empty_nor_impossible(name, option):
    for value in ("", "  ", "a\0b", "\udc80", "x" * 300, "x/" * 3000):
        with pytest.raises(OptionError, match=rf"{name}\.{option} is "):
            check_option(CONFIGURABLES[name], option, value, name)


def test_what_cannot_fit_is_refused_with_the_numbers():
    needs = {"parameters": 3 << 40, "batches": 5 << 30, "nothing": 0}
    with pytest.raises(ValueError) as raised:
        memory.check_fits_memory(needs, 24 << 30, "each device", "train.check_memory")
    assert str(raised.value) == (
        "This needs at least 3.0 TiB of memory on each device (parameters 3.0 TiB, batches 5.0 "
        "GiB), which has 24.0 GiB: make the model, the batch or the images smaller, or set "
        "train.check_memory = False if the estimate is wrong."
    )
    memory.check_fits_memory(needs, None, "each device", "x")
    memory.check_fits_memory(needs, 4 << 40, "each device", "x")
    assert memory.host_memory() > 1 << 30
    assert memory.format_bytes(10**30).endswith(" EiB") and memory.format_bytes(7) == "7 bytes"
