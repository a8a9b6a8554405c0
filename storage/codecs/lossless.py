"""Lossless compression of whole chunks, for cold archives: any codec's arrays, `+zstd` or `+blosc`.

A compressed chunk cannot be mapped, and reading one row decodes the whole chunk: read such data in
blocks, or export it to raw chunks before training on it. The stored form is what the Zarr v3
codecs of the same names define.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dreamshard.errors import DataError
from storage.codecs.base import Arrays, ArraySpec, Codec
from storage.schema import Level

COMPRESSIONS = ("blosc", "zstd")
_ZSTD_LEVEL = 3
_BLOSC_LEVEL = 5
_BLOSC_MAX = (1 << 31) - 17


class CompressedCodec(Codec):
    """Compress the chunks of another codec's arrays; its error is that codec's."""

    def __init__(self, inner: Codec, compression: str) -> None:
        self.name, self.inner, self.compression = f"{inner.name}+{compression}", inner, compression
        self.learned, self.exact = inner.learned, inner.exact
        self.hides_nonfinite = inner.hides_nonfinite

    def arrays(self, level: Level) -> tuple[ArraySpec, ...]:
        """Return the other codec's arrays, compressed."""
        specs = self.inner.arrays(level)
        return tuple(replace(spec, compression=self.compression) for spec in specs)

    def encode(self, level: Level, values: np.ndarray) -> dict[str, np.ndarray]:
        """Do what the other codec does; the store compresses chunks when they are whole."""
        return self.inner.encode(level, values)

    def decode(self, level: Level, arrays: Arrays) -> np.ndarray:
        """Do what the other codec does."""
        return self.inner.decode(level, arrays)


def zarr_codec(spec: ArraySpec) -> dict[str, object]:
    """Return the Zarr v3 metadata of an array's compression."""
    if spec.compression == "zstd":
        configuration: dict[str, object] = {"level": _ZSTD_LEVEL, "checksum": False}
    else:
        configuration = {
            "typesize": spec.dtype.itemsize,
            "cname": "lz4",
            "clevel": _BLOSC_LEVEL,
            "shuffle": "bitshuffle",
            "blocksize": 0,
        }
    return {"name": spec.compression, "configuration": configuration}


def compress(spec: ArraySpec, data: np.ndarray) -> bytes:
    """Compress a chunk.

    Raises:
        DataError: if it is too large for the compression.
    """
    if spec.compression == "blosc" and data.nbytes > _BLOSC_MAX:
        raise DataError(
            f"array {spec.name}: got a chunk of {data.nbytes} bytes, allowed {_BLOSC_MAX} with "
            "blosc. Lower samples_per_unit, or choose zstd."
        )
    return bytes(_coder(spec).encode(data.view(np.dtype(f"u{spec.dtype.itemsize}"))))


def decompress(spec: ArraySpec, data: bytes, out: np.ndarray, *, where: str) -> None:
    """Decompress a chunk into memory of exactly its size; never into more.

    Raises:
        DataError: if it is damaged, or not of that size.
    """
    try:
        if _stated_size(spec, data) != out.nbytes:
            raise ValueError(f"it states {_stated_size(spec, data)} bytes")
        _coder(spec).decode(data, out.view(np.uint8).reshape(-1))
    except (RuntimeError, ValueError, TypeError) as error:
        raise DataError(
            f"{where}: got a damaged chunk ({error!s:.120}), allowed {out.nbytes} bytes compressed "
            f"by {spec.compression}. Run `dreamshard verify --repair` on the dataset."
        ) from None


def _stated_size(spec: ArraySpec, data: bytes) -> int:
    """Return the size that a chunk's own header states; -1 where it states none."""
    if spec.compression == "blosc":
        return int.from_bytes(data[4:8], "little") if len(data) >= 16 else -1
    if len(data) < 9 or data[:4] != b"\x28\xb5\x2f\xfd":
        return -1
    kind, single = data[4] >> 6, data[4] >> 5 & 1
    start = 5 + (not single) + (0, 1, 2, 4)[data[4] & 3]
    width = (1 if single else 0, 2, 4, 8)[kind]
    stated = int.from_bytes(data[start : start + width], "little")
    return stated + 256 if width == 2 else (stated if width else -1)


def _coder(spec: ArraySpec) -> Any:
    if spec.compression == "zstd":
        from numcodecs import Zstd

        return Zstd(level=_ZSTD_LEVEL)
    from numcodecs import Blosc

    return Blosc("lz4", clevel=_BLOSC_LEVEL, shuffle=Blosc.BITSHUFFLE)
