"""Random changes of zip archives and of pickles that keep most of their structure."""

import io
import pickletools
import random
import zipfile

from hostile_checkpoints import integer, storage, tensor, text

from fuzz import mutations

_GLOBALS = (
    ("torch", "BFloat16Storage"), ("torch", "FloatStorage"), ("torch", "LongStorage"),
    ("argparse", "Namespace"), ("collections", "OrderedDict"), ("collections", "defaultdict"),
    ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"),
    ("torch", "device"), ("torch", "Size"), ("torch", "bfloat16"), ("builtins", "set"),
    ("__builtin__", "set"), ("builtins", "list"), ("builtins", "dict"), ("builtins", "int"),
    ("_codecs", "encode"), ("numpy", "dtype"), ("numpy.core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("typing", "Any"),
    ("copyreg", "_reconstructor"), ("omegaconf.dictconfig", "DictConfig"),
    ("fairseq.meters", "AverageMeter"), ("fairseq.dataclass", "x"), ("builtins", "eval"),
    ("builtins", "getattr"), ("posix", "system"), ("subprocess", "Popen"), ("os", "system"),
    ("builtins", "__import__"), ("numpy.core.multiarray", "fromfile"), ("torch", "load"),
    ("omegaconf.__builtins__", "eval"), ("fairseq.dataclass.os", "system"),
)  # fmt: skip
_STATES = (
    b"N", b"}", b")", b"]", integer(7), text("a"), b"(" + integer(3) + text("=") + b"NNN"
    + integer(1000) + integer(1) + integer(0) + b"t", b"}" + text("__class__") + b"Ns",
    b"}" + text("args") + b"Ns", b"}" + text("items") + text("a") + b"s", b"N}\x86",
    b"}" + text("_content") + b"}s", b"}" + text("_val") + integer(10**30) + b"s",
)  # fmt: skip


def snippet(rng: random.Random) -> bytes:
    """Returns the pickle of one object that should not be there."""
    module, name = rng.choice(_GLOBALS)
    named = f"c{module}\n{name}\n".encode()
    if rng.random() < 0.3:
        named = text(module) + text(name) + b"\x93"
    state = rng.choice(_STATES)
    number = mutations.integer(rng) if rng.random() < 0.7 else rng.randrange(9)
    number = max(min(number, 2**1000), -(2**1000))
    return rng.choice(
        (
            named, named + state + b"b", named + b")R", named + b"(" + state + b"tR",
            named + b")\x81", named + b")\x81" + state + b"b", named + b")R" + state + b"b",
            named + b")R" + text("k") + text("v") + b"s", named + b")R" + integer(1) + b"a",
            named + b")R(" + text("a") + b"e", named + b"(" + state * 2 + b"tR",
            storage(number), storage(rng.randrange(9), kind=name if module == "torch" else "a"),
            tensor((number, 2), (2, 1)), tensor((2, 2), (number, 1)), tensor(offset=number),
            tensor(length=number), tensor(key=rng.choice(("9", "../data.pkl", "", "0/0"))),
            integer(number), b"J\xff\xff\xff\x7f", b"]" * 3_000, b"}}N" + b"s",
            b"X\xff\xff\xff\x7f", b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f",
            b"h\x63", b"(" + state, b"d", b"t", b"o", b"i__main__\nx\n", b"P1\n", b"\x82\x01",
            b"\x80\x7f", b".", b"0", b"1", b"\x95\x10\0\0\0\0\0\0\0", b"\x97", b"\x98", b"\x90",
        )
    )  # fmt: skip


def split_pickle(data: bytes) -> list[bytes]:
    """Splits a pickle into its instructions."""
    places = [place for _, _, place in pickletools.genops(data)]
    return [data[a:b] for a, b in zip(places, [*places[1:], len(data)], strict=True)]


def mutate_pickle(rng: random.Random, data: bytes) -> bytes:
    """Changes instructions of a pickle: deletes, doubles, moves, inserts or damages some."""
    parts = split_pickle(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(parts)) if parts else 0
        operation = rng.randrange(7)
        if operation <= 2 or not parts:
            parts.insert(place, snippet(rng) + rng.choice((b"", b"", b"0")))
        elif operation == 3:
            del parts[place]
        elif operation == 4:
            parts.insert(rng.randrange(len(parts)), parts[place])
        elif operation == 5:
            parts[place] = mutations.mutate_bytes(rng, parts[place])
        else:
            parts[place] = snippet(rng)
    return b"".join(parts)


def read_zip(data: bytes) -> dict[str, bytes]:
    """Returns the members of an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Returns an archive; a name may occur twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members:
            if any(name == info.filename for info in archive.infolist()):
                archive.NameToInfo.pop(name, None)  # no warning
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


def mutate_zip(rng: random.Random, data: bytes) -> bytes:
    """Changes an archive: renames, drops, doubles, damages, compresses or inflates members."""
    members = list(read_zip(data).items())
    for _ in range(rng.choice((1, 1, 2))):
        if not members:
            break
        place = rng.randrange(len(members))
        name, content = members[place]
        operation = rng.randrange(6)
        if operation == 0:
            del members[place]
        elif operation == 1:
            new = rng.choice(
                (f"../{name}", f"/{name}", f"{name}\0a", name.upper(), f"x/{name}", "")
            )
            members[place] = (new or "a", content)
        elif operation == 2:
            members.insert(rng.randrange(len(members)), members[place])
        elif operation == 3:
            members[place] = (name, b"")
        elif operation == 4:
            members[place] = (name, content + bytes(rng.choice((1, 100, 1 << 26))))
        else:
            members[place] = (name, mutations.mutate_bytes(rng, content))
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
    written = write_zip(members, rng.choice(methods))
    return written if rng.random() < 0.6 else damage_directory(rng, written)


def damage_directory(rng: random.Random, data: bytes) -> bytes:
    """Changes bytes of the headers of an archive."""
    changed = bytearray(data)
    marks = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06")
    places = [place for mark in marks for place in _find_all(data, mark)]
    for _ in range(rng.choice((1, 2, 4))):
        place = rng.choice(places) + rng.randrange(46)
        if place < len(changed):
            changed[place] = rng.choice((0, 1, 8, 99, 0xFF, rng.randrange(256)))
    return bytes(changed)


def _find_all(data: bytes, mark: bytes) -> list[int]:
    found, place = [], data.find(mark)
    while place >= 0:
        found.append(place)
        place = data.find(mark, place + 1)
    return found
