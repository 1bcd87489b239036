"""Hostile pickles: no live object is touched, nothing is allocated, every refusal is a sentence."""

import argparse
import collections
import encodings.cp437  # noqa: F401  zipfile loads it with the first archive
import io
import pickle
import struct
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_jax.interop import inert_pickle, torch_file


def integer(value):
    size = max(1, (value.bit_length() + 8) // 8)
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def text(value):
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def write(path, pickled, **members):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + pickled)
        for name, content in members.items():
            archive.writestr(f"archive/data/{name.removeprefix('_')}", content)
    return path


def process_state():
    """Everything of this process that a pickle of an allowed name could reach."""
    classes = (argparse.Namespace, collections.OrderedDict, collections.defaultdict, dict, list)
    return (
        [(np.dtype(t).itemsize, np.dtype(t).byteorder, np.dtype(t).names) for t in
         (ml_dtypes.bfloat16, np.float32, np.float16, np.int64, np.bool_)],
        [(cls, sorted(vars(cls)), cls.__bases__) for cls in classes],
        sorted(vars(torch_file)), sorted(vars(inert_pickle)), sorted(vars(np))[:50],
        len(sys.modules),
    )  # fmt: skip


NAMES = [
    ("torch", "BFloat16Storage"), ("torch", "FloatStorage"), ("torch", "bfloat16"),
    ("argparse", "Namespace"), ("collections", "OrderedDict"), ("collections", "defaultdict"),
    ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"),
    ("omegaconf.dictconfig", "DictConfig"), ("numpy", "dtype"), ("builtins", "dict"),
    ("typing", "Any"), ("copyreg", "_reconstructor"), ("_codecs", "encode"),
]  # fmt: skip
DTYPE_STATE = (
    b"(" + integer(3) + text("=") + b"NNN" + integer(1000) + integer(1) + integer(0) + b"t"
)
ATTRIBUTES = b"}(" + text("__eq__") + b"N" + text("encoder_layers") + b"K\x07u"


@pytest.mark.parametrize("state", [DTYPE_STATE, ATTRIBUTES, b"N", b"(N" + ATTRIBUTES + b"t"])
@pytest.mark.parametrize("module, name", NAMES)
def test_the_state_of_a_name_is_never_set(tmp_path, module, name, state):
    """BUILD on torch.BFloat16Storage once changed numpy's bfloat16 for the whole process."""
    before = process_state()
    path = write(tmp_path / "x.pt", named(module, name) + state + b"b.")
    with pytest.raises(ValueError, match=r"cannot be read: it sets the state of \S+ *\S*\. It is"):
        torch_file.load(path)
    assert process_state() == before
    x = np.ones(4, np.float32).astype(ml_dtypes.bfloat16)
    assert x.nbytes == 8 and x.astype(np.float32).sum() == 4


@pytest.mark.parametrize("module, name", NAMES)
@pytest.mark.parametrize(
    "operations",
    [b"K\x01a", b"(K\x01K\x02e", b"K\x01K\x02s", b"(K\x01K\x02u", b"(K\x01\x90", b")R}b",
     b")\x81Nb", b")}\x92Nb", b"K\x05R", b"NR", b"}R", b"(K\x01K\x02tR", b"Q"],
)  # fmt: skip
def test_no_operation_reaches_what_a_name_stands_for(tmp_path, module, name, operations):
    before = process_state()
    path = write(tmp_path / "x.pt", named(module, name) + operations + b".")
    try:
        torch_file.load(path)
    except ValueError as error:
        assert "\n" not in str(error)
    assert process_state() == before


def test_only_values_of_our_own_are_on_the_stack():
    """Whatever an allowed name is, reading it gives a Name, and calling it a new value."""
    for module, name in NAMES:
        loaded = interpret(named(module, name) + b".")
        assert type(loaded) is inert_pickle.Name
        assert not hasattr(loaded, "__setstate__") and not hasattr(loaded, "__setitem__")


def interpret(pickled):
    return torch_file._Reader().interpret(io.BytesIO(pickled), None)


