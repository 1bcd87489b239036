"""Reads safetensors files and Hugging Face folders as their writers meant; damage is refused."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_torch_file import WRITTEN, assert_equal

from ofa_jax.interop import (
    config_from_fairseq,
    files,
    from_fairseq,
    huggingface_folder,
    safetensors_file,
    torch_file,
)
from ofa_jax.interop.huggingface import args_from_huggingface
from ofa_jax.utils.text_files import DamagedFileError

NAMES = {np.dtype(dtype): name for name, dtype in safetensors_file._DTYPES.items()}


def encoded(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def saved(arrays):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        end = len(data) + array.nbytes
        offsets = [len(data), end]
        header[name] = {
            "dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": offsets
        }  # fmt: skip
        data += array.tobytes()
    return encoded(header, data)


def test_a_file_of_the_library_is_read(golden):
    loaded = safetensors_file.load(golden / "torch_file" / "tensors.safetensors")
    assert_equal({name: loaded[name] for name in WRITTEN}, WRITTEN)
    assert loaded["bfloat16"].dtype == ml_dtypes.bfloat16
    assert not any(array.flags.writeable for array in loaded.values() if array.size)


def entry(**changes):
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


EIGHT = bytes(8)
WRONG = {
    "short": (b"\x01\x02", "header is cut off"),
    "header beyond the file": (struct.pack("<Q", 2**63) + b"{}", "header is cut off"),
    "no JSON": (encoded(b'{"x": '), "not valid JSON"),
    "deep": (encoded(b"[" * 100_000), "not valid JSON"),
    "a list": (encoded(b"[1]"), "does not list tensors"),
    "a name twice": (encoded(b'{"a": 1, "a": 2}'), "not valid JSON"),
    "no entry": (encoded({"x": 3}), "says nothing of x"),
    "an unknown type": (encoded(entry(dtype="F8"), EIGHT), "the type F8"),
    "a type that is a list": (encoded(entry(dtype=["F32"]), EIGHT), "the type a list"),
    "a negative size": (encoded(entry(shape=[-2]), EIGHT), "whole numbers"),
    "a size of text": (encoded(entry(shape="2"), EIGHT), "whole numbers"),
    "a size of true": (encoded(entry(shape=[True]), EIGHT), "whole numbers"),
    "a size of a float": (encoded(entry(shape=[2.0]), EIGHT), "whole numbers"),
    "terabytes": (encoded(entry(shape=[2**60]), EIGHT), "absurd shape"),
    "nothing of absurd shape": (encoded(entry(shape=[0, 2**60]), EIGHT), "absurd shape"),
    "another size": (encoded(entry(shape=[3]), EIGHT), "another shape than its bytes"),
    "three offsets": (encoded(entry(data_offsets=[0, 8, 8]), EIGHT), "whole numbers"),
    "offsets beyond the end": (encoded(entry(data_offsets=[8, 16]), EIGHT), "does not begin"),
    "cut off": (encoded(entry(), bytes(7)), "have 8 bytes, and the file 7"),
    "more behind it": (encoded(entry(), bytes(9)), "have 8 bytes, and the file 9"),
    "overlap": (encoded(entry() | {"y": entry()["x"]}, EIGHT), "does not begin"),
}


@pytest.mark.parametrize("case", WRONG)
def test_damaged_files_are_refused_in_a_sentence(tmp_path, case):
    content, sentence = WRONG[case]
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(DamagedFileError, match=sentence) as raised:
        safetensors_file.load(tmp_path / "x.safetensors")
    assert "\n" not in str(raised.value)


@given(st.binary(max_size=80) | st.integers(0, 10**6))
def test_any_bytes_are_tensors_or_an_error(golden, tmp_path_factory, change):
    content = (golden / "torch_file" / "tensors.safetensors").read_bytes()
    if isinstance(change, int):
        place = change % len(content)
        content = content[:place] + bytes([change // 7 % 256]) + content[place + 1 :]
    else:
        content = struct.pack("<Q", len(change) // 2) + change
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(content)
    try:
        for array in safetensors_file.load(path).values():
            array.tobytes()
    except DamagedFileError as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def folder(official, tmp_path_factory):
    """Writes the small official model as a Hugging Face folder."""
    path = tmp_path_factory.mktemp("hf")
    files.write(path, official.variables, official.config, layout="huggingface")
    return path


def tensors(folder):
    return dict(torch_file.load(folder / "pytorch_model.bin"))


def with_config(folder, path):
    path.mkdir()
    (path / "config.json").write_bytes((folder / "config.json").read_bytes())
    return path


def assert_same_model(path, folder):
    assert files.is_official(path)
    read, expected = files.read(path), files.read(folder)
    assert read.config == expected.config
    assert read.state_dict.keys() == expected.state_dict.keys()
    for key, array in expected.state_dict.items():
        np.testing.assert_array_equal(read.state_dict[key], array)


def test_a_folder_with_safetensors_is_read(folder, tmp_path):
    path = with_config(folder, tmp_path / "other")
    (path / "model.safetensors").write_bytes(saved(tensors(folder)))
    assert_same_model(path, folder)
    assert_same_model(path / "model.safetensors", folder)


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_weights_in_several_files_are_read(folder, tmp_path, ending):
    path = with_config(folder, tmp_path / "other")
    arrays = tensors(folder)
    names = sorted(arrays)
    parts = {f"part-{k}-of-3.{ending}": {n: arrays[n] for n in names[k::3]} for k in range(3)}
    for name, part in parts.items():
        if ending == "bin":
            torch_file.save(path / name, part)
        else:
            (path / name).write_bytes(saved(part))
    weight_map = {key: name for name, part in parts.items() for key in part}
    stem = "pytorch_model.bin" if ending == "bin" else "model.safetensors"
    index = path / f"{stem}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_same_model(path, folder)
    (path / f"part-1-of-3.{ending}").unlink()
    with pytest.raises(FileNotFoundError, match=f"There is no part-1-of-3.{ending}, which .*index"):
        files.read(path)
    for wrong, sentence in (
        ({"weight_map": {"a": "../x.bin"}}, r"names \.\./x\.bin, which is no file of weights"),
        ({"weight_map": {"a": "/etc/passwd"}}, "names /etc/passwd, which is no file"),
        ({"weight_map": {"a": index.name}}, "which is no file of weights"),
        ({"weight_map": {"a": 3}}, "no weight_map"),
        ({"weight_map": {"nowhere": f"part-0-of-3.{ending}"}}, "lacks nowhere"),
        ([], "no weight_map"),
    ):
        index.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=sentence):
            files.read(path)


def test_what_a_folder_lacks_is_named(folder, tmp_path):
    path = with_config(folder, tmp_path / "other")
    (path / "flax_model.msgpack").write_bytes(b"x")
    assert files.is_official(path)
    with pytest.raises(FileNotFoundError, match=r"no weights .*\(it has config.json, flax_model"):
        files.read(path)
    (path / "model.safetensors").write_bytes(saved({"x": np.zeros(2, np.float32)}))
    with pytest.raises(ValueError, match=r"no encoder\.embed_tokens\.weight"):
        files.read(path)
    (path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no \S+config\.json, which describes the model"):
        files.read(path)


@pytest.mark.parametrize(
    "config, sentence",
    [("[]", "no JSON object"), ('"ofa"', "no JSON object"), ("{", "not valid JSON"), ("", "empty"),
     ("[" * 100_000, "nested too deeply"), ("{}", "must be"),
     ("version https://git-lfs.github.com/spec/v1", "pointer of Git LFS")],
)  # fmt: skip
def test_a_config_of_another_shape_is_refused(folder, tmp_path, config, sentence):
    path = with_config(folder, tmp_path / "other")
    (path / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes())
    (path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=sentence) as raised:
        files.read(path).config  # noqa: B018
    assert "\n" not in str(raised.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=3), parts),
    max_leaves=4,
)  # fmt: skip


@given(st.data())
def test_any_field_of_a_config_is_used_or_refused(folder, data):
    config = json.loads((folder / "config.json").read_text())
    name = data.draw(st.sampled_from(sorted(config)))
    config[name] = data.draw(json_values | st.sampled_from([10**9, -1, 0, 1e300, 10**30]))
    try:
        used = config_from_fairseq(args_from_huggingface(config), 401)
        from_fairseq(files.read(folder).state_dict, used)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000


def test_the_names_of_weights_are_those_of_the_folder(folder):
    assert huggingface_folder.find_weights(folder).name == files.WEIGHTS
