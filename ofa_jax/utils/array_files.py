"""Reads `.npz` files whose content is not trusted: nothing is unpickled or allocated unseen."""

import io
import math
import zipfile
import zlib

import numpy as np
from etils import epath

from ofa_jax.utils.files import read_bytes
from ofa_jax.utils.text_files import DamagedFileError
from ofa_jax.utils.wrong_files import describe_bytes, shorten

_MAX_BYTES = 4 * 2**30
_ERRORS = (
    zipfile.BadZipFile, zlib.error, EOFError, ValueError, OverflowError, NotImplementedError,
    RuntimeError, OSError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError,
)  # fmt: skip


def load_arrays(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Loads the arrays of an `.npz` file.

    Args:
      path: of a regular file, on a disk or in an object store.

    Raises:
      OSError: there is no such file.
      DamagedFileError: it is damaged, something else, or holds objects instead of numbers.
    """
    content = read_bytes(path)
    if not content.startswith(b"PK"):
        what = describe_bytes(content[:1024]) or "is not an .npz file"
        raise DamagedFileError(f"{path} {what}.")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {
                info.filename.removesuffix(".npy"): _read(archive, info)
                for info in archive.infolist()
            }
    except _ERRORS as error:
        raise DamagedFileError(
            f"{path} is damaged ({shorten(str(error))}): make or copy it again."
        ) from error


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Reads one array, after its header was compared with the member's size."""
    if info.file_size > _MAX_BYTES:
        raise ValueError(f"an array of {info.file_size:,} bytes")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"version {version} of its arrays")
        shape, fortran_order, dtype = read_header(member)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or min(shape, default=0) < 0 or size > info.file_size:
            raise ValueError("an array of another size, or of objects")
        data = member.read(size)
        # Reading to the end compares the checksum.
        if len(data) != size or member.read(1):
            raise ValueError("an array of another size than its header says")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")
    return array.copy(order="K")
