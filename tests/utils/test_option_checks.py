"""One sentence for every value that an option cannot take, from the option's annotation."""

import dataclasses
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_jax.utils import option_checks, options
from ofa_jax.utils.option_checks import OptionError, Result, check_option, checked
from ofa_jax.utils.option_text import describe, show


class Source(Protocol):
    """What has records."""

    @property
    def size(self) -> int:
        """Returns their number."""

    def __len__(self) -> int: ...


class Records:
    @property
    def size(self):
        raise AssertionError("properties are not computed by a check")

    def __len__(self):
        return 1


@checked
@dataclasses.dataclass(frozen=True)
class Inner:
    """Options of a part."""

    width: options.Count = 1


@checked
@dataclasses.dataclass(frozen=True)
class Config:
    """One option of each kind."""

    count: options.Count = 1
    rate: options.Rate = 0.0
    power: options.Positive = 1.0
    limit: options.Seconds | None = None
    endless: Annotated[float, options.MayBeInfinite()] = 0.0
    flag: bool = False
    text: str = ""
    path: options.Path = "x"
    method: Annotated[str, options.OneOf(("beam", "sample"))] = "beam"
    mode: Literal["fast", "slow"] = "fast"
    names: Sequence[str] = ()
    one_or_more: str | Sequence[str] | None = None
    pair: tuple[int, int] | None = None
    lengths: Mapping[str, options.Count] = dataclasses.field(default_factory=dict)
    options_: Annotated[Mapping[str, Any], options.FieldsOf(Inner)] = dataclasses.field(
        default_factory=dict
    )
    inner: Inner | None = None
    source: Source | None = None
    function: Callable[[int], int] | None = None
    anything: Any = None


GOOD = {
    "count": [1, np.int64(3), 2**31 - 1],
    "rate": [0, 0.5, np.float32(0.25)],
    "power": [3, 1e-30],
    "limit": [None, 1],
    "endless": [math.inf, -math.inf],
    "flag": [True],
    "text": ["", "x"],
    "path": ["a b/ü", "gs://bucket/run"],
    "method": ["sample"],
    "mode": ["slow"],
    "names": [(), ["a"], ("a", "b")],
    "one_or_more": [None, "a", ["a"]],
    "pair": [None, (1, 2), [1, 2]],
    "lengths": [{}, {"a": 1}],
    "options_": [{}, {"width": 3}],
    "inner": [None, Inner()],
    "source": [None, Records()],
    "function": [None, len],
    "anything": [None, object(), "x"],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in GOOD.items() for v in vs])
def test_values_of_the_type_and_range_are_taken_as_they_are(name, value):
    assert getattr(Config(**{name: value}), name) is value


BAD = [
    ("count", 0, "Config.count is 0; it must be at least 1."),
    ("count", 2**31, "Config.count is 2147483648; it must be between 1 and 2147483647."),
    ("count", True, "Config.count is True; it must be a whole number."),
    ("count", 3.0, "Config.count is 3.0; it must be a whole number. Write 3."),
    ("count", "3", "Config.count is '3'; it must be a whole number. Write it without quotes."),
    ("count", None, "Config.count is None; it must be a whole number."),
    ("count", 10**5000, "Config.count is a number of thousands of digits; it must be between 1"),
    ("rate", 1, "Config.rate is 1; it must be at least 0 and below 1."),
    ("rate", math.nan, "Config.rate is nan; it must be a finite number."),
    ("power", 0.0, "Config.power is 0.0; it must be positive."),
    ("power", math.inf, "Config.power is inf; it must be a finite number."),
    ("power", 1e39, "Config.power is 1e+39; it must be a finite number."),
    ("power", 10**400, "it must be a finite number."),
    ("limit", -1, "Config.limit is -1; it must be above 0 and at most 1000000000, or None."),
    ("limit", "soon", "Config.limit is 'soon'; it must be a number or None."),
    ("endless", math.nan, "Config.endless is nan; it must be a finite number."),
    ("flag", 1, "Config.flag is 1; it must be True or False."),
    ("flag", "no", "Config.flag is 'no'; it must be True or False."),
    ("text", 3, "Config.text is 3; it must be a string."),
    ("text", b"x", "Config.text is b'x'; it must be a string."),
    ("path", " ", "Config.path is ' '; it must be text that is not empty"),
    ("path", "a\0b", "it must be a path in UTF-8 without NUL"),
    ("path", "a\udc80", "it must be a path in UTF-8 without NUL"),
    ("method", "baem", "Config.method is 'baem'; it must be one of beam, sample. Did you mean be"),
    ("mode", "fas", "it must be one of 'fast', 'slow'. Did you mean fast?"),
    ("names", "a", "Config.names is 'a'; it must be a list of strings. Write ['a'] for a single"),
    ("names", {"a": 1}, "Config.names is {'a': 1}; it must be a list of strings."),
    ("names", ["a", 3], "Config.names[1] is 3; it must be a string."),
    ("one_or_more", [3], "Config.one_or_more[0] is 3; it must be a string."),
    ("one_or_more", 3, "Config.one_or_more is 3; it must be a string or a list of strings or None"),
    ("pair", (1, 2, 3), "Config.pair is (1, 2, 3); it must be a list of 2 whole numbers, or None."),
    ("pair", "12", "Config.pair is '12'; it must be a list of 2 whole numbers or None."),
    ("pair", (1, None), "Config.pair[1] is None; it must be a whole number."),
    ("lengths", {"a": 0}, "Config.lengths['a'] is 0; it must be at least 1."),
    ("lengths", {3: 1}, "a key of Config.lengths is 3; it must be a string."),
    ("lengths", [("a", 1)], "it must be a dict from strings to whole numbers."),
    ("options_", {"widht": 1}, "Config.options_ names widht; known are width. Did you mean width?"),
    ("options_", {"width": "1"}, "Config.options_['width'] is '1'; it must be a whole number."),
    ("inner", Inner, "Config.inner is the class Inner; it must be an object of Inner or None. W"),
    ("inner", 3, "Config.inner is 3; it must be an object of Inner or None."),
    ("inner", Records(), "Config.inner is an object of the class Records; it must be an object"),
    ("source", "x", "Config.source is 'x'; it must be an object of Source or None."),
    ("source", Records, "Config.source is the class Records; it must be an object of Source"),
    ("source", Inner(), "Config.source is an object of the class Inner; it must be an object of"),
    ("function", 3, "Config.function is 3; it must be a function or None."),
]


