"""Damaged and hostile files of torch's, in both formats: one sentence, and nothing is allocated."""

import argparse
import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_torch_file import WRITTEN, assert_equal

from ofa_jax.inference.loading import load_model
from ofa_jax.interop import files, inert_pickle, torch_file, vqgan_file
from ofa_jax.tokenizers.vocabulary import OFAVocabulary
from ofa_jax.utils.text_files import DamagedFileError
from tools import convert_checkpoint


@pytest.fixture(scope="module")
def whole(golden):
    return (golden / "torch_file" / "written_by_torch.pt").read_bytes()


def members(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def zipped(parts, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in parts:
            archive.writestr(name, content)
    return file.getvalue()


def refuse(path, content, sentence):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as raised:
        torch_file.load(path)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


def flipped(content, part, offset=0):
    """Flips a bit of a member, whose bytes are found by their content."""
    place = content.index(part) + offset
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_checksums_are_compared(whole, tmp_path):
    parts = dict(members(whole))
    storage = next(data for name, data in parts.items() if name.endswith("data/0"))
    refuse(tmp_path / "x.pt", flipped(whole, storage, 5), "the storage 0 differs from its checksum")
    pickled = next(data for name, data in parts.items() if name.endswith("data.pkl"))
    refuse(tmp_path / "x.pt", flipped(whole, pickled, 9), "data.pkl that differs from its checksum")


def test_only_what_is_used_is_compared(golden, tmp_path):
    """An optimizer's state is neither read nor compared when a model is taken."""
    described = json.loads((golden / "model_tiny" / "config.json").read_text())
    model = {"encoder.embed_tokens.weight": np.ones((4, 2), np.float32)}
    state = np.full(1000, 7.25, np.float32)
    torch_file.save(
        tmp_path / "x.pt",
        {"args": argparse.Namespace(**described["args"]), "model": model, "optimizer": [state]},
    )
    content = flipped((tmp_path / "x.pt").read_bytes(), state.tobytes())
    (tmp_path / "x.pt").write_bytes(content)
    assert files.read(tmp_path / "x.pt").state_dict.keys() == model.keys()
    refuse(tmp_path / "x.pt", content, "storage 1 differs from its checksum")
    content = flipped(content, model["encoder.embed_tokens.weight"].tobytes())
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(DamagedFileError, match="storage 0 differs from its checksum"):
        files.read(tmp_path / "x.pt")
    assert files.read(tmp_path / "x.pt", verify=False).args["encoder_layers"] == 2


def test_archives_of_others_are_refused(whole, tmp_path):
    parts = members(whole)
    root = parts[0][0].split("/")[0]
    path = tmp_path / "x.pt"
    refuse(path, zipped([*parts, ("b/data.pkl", b"")]), "more than one data.pkl")
    refuse(path, zipped([*parts, (f"{root}/constants.pkl", b"")]), "is a TorchScript program")
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = zipped([*parts, parts[-1]])
    refuse(path, twice, "two parts of the same name")
    big = [(name, b"big" if name.endswith("byteorder") else data) for name, data in parts]
    if big == parts:
        big.append((f"{root}/byteorder", b"big"))
    refuse(path, zipped(big), "written on a big-endian machine")
    refuse(path, zipped(parts, zipfile.ZIP_DEFLATED), "was compressed after torch wrote it")
    refuse(path, zipped(parts, zipfile.ZIP_LZMA), "in an unknown way")


def directory_of(content):
    return content.index(b"PK\x01\x02")


@pytest.mark.parametrize(
    "offset, value, sentence",
    [(8, b"\x01\x00", "is encrypted"),  # flags of the first entry
     (20, b"\xff\xff\xff\x7f", "is cut off"),  # its compressed size
     (42, b"\x40\x00\x00\x00", "overlap|in the place of")],  # its place
)  # fmt: skip
def test_directories_that_lie_are_refused(whole, tmp_path, offset, value, sentence):
    place = directory_of(whole) + offset
    refuse(tmp_path / "x.pt", whole[:place] + value + whole[place + len(value) :], sentence)


def test_a_bomb_is_not_inflated(tmp_path, monkeypatch):
    """64 MB of zeros in 64 kB, declared honestly, and a lie about the size."""
    content = zipped([("a/data.pkl", bytes(inert_pickle.MAX_BYTES + 1))], zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    try:
        refuse(tmp_path / "x.pt", content, r"data.pkl of 67,108,865 bytes")
        place = directory_of(content) + 24
        lying = content[:place] + struct.pack("<I", 10) + content[place + 4 :]
        refuse(tmp_path / "x.pt", lying, "differs from its checksum")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@given(st.integers(0, 10**9), st.integers(0, 255), st.booleans())
def test_any_damage_is_found_or_harmless(golden, tmp_path_factory, place, value, cut):
    for name in ("written_by_torch.pt", "legacy.pt", "protocol_4.pt"):
        content = (golden / "torch_file" / name).read_bytes()
        place %= len(content)
        path = tmp_path_factory.getbasetemp() / "mutated.pt"
        path.write_bytes(content[:place] + (b"" if cut else bytes([value]) + content[place + 1 :]))
        try:
            loaded = torch_file.load(path)
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 500
        else:
            # The older format has no checksums.
            if name != "legacy.pt":
                assert_equal(loaded["model"], WRITTEN)


def test_files_of_the_older_format_are_checked(golden, tmp_path):
    legacy = (golden / "torch_file" / "legacy.pt").read_bytes()
    path = tmp_path / "x.pth"
    refuse(path, legacy[:-1], "before 1.6, is cut off or garbled at the storage")
    refuse(path, legacy + b"x", "goes on behind its last storage")
    refuse(path, legacy[:40], "cut off or garbled")
    refuse(path, legacy.replace(b"little_endian", b"little_endiam"), "little-endian machine")


def test_other_files_are_refused_for_the_true_reason(tmp_path):
    path = tmp_path / "x.pt"
    for content, sentence in (
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>Not found</html>", "is a web page"),
        (b"\x1f\x8b\x08\x00", "is compressed with gzip: unpack it first"),
        (b"model" + bytes(252) + b"ustar\x0000", "is a tar archive: unpack it first"),
        (b"\x08" + bytes(7) + b'{"a": 1}', "is a safetensors file"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"just text", "is not a file that torch.save wrote"),
    ):
        refuse(path, content, sentence)
        with pytest.raises(DamagedFileError, match=sentence):
            vqgan_file.read(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="is not a regular file"):
        torch_file.load(path)


def test_an_optimizer_alone_is_named(tmp_path):
    torch_file.save(tmp_path / "x.pt", {"last_optimizer_state": {"a": np.zeros(2)}})
    with pytest.raises(ValueError, match="holds last_optimizer_state, the state of an optimiser"):
        files.read(tmp_path / "x.pt")


def test_vocabularies_of_other_checkpoints_are_named(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    (tmp_path / "dict.txt").write_text("a 1\n")
    with pytest.raises(ValueError, match=r"BERT's vocabulary \(vocab.txt\).*Chinese checkpoints"):
        OFAVocabulary.from_ofa_directory(str(tmp_path))
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="x.pt is empty"):
        load_model(str(tmp_path / "x.pt"), None, str(tmp_path / "vocab.txt"))
    other = tmp_path / "hf"
    other.mkdir()
    (other / "vocab.json").write_text("{}")
    (other / "merges.txt").write_text("")
    with pytest.raises(ValueError, match="vocab.json and merges.txt, in which Hugging Face"):
        OFAVocabulary.from_ofa_directory(str(other))


@pytest.mark.parametrize(
    "name, shape",
    [("encoder.conv_in.weight", ()), ("encoder.conv_in.weight", (0, 3, 3, 3)),
     ("quantize.embed.weight", (4,)), ("quantize.embed.weight", (4, 4, 4, 4)),
     ("encoder.down.0.block.0.conv1.weight", (4,))],
)  # fmt: skip
def test_a_vqgan_of_other_shapes_is_refused(golden, tmp_path, name, shape):
    with np.load(golden / "vqgan" / "state_dict_f16.npz") as stored:
        arrays = dict(stored)
    arrays[name] = np.zeros(shape, np.float32)
    torch_file.save(tmp_path / "x.ckpt", {"state_dict": arrays})
    with pytest.raises(ValueError, match=f"x.ckpt is not an official VQGAN: {name}"):
        vqgan_file.read(tmp_path / "x.ckpt")


def test_a_damaged_origin_is_refused(tmp_path):
    good = {"layout": "fairseq", "args": {}, "types": {"a": "bfloat16"}, "counters": {"b": 3}}
    path = tmp_path / "origin.json"
    path.write_text(json.dumps(good))
    assert files.read_origin(path) == good
    for change in (
        {"types": {"a": "O"}}, {"types": {"a": "S1000000000"}}, {"types": []}, {"args": None},
        {"counters": {"b": 1.5}}, {"counters": {"b": 2**80}}, {"layout": 3},
    ):  # fmt: skip
        path.write_text(json.dumps(good | change))
        with pytest.raises(ValueError):
            files.read_origin(path)


@pytest.mark.parametrize("layout", ["ours", "fairseq"])
def test_the_command_survives_a_pickle_that_once_corrupted_the_heap(golden, tmp_path, layout):
    """In a process of its own, which died; the state sets bfloat16's size of an item."""
    described = json.loads((golden / "model_tiny" / "config.json").read_text())
    with np.load(golden / "model_tiny" / "state_dict_f16.npz") as arrays:
        model = {name: arrays[name].astype(ml_dtypes.bfloat16) for name in arrays.files[:40]}
    good = tmp_path / "good.pt"
    torch_file.save(good, {"args": argparse.Namespace(**described["args"]), "model": model})
    state = b"(K\x03X\x01\x00\x00\x00=NNNK\x01K\x01K\x00tb0."
    parts = [
        (name, data[:-1] + b"ctorch\nBFloat16Storage\n" + state if "data.pkl" in name else data)
        for name, data in members(good.read_bytes())
    ]
    (tmp_path / "evil.pt").write_bytes(zipped(parts))
    done = subprocess.run(
        [sys.executable, "-m", "tools.convert_checkpoint", str(tmp_path / "evil.pt"),
         str(tmp_path / "out"), "--layout", layout],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.strip() == (
        f"error: {tmp_path / 'evil.pt'} cannot be read: it sets the state of torch.BFloat16Storage."
        " It is damaged, or torch did not write it."
    )
    assert sorted(os.listdir(tmp_path)) == ["evil.pt", "good.pt"]


def test_nothing_is_left_of_a_conversion_that_fails(golden, tmp_path, monkeypatch, official):
    files.write(tmp_path / "x.pt", official.variables, official.config)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert_checkpoint.storage, "write_model_config", fail)
    with pytest.raises(SystemExit):
        convert_checkpoint.main([str(tmp_path / "x.pt"), str(tmp_path / "out")])
    assert os.listdir(tmp_path) == ["x.pt"]
