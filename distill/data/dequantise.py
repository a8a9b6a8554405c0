"""Turn stored codes into features on the training device: fewer bytes to read and to copy there.

B samples, C channels, R components, h and w cells. What `storage.codecs` stores, this decodes the
same way, in torch: codes go to the device as they are stored, and become floats there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from storage.codecs.base import Codec
from storage.codecs.dct import DctCodec
from storage.codecs.floats import BFloat16Codec
from storage.codecs.integers import Int4Codec, Int8Codec
from storage.codecs.lossless import CompressedCodec
from storage.codecs.lowrank import LowRankCodec
from storage.codecs.transform import dct_matrix, map_shape
from storage.schema import Level


class Dequantiser:
    """Decode one level's stored arrays.

    Args:
        level: whose arrays they are.
        codec: how they are stored; a learned one with its basis.
        device: where to decode; the basis is kept there.
    """

    def __init__(self, level: Level, codec: Codec, *, device: torch.device | str) -> None:
        self.level, self.device = level, torch.device(device)
        self._codec = codec.inner if isinstance(codec, CompressedCodec) else codec
        inner = self._codec.inner if isinstance(self._codec, LowRankCodec) else self._codec
        self._inner = inner
        self._shape, self._basis, self._mean = level.shape, None, None
        if isinstance(self._codec, LowRankCodec):
            assert self._codec.basis is not None, "fitted before the first unit"
            basis = torch.from_numpy(np.array(self._codec.basis, np.float32)).to(self.device)
            self._mean, self._basis = basis[0], basis[1:]
            self._shape = (self._codec.rank, *level.shape[1:])
        self._transform = None
        if isinstance(self._codec, DctCodec):
            self._transform = _Transform(level, self._codec, device=self.device)

    def __call__(self, arrays: Mapping[str, np.ndarray | Tensor]) -> Tensor:
        """Return the values, float32 (B, *level.shape) on the device.

        Args:
            arrays: rows of the level's arrays by their full names, such as `up.1.t100.scale`;
                tensors are on the device already.
        """
        coefficients = self._decode(arrays)
        if self._basis is None or self._mean is None:
            return coefficients
        return _expand(coefficients, self._basis, self._mean)

    def _decode(self, arrays: Mapping[str, np.ndarray | Tensor]) -> Tensor:
        """Return what the inner codec stores, float32 (B, *inner shape)."""
        codes = self._to_device(arrays[self.level.name])
        if self._transform is not None:
            return self._transform(codes).reshape(len(codes), *self.level.shape)
        if isinstance(self._inner, Int8Codec):
            return codes.float().mul_(self._per_group(arrays, "scale"))
        if isinstance(self._inner, Int4Codec):
            whole = _unpack(codes, self._shape[-1] if self._shape else 1)
            whole = whole.reshape(len(codes), *self._shape)
            values = whole.float().mul_(self._per_group(arrays, "scale"))
            return values.add_(self._per_group(arrays, "offset"))
        if isinstance(self._inner, BFloat16Codec):
            return codes.view(torch.bfloat16).float()
        return codes.to(torch.float32, copy=True)

    def _per_group(self, arrays: Mapping[str, np.ndarray | Tensor], part: str) -> Tensor:
        values = self._to_device(arrays[f"{self.level.name}.{part}"]).float()
        return values.reshape(*values.shape, *[1] * (len(self._shape) - 1))

    def _to_device(self, rows: np.ndarray | Tensor) -> Tensor:
        if isinstance(rows, Tensor):  # there already, see distill.data.upload
            return rows
        if rows.dtype == np.uint16:  # torch knows few operations on it
            rows = rows.view(np.int16)
        return torch.from_numpy(rows).to(self.device)


class _Transform:
    """Undo codec `dct`; see `storage.codecs.transform`. N samples, n coded coefficients."""

    def __init__(self, level: Level, codec: DctCodec, *, device: torch.device) -> None:
        fitted = codec.transform
        assert fitted is not None, "fitted before the first unit"

        def on_device(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.array(values)).to(device)

        self._channels, height, width = map_shape(level)
        self._counts, self._used = fitted.counts, fitted.used
        self._books, self._first, self._step = map(
            on_device, (fitted.books, fitted.first_entry, fitted.step)
        )
        self._centre = on_device(fitted.centre)
        self._rotation = on_device(fitted.rotation[: fitted.used].T)
        self._order = on_device(fitted.order)
        self._rows, self._columns = on_device(dct_matrix(height)), on_device(dct_matrix(width))
        self._eight = torch.arange(8, device=device, dtype=torch.uint8)

    def __call__(self, packed: Tensor) -> Tensor:
        """Return values, float32 (N, C, P), of bit planes, uint8 (N, bytes)."""
        count, channels = len(packed), self._channels
        quantised = self._books[self._first + self._codes(packed)].mul_(self._step)
        spread = quantised.new_zeros(count, self._centre.numel())
        spread[:, self._order] = quantised
        maps = spread.reshape(count, channels + 2, len(self._rows), len(self._columns))
        maps = torch.cat([maps[:, : self._used], maps[:, -2:]], dim=1)
        maps = (self._rows.T @ maps @ self._columns).flatten(2)
        normal = torch.baddbmm(
            self._centre[None, :channels],
            self._rotation.expand(count, -1, -1),
            maps[:, : self._used],
        )
        mean, log = (maps[:, -2:] + self._centre[-2:]).split(1, dim=1)
        return normal.mul_(log.exp()).add_(mean)

    def _codes(self, packed: Tensor) -> Tensor:
        """Gather the codes of coefficients out of their bit planes, int64 (N, n)."""
        flat = (packed[..., None] >> self._eight & 1).flatten(1)
        codes = torch.zeros(len(packed), len(self._order), dtype=torch.uint8, device=packed.device)
        start = 0
        for plane, count in enumerate(self._counts):
            codes[:, :count] |= flat[:, start : start + count] << plane
            start += count
        return codes.long()


def _expand(coefficients: Tensor, basis: Tensor, mean: Tensor) -> Tensor:
    """Combine components: (B, R, ...) by basis (R, C) and mean (C,) to (B, C, ...)."""
    flat = coefficients.flatten(2) if coefficients.dim() > 2 else coefficients[..., None]
    values = torch.baddbmm(mean[None, :, None], basis.t().expand(len(flat), -1, -1), flat)
    return values.reshape(len(flat), basis.shape[1], *coefficients.shape[2:])


def _unpack(packed: Tensor, width: int) -> Tensor:
    """Undo the packing of two values a byte along the last axis; uint8 (..., width)."""
    both = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
    return both[..., :width]
