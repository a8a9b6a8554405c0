"""npy, npz and safetensors within the bounds of their own files."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dreamshard.errors import DreamshardError
from dreamshard.foreign.files import check_regular
from dreamshard.foreign.guard import UnreadableError, reading

if TYPE_CHECKING:
    from torch import Tensor

AGAIN = "Fetch it again."
MAX_DIMENSIONS = 8
MAX_MEMBERS = 1_000_000
MAX_HEADER = 1 << 16
"""The most that an array may say of itself (bytes); numpy's own headers have 128."""
NUMBERS = {
    "F64": ("float64", "<f8"), "F32": ("float32", "<f4"), "F16": ("float16", "<f2"),
    "BF16": ("bfloat16", "<u2"), "I64": ("int64", "<i8"), "I32": ("int32", "<i4"),
    "I16": ("int16", "<i2"), "I8": ("int8", "i1"), "U8": ("uint8", "u1"),
}  # fmt: skip
"""Number formats of safetensors -> ours, and how numpy holds them."""


def read_npy(path: Path) -> np.ndarray:
    """Map one array of plain numbers.

    Raises: UnreadableError for a file that cannot be read, or whose header asks for more than it
        holds.
    """
    with reading(str(path), "a file of plain numbers", error=UnreadableError, hint=AGAIN):
        check_regular(path, error=UnreadableError)
        # Mapped: a header cannot ask for more memory than the file has.
        return np.load(path, mmap_mode="r", allow_pickle=False)


def read_npz(
    path: Path,
    names: Collection[str],
    *,
    limit: int,
    error: type[DreamshardError] = UnreadableError,
) -> dict[str, np.ndarray]:
    """Read those arrays of an archive that have one of some names.

    Args:
        names: of the arrays wanted.
        limit: the most they may hold together (bytes).

    Raises: `error` for a file that cannot be read, a header that does not fit its member, or more
        bytes than the limit.
    """
    arrays: dict[str, np.ndarray] = {}
    with reading(str(path), "an archive of plain arrays", error=error, hint=AGAIN):
        check_regular(path, error=error)
        with zipfile.ZipFile(path) as archive:
            members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
            wanted = {name: members[name] for name in names if name in members}
            if sum(member.file_size for member in wanted.values()) > limit:
                raise ValueError(f"more than {limit:,} bytes unpacked")
            for name, member in wanted.items():
                _checked_shape(archive, member)
                with archive.open(member) as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    return arrays


def npz_shapes(
    path: Path, *, error: type[DreamshardError] = UnreadableError
) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every array of an archive, reading their headers alone.

    Raises: `error` as `read_npz`.
    """
    with reading(str(path), "an archive of plain arrays", error=error, hint=AGAIN):
        check_regular(path, error=error)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise ValueError(f"more than {MAX_MEMBERS:,} arrays")
            return {m.filename.removesuffix(".npy"): _checked_shape(archive, m) for m in members}


def _checked_shape(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[int, ...]:
    """Read the shape of a member, which must hold just as many bytes."""
    with archive.open(member) as stream:
        beginning = stream.read(12)
    # Version 2.0 says in four bytes how long its header is, and numpy would read all of it.
    if beginning[6:8] == b"\x02\x00" and int.from_bytes(beginning[8:12], "little") > MAX_HEADER:
        raise ValueError(f"{member.filename}: a header of more than {MAX_HEADER:,} bytes")
    with archive.open(member) as stream:
        shape, _, dtype, header = _header(stream)
    held = member.file_size - header
    if math.prod(shape) * dtype.itemsize != held:
        raise ValueError(f"{member.filename}: {shape} of {dtype} in {held:,} bytes")
    return shape


def _header(stream: Any) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype, int]:
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"version {version} of npy")
    shape, turned, dtype = read[version](stream)
    if dtype.hasobject or len(shape) > MAX_DIMENSIONS or any(side < 0 for side in shape):
        raise ValueError(f"an array of {dtype}, shape {shape}")
    return shape, "F" if turned else "C", dtype, stream.tell()


def unpack_npy(data: bytes, *, where: str) -> np.ndarray:
    """Read one array of plain numbers out of bytes at hand; it is no copy of them.

    Args:
        where: what they are, for messages.

    Raises: UnreadableError for a header that asks for anything but the bytes behind it.
    """
    with reading(where, "an array of plain numbers", error=UnreadableError, hint=AGAIN):
        if data[6:8] == b"\x02\x00" and int.from_bytes(data[8:12], "little") > MAX_HEADER:
            raise ValueError(f"a header of more than {MAX_HEADER:,} bytes")
        shape, order, dtype, start = _header(io.BytesIO(data))
        if math.prod(shape) * dtype.itemsize != len(data) - start:
            raise ValueError(f"{shape} of {dtype} in {len(data) - start:,} bytes")
        return np.frombuffer(data, dtype, offset=start).reshape(shape, order=order)


def unpack_safetensors(data: bytes, *, where: str) -> dict[str, tuple[str, np.ndarray]]:
    """Read every tensor out of the bytes of a safetensors file.

    Args:
        where: what they are, for messages.

    Returns:
        name -> (number format, values); bfloat16 as uint16 bits, as numpy does not know it.

    Raises: UnreadableError for damaged bytes, or numbers that neither we nor numpy know.
    """
    from safetensors import deserialize

    with reading(where, "safetensors, damaged or truncated", error=UnreadableError, hint=AGAIN):
        tensors = {}
        for name, told in deserialize(data):
            if told["dtype"] not in NUMBERS or len(told["shape"]) > MAX_DIMENSIONS:
                raise ValueError(f"{name!r:.80}: {told['dtype']}, {len(told['shape'])} axes")
            kind, dtype = NUMBERS[told["dtype"]]
            tensors[name] = kind, np.frombuffer(told["data"], dtype).reshape(told["shape"])
        return tensors


def read_safetensors(
    path: Path, *, device: str = "cpu", error: type[DreamshardError] = UnreadableError
) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file.

    Raises: `error` for a file that is damaged; its header is checked against its size.
    """
    from safetensors.torch import load_file

    with reading(str(path), "safetensors, damaged or truncated", error=error, hint=AGAIN):
        check_regular(path, error=error)
        return load_file(path, device=device)


def safetensors_shapes(
    path: Path, *, error: type[DreamshardError] = UnreadableError
) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of a safetensors file, its header alone."""
    from safetensors import safe_open

    with reading(str(path), "safetensors, damaged or truncated", error=error, hint=AGAIN):
        check_regular(path, error=error)
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def safetensors_metadata(
    path: Path, *, error: type[DreamshardError] = UnreadableError
) -> dict[str, str]:
    """Return what a safetensors file says of itself, by name; {} if it says nothing."""
    from safetensors import safe_open

    with reading(str(path), "safetensors, damaged or truncated", error=error, hint=AGAIN):
        check_regular(path, error=error)
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