REFUSED = {
    "execution": (named("os", "system") + text("touch x") + b"\x85R.", "asks for os.system"),
    "dotted names": (named("argparse", "Namespace.__init__") + b".", "asks for argparse.Namesp"),
    "names made of values": (text("os") + text("system") + b"\x93.", "asks for os.system"),
    "names of other values": (b"K\x01K\x02\x93.", "a name that is not text"),
    "INST": (b"(ios\nsystem\n.", "uses INST"),
    "OBJ": (b"(" + named("argparse", "Namespace") + b"o.", "uses OBJ"),
    "extension registry": (b"\x82\x01.", "uses EXT1"),
    "persistent text": (b"Pkey\n.", "uses PERSID"),
    "buffers": (b"\x97.", "uses NEXT_BUFFER"),
    "a list as a key": (b"}]Ns.", "a key of a type"),
    "nested keys": (b"})\x85\x85Ns.", "a key of a type"),
    "an unhashable element": (b"\x8f(]\x90.", "a key of a type"),
    "calling a number": (b"K\x01)R.", "calls a value of type int"),
    "calling a record": (named("builtins", "int") + b")R)R.", "calls a value of type Record"),
    "appending to a tuple": (b")K\x01a.", "appends to a value of type tuple"),
    "popping the empty stack": (b"0.", "takes more values"),
    "popping below a mark": (b"K\x01(0000.", "takes more values"),
    "closing no mark": (b"t.", "closes a group"),
    "an unknown memo": (b"j\xff\xff\xff\xff.", "refers to a value"),
    "no end": (b"K\x01", "cut off or garbled"),
    "an absurd length": (b"X\xff\xff\xff\x7fab.", "cut off or garbled"),
    "an absurd length of 8 bytes": (b"\x8d" + b"\xff" * 8 + b".", "cut off or garbled"),
    "an absurd number": (b"\x8b\x00\x10\x00\x00" + b"\x7f" * 4096 + b".", "of absurd size"),
    "a negative length": (b"\x8b\xff\xff\xff\xff.", "cut off or garbled"),
    "numbers as text": (b"L1" + b"0" * 10000 + b"L\n.", "cut off or garbled"),
    "nothing": (b"", "cut off or garbled"),
    "an odd dictionary": (b"}(K\x01u.", "a key without a value"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_hostile_operations_are_refused_in_a_sentence(tmp_path, case):
    pickled, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence) as raised:
        torch_file.load(write(tmp_path / "x.pt", pickled))
    assert "\n" not in str(raised.value) and str(tmp_path / "x.pt") in str(raised.value)


def storage(kind="FloatStorage", key="0", length=b"K\x06", module="torch"):
    parts = text("storage") + named(module, kind) + text(key) + text("cpu") + length
    return b"(" + parts + b"tQ"


def tensor(reference=None, offset=b"K\x00", size=(6,), stride=(1,)):
    """Operations of a tensor; sizes and strides are numbers, or operations."""

    def shape(of):
        return of if isinstance(of, bytes) else b"(" + b"".join(map(integer, of)) + b"t"

    made = named("torch._utils", "_rebuild_tensor_v2") + b"(" + (reference or storage()) + offset
    return made + shape(size) + shape(stride) + b"\x89}tR"


SIX = np.arange(6, dtype=np.float32)
WRONG_TENSORS = {
    "beyond the storage": (tensor(size=(7,)), "reaches beyond"),
    "an offset beyond it": (tensor(offset=integer(6), size=(1,)), "reaches beyond"),
    "a negative offset": (tensor(offset=integer(-1)), "reaches beyond"),
    "a negative size": (tensor(size=(-6,)), "reaches beyond"),
    "negative sizes whose product is positive": (tensor(size=(-2, -3), stride=(3, 1)), "beyond"),
    "a negative stride": (tensor(stride=(-1,)), "reaches beyond"),
    "an overflowing size": (tensor(size=(2**63,)), "reaches beyond"),
    "an overflowing product": (tensor(size=(2**32, 2**32), stride=(0, 0)), "repeats its storage"),
    "an overflowing stride": (tensor(size=(2,), stride=(2**64,)), "reaches beyond"),
    "terabytes by a stride of zero": (tensor(size=(2**40,), stride=(0,)), "repeats its storage"),
    "nothing of absurd shape": (tensor(size=(0, 2**62), stride=(1, 1)), "repeats its storage"),
    "unequal lengths": (tensor(size=(2, 3)), "without a shape"),
    "a size of text": (tensor(size=b"(" + text("6") + b"t"), "not one of numbers"),
    "a size of a float": (tensor(size=b"(G" + struct.pack(">d", 6) + b"t"), "not one of numbers"),
    "a list as size": (tensor(size=b"]"), "without a shape"),
    "an offset of None": (tensor(offset=b"N"), "not one of numbers"),
    "100 dimensions": (tensor(size=(1,) * 100, stride=(1,) * 100), "not one of numbers"),
    "a tensor of text": (tensor(text("0")), "something else than a storage"),
    "no arguments": (named("torch._utils", "_rebuild_tensor_v2") + b")R", "something else than"),
    "a parameter of nothing": (named("torch._utils", "_rebuild_parameter") + b")R", "of nothing"),
    "a reference of text": (text("0") + b"Q", "reference of an unknown kind"),
    "a short reference": (b"(" + text("storage") + b"tQ", "reference of an unknown kind"),
    "a storage of another kind": (storage("Namespace", module="argparse"), "something else than"),
    "a number as kind": (b"(" + text("storage") + b"K\x01K\x02K\x03K\x04tQ", "something else than"),
    "a length of text": (storage(length=text("6")), "something else than"),
    "a length of True": (storage(length=b"\x88"), "something else than"),
    "a negative length": (storage(length=integer(-1)), "storage 0 that is cut off"),
    "a huge length": (storage(length=integer(2**70)), "storage 0 that is cut off"),
    "a length beyond its bytes": (storage(length=integer(7)), "storage 0 that is cut off"),
    "a storage that is not there": (storage(key="1"), "lacks the storage 1: it is damaged"),
    "a path as key": (storage(key="../data.pkl"), "lacks the storage ../data.pkl"),
    "a key that cannot be printed": (storage(key="a\nb"), r"lacks the storage a\\nb"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_tensors_stay_within_their_storages(tmp_path, case):
    pickled, sentence = WRONG_TENSORS[case]
    path = write(tmp_path / "x.pt", pickled + b".", _0=SIX.tobytes())
    with pytest.raises(ValueError, match=sentence) as raised:
        torch_file.load(path)
    assert "\n" not in str(raised.value)


def test_good_tensors_of_the_same_form_are_read(tmp_path):
    for part, expected in (
        (tensor(), SIX),
        (tensor(size=(2, 3), stride=(3, 1)), SIX.reshape(2, 3)),
        (tensor(size=(3, 2), stride=(1, 3)), SIX.reshape(2, 3).T),
        (tensor(offset=integer(2), size=(2,), stride=(2,)), SIX[2::2]),
        (tensor(size=(4, 6), stride=(0, 1)), np.broadcast_to(SIX, (4, 6))),
        (tensor(size=(), stride=()), SIX[0]),
        (tensor(size=(1, 2), stride=(2**61, 1)), SIX[None, :2]),
    ):
        loaded = torch_file.load(write(tmp_path / "x.pt", part + b".", _0=SIX.tobytes()))
        np.testing.assert_array_equal(loaded, expected)
        assert loaded.dtype == np.float32


def test_long_pickles_are_refused_before_they_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(inert_pickle, "MAX_OPERATIONS", 1000)
    with pytest.raises(ValueError, match="more than 1,000 operations"):
        torch_file.load(write(tmp_path / "x.pt", b"]" * 1000 + b"."))


def test_a_memo_of_any_number_allocates_nothing():
    assert interpret(b"K\x07r\xff\xff\xff\xff0j\xff\xff\xff\xff.") == 7


@pytest.mark.parametrize(
    "pickled",
    [b"]q\x00h\x00a.", b"}q\x00K\x01h\x00s.", b"]" + b"]a" * 500 + b".",
     # A list of two of the list before, fifty times: 2**50 values.
     b"]" + b"q\x000](h\x00h\x00e" * 50 + b".",
     named("omegaconf.nodes", "AnyNode") + b")\x81q\x00}" + text("_val") + b"h\x00sb."],
    ids=["list in itself", "dictionary in itself", "deep", "doubling", "record in itself"],
)  # fmt: skip
def test_values_that_refer_to_themselves_are_no_configuration(pickled):
    loaded = interpret(pickled if pickled.count(b"]") != 501 else b"]" * 500 + b"a" * 499 + b".")
    with pytest.raises(ValueError, match="too large, or refers to itself"):
        inert_pickle.plain(loaded)


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary(),
    lambda parts: st.lists(parts) | st.dictionaries(st.text() | st.integers(), parts)
    | st.lists(parts).map(tuple),
    max_leaves=20,
)  # fmt: skip


@given(plain_values, st.integers(2, 5))
def test_plain_values_are_read_as_pickle_reads_them(value, protocol):
    big = any(abs(x) >= 2**2048 for x in [value] if isinstance(x, int))
    # Protocol 2 has no bytes: it calls a function, which stays a record, or the class.
    calls = (b"_codecs\nencode", b"__builtin__\nbytes")
    if protocol == 2 and any(call in pickle.dumps(value, 2) for call in calls) or big:
        return
    assert interpret(pickle.dumps(value, protocol)) == value


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_an_error(data):
    try:
        interpret(data)
    except inert_pickle.ContentError as error:
        assert "\n" not in str(error)


operations = st.lists(
    st.sampled_from(
        [b"(", b"0", b"1", b"]", b"}", b")", b"\x8f", b"a", b"e", b"s", b"u", b"t", b"\x85",
         b"\x86", b"\x87", b"R", b"\x81", b"\x92", b"b", b"Q", b"N", b"\x88", b"K\x01",
         b"h\x00", b"q\x00", b"\x94", b"\x90", b"l", b"d", storage(), tensor(), text("state"),
         integer(2**70),
         *(named(*name) for name in NAMES)]
    ),
    max_size=30,
)  # fmt: skip


@given(operations)
def test_any_operations_are_a_value_or_an_error(parts):
    before = process_state()
    array = np.zeros(6, np.float32)
    found = torch_file.Storage(array, memoryview(array), None, "")
    try:
        value = torch_file._Reader().interpret(
            io.BytesIO(b"".join(parts) + b"."), lambda *_: found, with_tensors=True
        )
        inert_pickle.plain(value)
    except inert_pickle.ContentError as error:
        assert "\n" not in str(error)
    assert process_state() == before