@pytest.mark.parametrize(
    ("name", "value", "sentence"), BAD, ids=[f"{name}-{k}" for k, (name, *_) in enumerate(BAD)]
)
def test_other_values_are_refused_in_one_sentence(name, value, sentence):
    with pytest.raises(OptionError) as raised:
        Config(**{name: value})
    assert str(raised.value).startswith(sentence) or sentence in str(raised.value)
    assert " at 0x" not in str(raised.value)


def test_functions_are_checked_like_classes():
    @checked
    def build(steps: options.Count, *, names: Sequence[str] = (), **rest: Any) -> int:
        """Returns the steps."""
        return steps

    assert build(3, names=["a"], other=object()) == 3
    with pytest.raises(OptionError, match=r"^build.steps is 0; it must be at least 1\.$"):
        build(0)
    with pytest.raises(OptionError, match="^build.names is 'a'"):
        build(1, names="a")
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'steps'"):
        build()


def test_fields_of_a_class_are_checked_where_a_function_takes_any():
    def make(size: str, **overrides: Annotated[Any, options.FieldsOf(Inner)]) -> Inner: ...

    check_option(make, "width", 3)
    with pytest.raises(OptionError, match="^make.width is 0; it must be at least 1.$"):
        check_option(make, "width", 0)
    with pytest.raises(OptionError, match=r"^make has no parameter widht\. Did you mean width\?$"):
        check_option(make, "widht", 0)


def test_the_place_stands_beside_the_value():
    with pytest.raises(
        OptionError, match="; it must be at least 1. It is set in run.gin, line 3.$"
    ):
        check_option(Config, "count", 0, place="in run.gin, line 3")


@pytest.mark.parametrize(
    ("option", "result", "fits"),
    [
        ("inner", Result(Inner, "Inner"), True),
        ("inner", Result(Config, "Config"), False),
        ("inner", Result(Any, "f"), True),
        ("inner", Result(Inner, "Inner", called=False), False),
        ("inner", Result(Inner | None, "f"), True),
        ("count", Result(int, "f"), True),
        ("count", Result(str, "f"), False),
        ("power", Result(int, "f"), True),
        ("source", Result(Records, "Records"), True),
        ("source", Result(int, "f"), False),
        ("function", Result(Any, "f", called=False), True),
        ("anything", Result(Any, "f", called=False), True),
    ],
)
def test_what_a_reference_will_return_is_checked_by_its_annotation(option, result, fits):
    if fits:
        check_option(Config, option, result)
        return
    with pytest.raises(OptionError, match=f"^Config.{option} is @"):
        check_option(Config, option, result)


def test_checked_classes_can_be_pickled_copied_and_subclassed():
    @checked
    @dataclasses.dataclass(frozen=True)
    class Child(Config):
        extra: options.Count = 1

    assert pickle.loads(pickle.dumps(Inner(3))) == dataclasses.replace(Inner(1), width=3)
    with pytest.raises(OptionError, match="^Child.extra is 0"):
        Child(extra=0)
    with pytest.raises(OptionError, match="^Child.count is 0"):
        Child(count=0)


def test_annotations_in_words():
    hints = option_checks.type_hints(Config)
    assert describe(hints["count"]) == "a whole number, at least 1"
    assert describe(hints["limit"]) == "a number, above 0 and at most 1000000000, or None"
    assert describe(hints["method"]) == "one of beam, sample"
    assert describe(hints["names"]) == "a list of strings"
    assert describe(hints["pair"]) == "a list of 2 whole numbers, or None"
    assert describe(hints["lengths"]) == "a dict from strings to whole numbers, each at least 1"
    assert describe(hints["anything"]) == "any value"


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.sampled_from([Inner, Inner(), Records(), len, object()]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=5,
)


@given(name=st.sampled_from(sorted(GOOD)), value=_VALUES)
def test_any_value_is_taken_or_refused_by_name(name, value):
    try:
        Config(**{name: value})
    except OptionError as error:
        assert f"Config.{name}" in str(error) and len(str(error)) < 500
        assert "\n" not in str(error).replace(repr(value), "")


@given(_VALUES)
def test_values_are_shown_short_and_without_addresses(value):
    shown = show(value)
    assert " at 0x" not in shown and len(shown) < 1000


@pytest.mark.parametrize("value", [7, "a", [1], {"sizes": 1}])
def test_the_name_of_further_parameters_is_no_option(value):
    from ofa_jax.model.named_config import model_config

    with pytest.raises(OptionError, match="has no parameter"):
        check_option(model_config, "overrides", value)
