"""npy, npz, safetensors and torch's archives within the bounds of their own files."""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamshard.errors import DreamshardError
from dreamshard.foreign.files import check_regular
from dreamshard.foreign.guard import UnreadableError, reading

if TYPE_CHECKING:
    from torch import Tensor

AGAIN = "Fetch it again."
MAX_PICKLE = 256 << 20
"""The most that a torch archive may say of its tensors (bytes); a large network says 1 MB."""
MAX_MEMBERS = 1_000_000
MAX_DIMENSIONS = 8


def read_npy(path: Path, *, error: type[DreamshardError] = UnreadableError) -> np.ndarray:
    """Map one array of plain numbers.

    Raises: `error` for a file that cannot be read, or whose header asks for more than it holds.
    """
    with reading(str(path), "a file of plain numbers", error=error, hint=AGAIN):
        check_regular(path, error=error)
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
    found: dict[str, np.ndarray] = {}
    with reading(str(path), "an archive of plain arrays", error=error, hint=AGAIN):
        check_regular(path, error=error)
        with zipfile.ZipFile(path) as archive:
            members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
            wanted = {name: members[name] for name in names if name in members}
            if sum(member.file_size for member in wanted.values()) > limit:
                raise ValueError(f"more than {limit:,} bytes unpacked")
            for name, member in wanted.items():
                with archive.open(member) as stream:
                    shape, dtype, header = _header(stream)
                    held = member.file_size - header
                    if math.prod(shape) * dtype.itemsize != held:
                        raise ValueError(f"{name}: {shape} of {dtype} in {held:,} bytes")
                with archive.open(member) as stream:
                    found[name] = np.lib.format.read_array(stream, allow_pickle=False)
    return found


def _header(stream: Any) -> tuple[tuple[int, ...], np.dtype, int]:
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"version {version} of npy")
    shape, _, dtype = read[version](stream)
    if dtype.hasobject or len(shape) > MAX_DIMENSIONS or any(side < 0 for side in shape):
        raise ValueError(f"an array of {dtype}, shape {shape}")
    return shape, dtype, stream.tell()


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


def read_torch(
    path: Path,
    *,
    allowed: Sequence[Any] = (),
    device: str = "cpu",
    error: type[DreamshardError] = UnreadableError,
) -> Any:
    """Read a file of tensors and plain values written by torch.save, running nothing in it.

    Args:
        allowed: harmless classes that may be in it as well, as torch's `safe_globals` takes them.
        device: where tensors go; "meta" for shapes alone.

    Raises: `error` for a file that is missing, damaged, packed, or would execute code on loading.
    """
    import torch

    with reading(str(path), "a file of tensors, damaged or truncated", error=error, hint=AGAIN):
        check_regular(path, error=error)
        _check_archive(path)
        try:
            with torch.serialization.safe_globals(list(allowed)):
                value = torch.load(path, map_location=device, weights_only=True)
        except pickle.UnpicklingError as failed:
            name = re.search(r"GLOBAL ([\w.]+)|class (?:`)?([\w.]+)", str(failed))
            wants = f" (it asks for {name[1] or name[2]})" if name else ""
            raise error(
                f"{path}: refused: loading it would run code{wants}, or it is not a file of plain "
                "tensors. Nothing was run. Convert it to safetensors where you trust it."
            ) from failed
        _check_tensors(value, path.stat().st_size)
    return value


def _check_tensors(value: Any, size: int) -> None:
    """Refuse tensors that are larger than the file they came from: views of a few numbers."""
    import torch

    todo, seen = [value], 0
    while todo:
        item = todo.pop()
        seen += 1
        if isinstance(item, torch.Tensor):
            if item.numel() * item.element_size() > size:
                raise ValueError(f"a tensor of shape {tuple(item.shape)}, larger than the file")
        elif isinstance(item, dict):
            todo += item.values()
        elif isinstance(item, list | tuple):
            todo += item
        if seen > MAX_MEMBERS:
            raise ValueError(f"more than {MAX_MEMBERS:,} values")


def _check_archive(path: Path) -> None:
    """Refuse a zip that unpacks to more than it is; torch stores, it does not pack."""
    if not zipfile.is_zipfile(path):
        return
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if len(members) > MAX_MEMBERS or sum(member.file_size for member in members) > size:
        raise ValueError("an archive that unpacks to more than its own size")
    if any(m.filename.endswith("data.pkl") and m.file_size > MAX_PICKLE for m in members):
        raise ValueError(f"more than {MAX_PICKLE:,} bytes of description")
