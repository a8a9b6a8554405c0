"""What each codec's error may be at most, worked out from its description, value by value."""

from __future__ import annotations

import math
from functools import singledispatch

import numpy as np

from storage.codecs.base import Codec
from storage.codecs.dct import DctCodec
from storage.codecs.floats import BFloat16Codec, FloatCodec, RawCodec
from storage.codecs.integers import Int4Codec, Int8Codec, num_groups
from storage.codecs.lossless import CompressedCodec
from storage.codecs.lowrank import LowRankCodec
from storage.codecs.transform import dct_matrix, map_shape, normalise
from storage.schema import Level

_ROUNDING = 2.0**-20  # of the group's range: what float32 arithmetic adds to half a step
_CANCELLED = 1e-6  # relative rounding of float32 sums of a few terms


@singledispatch
def bound(codec: Codec, level: Level, values: np.ndarray) -> np.ndarray:
    """Return what |decode(encode(values)) - values| does not exceed, float64, per value."""
    raise NotImplementedError(codec.name)


@bound.register
def _(codec: FloatCodec, level: Level, values: np.ndarray) -> np.ndarray:
    """Half a unit in the last place."""
    info = np.finfo(codec.dtype)
    wide = np.abs(values.astype(np.float64))
    return np.maximum(wide * (float(info.eps) / 2), float(info.smallest_subnormal) / 2)


@bound.register
def _(codec: RawCodec, level: Level, values: np.ndarray) -> np.ndarray:
    """What reading float64 or large integers as float32 costs; 0 as stored."""
    wide = values.astype(np.float64)
    return np.abs(wide - values.astype(np.float32).astype(np.float64))


@bound.register
def _(codec: BFloat16Codec, level: Level, values: np.ndarray) -> np.ndarray:
    """Half a unit in the last place."""
    return np.maximum(np.abs(values.astype(np.float64)) * 2.0**-8, 2.0**-134)


@bound.register
def _(codec: Int8Codec, level: Level, values: np.ndarray) -> np.ndarray:
    """Half a step."""
    largest = np.abs(_grouped(level, values)).max(axis=2)
    step = np.maximum(largest / 127 * (1 + 2.0**-10), largest / 127 + 2.0**-24)
    return _spread(level, step / 2 + largest * _ROUNDING, len(values))


@bound.register
def _(codec: Int4Codec, level: Level, values: np.ndarray) -> np.ndarray:
    """Half a step."""
    grouped = _grouped(level, values)
    low, high = grouped.min(axis=2), grouped.max(axis=2)
    shifted = np.abs(low) * 2.0**-10 + 2.0**-24  # what rounding the offset down adds
    span = high - low + shifted
    step = np.maximum(span / 15 * (1 + 2.0**-10), span / 15 + 2.0**-24)
    largest = np.maximum(np.abs(low), np.abs(high))
    return _spread(level, step / 2 + largest * _ROUNDING, len(values))


@bound.register
def _(codec: CompressedCodec, level: Level, values: np.ndarray) -> np.ndarray:
    return bound(codec.inner, level, values)


@bound.register
def _(codec: LowRankCodec, level: Level, values: np.ndarray) -> np.ndarray:
    """What the projection leaves out, and the quantisation steps' share."""
    inner, basis = codec._inner_level(level), codec._basis(level).astype(np.float64)
    coefficients = codec._project(level, values).reshape(-1, *inner.shape)
    step = bound(codec.inner, inner, coefficients).reshape(len(values), codec.rank, -1)
    share = np.einsum("rc,nrp->ncp", np.abs(basis[1:]), step).reshape(values.shape)
    projected = codec._combine(level, coefficients).astype(np.float64)
    rounding = 1e-5 * (np.abs(values).max(initial=0) + np.abs(basis[0]).max(initial=0))
    return np.abs(projected - values) + share + rounding


@bound.register
def _(codec: DctCodec, level: Level, values: np.ndarray) -> np.ndarray:
    """What left-out coefficients and the quantisers' steps can add up to."""
    fit, count = codec._fit_of(level), len(values)
    channels, height, width = map_shape(level)
    normal, mean, log = normalise(level, values)
    wanted = codec._coefficients(level, values)
    kept = codec._synthesise(level, wanted[:, fit.order])
    codes = codec._codes(wanted)
    step = np.abs(fit.books[fit.first_entry + codes] * fit.step - wanted[:, fit.order])
    error = np.zeros((count, channels + 2, height * width))
    error.reshape(count, -1)[:, fit.order] = step
    rows, columns = np.abs(dct_matrix(height)).T, np.abs(dct_matrix(width)).T
    shaped = error.reshape(count, channels + 2, height, width)
    error = np.matmul(np.matmul(rows, shaped), columns.T).reshape(error.shape)
    spread = np.matmul(np.abs(fit.rotation.T), error[:, :channels]) + np.abs(kept[0] - normal)
    # Where coefficients cancel a large centre, anywhere on the map: each is a sum over it.
    lost = _CANCELLED * np.abs(fit.centre).max(axis=1, keepdims=True)
    spread = spread + lost[:channels].max()
    of_mean = error[:, -2:-1] + np.abs(kept[1] - mean) + lost[-2]
    of_log = error[:, -1:] + np.abs(kept[2] - log) + lost[-1]
    scale = np.exp(log)
    total = scale * np.exp(of_log) * (spread + np.abs(normal) * of_log) + of_mean
    rounding = 1e-4 * (np.abs(mean) + scale * np.abs(normal).max(axis=1, keepdims=True))
    return (total + rounding + 1e-6).reshape(values.shape)


def _grouped(level: Level, values: np.ndarray) -> np.ndarray:
    """See values as float64 (N, groups, values of a group), rounded to float32 before."""
    groups = num_groups(level.shape)
    plain = values.astype(np.float32).astype(np.float64)
    return plain.reshape(len(values), groups, math.prod(level.shape) // groups)


def _spread(level: Level, per_group: np.ndarray, count: int) -> np.ndarray:
    """Give every value its group's number."""
    shape = (count, num_groups(level.shape), *[1] * (len(level.shape) - 1))
    spread = per_group.reshape(shape if level.shape else (count,))
    return np.broadcast_to(spread, (count, *level.shape))
