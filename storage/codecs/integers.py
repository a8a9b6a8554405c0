"""Codecs that keep few bits per value, with a scale per channel and sample beside them.

A group is what shares a scale: one channel of one sample's map (C, ...), or all of one sample's
vector (C,). Scales are float16, rounded up so that no value is clipped.
"""

from __future__ import annotations

import math

import numpy as np

from storage.codecs.base import Arrays, ArraySpec, Codec, check_float, part_name
from storage.schema import Level

_HALF = np.dtype("<f2")


def num_groups(shape: tuple[int, ...]) -> int:
    """Return how many scales a sample of this shape has."""
    return shape[0] if len(shape) > 1 else 1


class Int8Codec(Codec):
    """Store round(x / scale) as int8, scale = largest |x| of the group / 127.

    Error: scale / 2, that is 1/254 of the group's largest absolute value (and one part in 1024 of
    that for the scale's rounding to float16, 3e-8 at least). Arrays: `<level>` int8,
    `<level>.scale` float16 (C,).
    """

    name = "int8"

    def arrays(self, level: Level) -> tuple[ArraySpec, ...]:
        """Return the values' and the scales' arrays."""
        scale = part_name(level, "scale")
        how = {"codec": self.name, "scale": scale, "decode": "a * scale, scale per first axis"}
        groups = num_groups(level.shape)
        return (
            ArraySpec(level.name, np.dtype(np.int8), level.shape, 0, level.name, how),
            ArraySpec(scale, _HALF, (groups,), math.nan, level.name, {"codec": self.name}),
        )

    def encode(self, level: Level, values: np.ndarray) -> dict[str, np.ndarray]:
        """Divide by each group's scale and round."""
        check_float(level, values, self.name)
        grouped = _grouped(level, values)
        largest = np.maximum(grouped.max(axis=2), -grouped.min(axis=2))
        scale = _round_up(largest / np.float32(127))
        with np.errstate(divide="ignore", over="ignore"):
            inverse = np.where(scale > 0, 1 / scale.astype(np.float32), 0).astype(np.float32)
        with np.errstate(invalid="ignore"):
            scaled = grouped * inverse[:, :, None]
            whole = np.rint(scaled, out=scaled).astype(np.int8)
        return {
            level.name: whole.reshape(len(values), *level.shape),
            part_name(level, "scale"): scale,
        }

    def decode(self, level: Level, arrays: Arrays) -> np.ndarray:
        """Multiply by the scales."""
        whole, scale = arrays[level.name], arrays[part_name(level, "scale")].astype(np.float32)
        count = len(whole)
        values = whole.reshape(count, num_groups(level.shape), -1) * scale[:, :, None]
        return values.reshape(count, *level.shape)


class Int4Codec(Codec):
    """Store round((x - offset) / scale), 0..15, two values a byte.

    offset is the group's smallest value and scale its range / 15, both float16 (offset rounded
    down, scale up). Error: scale / 2, about 1/30 of the group's range. Arrays: `<level>` uint8, the
    last axis packed (even columns in the low half of a byte, odd ones in the high half; an odd
    width is padded), `<level>.scale` and `<level>.offset` float16 (C,).
    """

    name = "int4"

    def arrays(self, level: Level) -> tuple[ArraySpec, ...]:
        """Return the values', the scales' and the offsets' arrays."""
        scale, offset = part_name(level, "scale"), part_name(level, "offset")
        how = {
            "codec": self.name,
            "scale": scale,
            "offset": offset,
            "width": level.shape[-1] if level.shape else 1,
            "packing": "last axis: low 4 bits even columns, high 4 bits odd columns",
            "decode": "q * scale + offset, both per first axis",
        }
        shape = (*level.shape[:-1], -(-(level.shape[-1] if level.shape else 1) // 2))
        plain = {"codec": self.name}
        groups = (num_groups(level.shape),)
        return (
            ArraySpec(level.name, np.dtype(np.uint8), shape, 0, level.name, how),
            ArraySpec(scale, _HALF, groups, math.nan, level.name, plain),
            ArraySpec(offset, _HALF, groups, math.nan, level.name, plain),
        )

    def encode(self, level: Level, values: np.ndarray) -> dict[str, np.ndarray]:
        """Shift and divide by each group's range, round, and pack."""
        check_float(level, values, self.name)
        grouped = _grouped(level, values)
        offset = -_round_up(-grouped.min(axis=2))
        wide = offset.astype(np.float32)
        scale = _round_up((grouped.max(axis=2) - wide) / np.float32(15))
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            inverse = np.where(scale > 0, 1 / scale.astype(np.float32), 0).astype(np.float32)
            scaled = (grouped - wide[:, :, None]) * inverse[:, :, None]
            whole = np.clip(np.rint(scaled, out=scaled), 0, 15).astype(np.uint8)
        whole = whole.reshape(len(values), *(level.shape or (1,)))
        return {
            level.name: pack(whole),
            part_name(level, "scale"): scale,
            part_name(level, "offset"): offset,
        }

    def decode(self, level: Level, arrays: Arrays) -> np.ndarray:
        """Unpack, multiply by the scales and add the offsets."""
        scale = arrays[part_name(level, "scale")].astype(np.float32)[:, :, None]
        offset = arrays[part_name(level, "offset")].astype(np.float32)[:, :, None]
        whole = unpack(arrays[level.name], level.shape[-1] if level.shape else 1)
        values = whole.reshape(len(whole), num_groups(level.shape), -1) * scale + offset
        return values.reshape(len(whole), *level.shape)


def pack(whole: np.ndarray) -> np.ndarray:
    """Pack values 0..15, uint8 (..., W), two a byte: uint8 (..., ceil(W / 2))."""
    packed = whole[..., 0::2].copy()
    high = whole[..., 1::2]
    packed[..., : high.shape[-1]] |= high << 4
    return packed


def unpack(packed: np.ndarray, width: int) -> np.ndarray:
    """Undo `pack`: uint8 (..., width)."""
    whole = np.empty((*packed.shape[:-1], width), np.uint8)
    whole[..., 0::2] = packed & 15
    whole[..., 1::2] = (packed >> 4)[..., : width // 2]
    return whole


def _grouped(level: Level, values: np.ndarray) -> np.ndarray:
    """See values as float32 (N, groups, values of a group)."""
    with np.errstate(over="ignore"):
        plain = np.ascontiguousarray(values, np.float32)
    groups = num_groups(level.shape)
    return plain.reshape(len(values), groups, math.prod(level.shape) // groups)


def _round_up(values: np.ndarray) -> np.ndarray:
    """Round to float16, never down; what is too large becomes infinity, found by the writer."""
    with np.errstate(over="ignore", invalid="ignore"):
        short = values.astype(_HALF)
        low = short.astype(np.float32) < values
        if low.any():
            short[low] = np.nextafter(short[low], np.float16(np.inf))
    return short
