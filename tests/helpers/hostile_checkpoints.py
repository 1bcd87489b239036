"""Small files that call themselves checkpoints, each of which must be refused in one sentence."""

import dataclasses
import io
import pickle
import struct
import zipfile
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class HostileCheckpoint:
    """A `.pt` file that is refused.

    Attributes:
      name: of the file.
      content: its bytes.
      mentions: what the sentence says, in any case of letters.
    """

    name: str
    content: bytes
    mentions: str = ""


def integer(number: int) -> bytes:
    """Returns the pickle of an integer of any size."""
    size = max(1, (number.bit_length() + 8) // 8)
    return b"\x8a" + bytes([size]) + number.to_bytes(size, "little", signed=True)


def text(value: str) -> bytes:
    """Returns the pickle of a text."""
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def storage(length: int = 4, key: str = "0", kind: str = "FloatStorage") -> bytes:
    """Returns the pickle of a reference to a storage of the archive."""
    name = b"ctorch\n" + kind.encode() + b"\n"
    return b"(" + text("storage") + name + text(key) + text("cpu") + integer(length) + b"tQ"


def tensor(
    size: tuple[int, ...] = (2, 2), stride: tuple[int, ...] = (2, 1), offset: int = 0, **of: object
) -> bytes:
    """Returns the pickle of a tensor."""
    sizes, strides = (b"(" + b"".join(map(integer, numbers)) + b"t" for numbers in (size, stride))
    rest = b"\x89ccollections\nOrderedDict\n)R"
    arguments = b"(" + storage(**of) + integer(offset) + sizes + strides + rest + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def state_dict(value: bytes) -> bytes:
    """Returns the pickle of {"model": {"a": value}}."""
    return b"\x80\x02}" + text("model") + b"}" + text("a") + value + b"ss."


def archive(
    pickled: bytes | None = None,
    storages: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
    root: str = "archive",
) -> bytes:
    """Returns a torch file with this pickle and these storages."""
    buffer = io.BytesIO()
    pickled = state_dict(tensor()) if pickled is None else pickled
    storages = {"0": np.arange(4, dtype=np.float32).tobytes()} if storages is None else storages
    with zipfile.ZipFile(buffer, "w", compression) as opened:
        opened.writestr(f"{root}/data.pkl", pickled)
        for key, content in storages.items():
            opened.writestr(f"{root}/data/{key}", content)
        opened.writestr(f"{root}/version", "3\n")
    return buffer.getvalue()


def hostile_checkpoints() -> Iterator[HostileCheckpoint]:
    """Yields all files."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"
    yield HostileCheckpoint("pointer.pt", pointer, "LFS")
    yield HostileCheckpoint("empty.pt", b"", "empty")
    legacy = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    yield HostileCheckpoint("legacy.pth", legacy)
    yield HostileCheckpoint("plain_pickle.pt", pickle.dumps({"model": {}}, 2))
    yield HostileCheckpoint("page.pt", b"<!DOCTYPE html><html>404</html>")
    yield HostileCheckpoint("text.pt", b"hello")
    yield from _pickles()
    yield from _tensors()
    yield from _archives()


def _pickles() -> Iterator[HostileCheckpoint]:
    """Yields pickles that call, change or exhaust something."""
    call = b"cposix\nsystem\n(" + text("touch executed") + b"tR"
    yield HostileCheckpoint("system.pt", archive(state_dict(call)), "system")
    evaluate = b"cbuiltins\neval\n(" + text("open('executed', 'w')") + b"tR"
    yield HostileCheckpoint("eval.pt", archive(state_dict(evaluate)), "eval")
    getattr_ = b"cbuiltins\ngetattr\n(" + storage() + text("tofile") + b"tR"
    yield HostileCheckpoint("getattr.pt", archive(state_dict(getattr_)), "getattr")
    stack = b"\x8c\x05torch\x8c\x0fserialization.x\x93"
    yield HostileCheckpoint("stack_global.pt", archive(state_dict(stack)), "torch")
    state = b"(" + integer(3) + text("=") + b"NNN" + integer(1000) + integer(1) + integer(0) + b"t"
    for kind in ("BFloat16Storage", "FloatStorage"):
        build = b"ctorch\n" + kind.encode() + b"\n" + state + b"b"
        yield HostileCheckpoint(f"build_{kind}.pt", archive(state_dict(build)))
    namespace = b"cargparse\nNamespace\n}" + text("__eq__") + b"Nsb"
    yield HostileCheckpoint("build_namespace.pt", archive(state_dict(namespace)))
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("__defaults__") + b"Nsb"
    yield HostileCheckpoint("build_function.pt", archive(state_dict(rebuild)))
    ordered = b"ccollections\nOrderedDict\n}" + text("get") + b"Nsb"
    yield HostileCheckpoint("build_class.pt", archive(state_dict(ordered)))
    deep = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    yield HostileCheckpoint("deep.pt", archive(deep))
    memo = b"\x80\x02" + b"Nr\xff\xff\xff\x7f."
    yield HostileCheckpoint("memo.pt", archive(memo))
    yield HostileCheckpoint("long_text.pt", archive(b"\x80\x02X\xff\xff\xff\x7fa."))
    yield HostileCheckpoint("no_stop.pt", archive(b"\x80\x02}"))
    yield HostileCheckpoint("protocol.pt", archive(b"\x80\xff."))
    yield HostileCheckpoint("extension.pt", archive(b"\x80\x02\x82\x01."))
    yield HostileCheckpoint("unhashable.pt", archive(b"\x80\x02}]Ns."))
    itself = b"\x80\x02}q\x00" + text("model") + b"h\x00s."
    yield HostileCheckpoint("itself.pt", archive(itself))
    yield HostileCheckpoint("number.pt", archive(b"\x80\x02" + integer(7) + b"."))
    yield HostileCheckpoint("no_model.pt", archive(b"\x80\x02}" + text("a") + b"Ns."))


def _tensors() -> Iterator[HostileCheckpoint]:
    """Yields tensors that do not fit their storages."""
    for name, pickled in {
        "beyond": tensor((3, 3), (3, 1)),
        "offset": tensor(offset=10**12),
        "negative_offset": tensor(offset=-1),
        "negative_stride": tensor(stride=(-2, 1)),
        "negative_size": tensor((-2, -2)),
        "huge_size": tensor((2**40, 2**40), (0, 0)),
        "zero_stride": tensor((10**9, 10**9), (0, 0)),
        "many_axes": tensor((1,) * 100, (1,) * 100),
        "ranks": tensor((2, 2), (1,)),
        "huge_storage": tensor(length=2**62),
        "negative_storage": tensor(length=-4),
        "no_storage": tensor(key="9"),
        "climbing": tensor(key="../../data.pkl"),
        "unknown_storage": tensor(kind="ComplexStorage"),
    }.items():
        yield HostileCheckpoint(f"tensor_{name}.pt", archive(state_dict(pickled)))
    words = b"ctorch._utils\n_rebuild_tensor_v2\n(" + text("a") * 6 + b"tR"
    yield HostileCheckpoint("tensor_of_words.pt", archive(state_dict(words)))
    few = b"ctorch._utils\n_rebuild_tensor_v2\n)R"
    yield HostileCheckpoint("tensor_of_nothing.pt", archive(state_dict(few)))
    reference = state_dict(b"(" + text("storage") + b"tQ")
    yield HostileCheckpoint("short_reference.pt", archive(reference))
    yield HostileCheckpoint("number_reference.pt", archive(state_dict(integer(7) + b"Q")))


def _archives() -> Iterator[HostileCheckpoint]:
    """Yields archives that are cut off, damaged, or inflate to gigabytes."""
    whole = archive()
    for share in (0.1, 0.5, 0.9, 0.99):
        yield HostileCheckpoint(f"cut_{share}.pt", whole[: int(len(whole) * share)])
    yield HostileCheckpoint("no_pickle.pt", whole.replace(b"data.pkl", b"data.pkx"))
    place = whole.index(np.arange(4, dtype=np.float32).tobytes())
    flipped = whole[: place + 5] + b"\xaa" + whole[place + 6 :]
    yield HostileCheckpoint("flipped_storage.pt", flipped)
    place = whole.index(b"model")
    yield HostileCheckpoint("flipped_pickle.pt", whole[:place] + b"M" + whole[place + 1 :])
    bomb = archive(state_dict(text("a")) + bytes(1 << 29), {}, zipfile.ZIP_DEFLATED)
    yield HostileCheckpoint("bomb.pt", bomb)
    inflated = archive(storages={"0": bytes(1 << 26)}, compression=zipfile.ZIP_DEFLATED)
    yield HostileCheckpoint("compressed_storage.pt", inflated)
    deflated = bytearray(archive(compression=zipfile.ZIP_DEFLATED))
    place = deflated.index(b"data.pkl") + len("data.pkl")
    deflated[place + 2 : place + 12] = b"\xff" * 10
    yield HostileCheckpoint("bad_deflate.pt", bytes(deflated))
    method = whole.replace(
        b"PK\x01\x02\x14\x03\x14\0\0\0\0\0", b"PK\x01\x02\x14\x03\x14\0\0\0\x63\0"
    )
    yield HostileCheckpoint("unknown_method.pt", method)
    secret = whole.replace(b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\x01\0")
    yield HostileCheckpoint("encrypted.pt", secret)
    two = io.BytesIO(whole)
    with zipfile.ZipFile(two, "a") as opened:
        opened.writestr("other/data.pkl", b"\x80\x02}.")
    yield HostileCheckpoint("two_pickles.pt", two.getvalue())
