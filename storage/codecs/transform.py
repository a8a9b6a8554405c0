"""The transform behind the `dct` codecs, in numpy: what is fitted, and the way there and back.

N samples, C channels, K = C + 2, P = H x W positions. The steps are the textbook ones of transform
coding (Jayant and Noll, "Digital Coding of Waveforms", chapter 12): every position is normalised
over its channels, channels are rotated to their principal components, each component's map goes
through an orthonormal two-dimensional DCT. A position's mean and the log of its standard deviation
are carried as two more maps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from dreamshard.errors import DataError
from storage.schema import Level

VARIANCE_EPS = 1e-6  # added to the variance of a position, as the losses' whitening has it
_FIT_BYTES = 64 << 20


@dataclass(frozen=True)
class Transform:
    """Hold what a fit found, and the order in which bits are stored.

    Args:
        centre: mean map of the C normalised channels, the position's mean and the log of its
            standard deviation, float32 (K, P).
        rotation: principal components of the normalised channels, one a row, float32 (C, C).
        scale: standard deviation of each coefficient, float32 (K, P): C components, mean, log.
        bits: bits of each coefficient, int64 (K, P), 0..MAX_BITS.
        books: quantisers' values by falling cell for 1, 2, .. MAX_BITS bits, float32 (BOOK_SIZE,).
    """

    centre: np.ndarray
    rotation: np.ndarray
    scale: np.ndarray
    bits: np.ndarray
    books: np.ndarray

    @cached_property
    def order(self) -> np.ndarray:
        """Coefficients that have bits, most bits first: flat places in (K, P), int64."""
        order = np.argsort(-self.bits.ravel(), kind="stable")
        return order[: np.count_nonzero(self.bits)]

    @cached_property
    def counts(self) -> list[int]:
        """How many coefficients have more than 0, 1, .. bits: the lengths of the bit planes."""
        return [int((self.bits > plane).sum()) for plane in range(int(self.bits.max(initial=0)))]

    @cached_property
    def first_entry(self) -> np.ndarray:
        """Where the quantiser of each ordered coefficient begins in `books`, int64."""
        return (1 << self.bits.ravel()[self.order]) - 2

    @cached_property
    def step(self) -> np.ndarray:
        """Standard deviation of each ordered coefficient, float32."""
        return self.scale.ravel()[self.order]

    @cached_property
    def used(self) -> int:
        """Channels of the rotation up to the last one with any bits."""
        rows = np.flatnonzero(self.bits[:-2].any(axis=1))
        return int(rows[-1]) + 1 if rows.size else 0

    def flat(self) -> np.ndarray:
        """Return everything as one float32 vector, in the order of the fields."""
        parts = (self.centre, self.rotation, self.scale, self.bits, self.books)
        return np.concatenate([np.asarray(part, "<f4").ravel() for part in parts])

    @classmethod
    def of(cls, flat: np.ndarray, channels: int, positions: int) -> Transform:
        """Undo `flat`."""
        both = (channels + 2) * positions
        sizes = [both, channels * channels, both, both]
        centre, rotation, scale, bits, books = np.split(flat, np.cumsum(sizes))
        shape = (channels + 2, positions)
        return cls(
            centre.reshape(shape),
            rotation.reshape(channels, channels),
            scale.reshape(shape),
            bits.reshape(shape).astype(np.int64),
            books,
        )


def map_shape(level: Level) -> tuple[int, int, int]:
    """Return channels, height and width; a vector is a map of one position.

    Raises:
        DataError: if the level has more axes.
    """
    if not 1 <= len(level.shape) <= 3:
        raise DataError(
            f"level {level.name}: got shape {level.shape}, allowed (C,), (C, T) or (C, H, W) for "
            "codec dct."
        )
    channels, *rest = level.shape
    return channels, *([1] * (2 - len(rest))), *rest  # type: ignore[return-value]


def unpack_codes(packed: np.ndarray, fit: Transform) -> np.ndarray:
    """Return the codes of ordered coefficients, uint8 (N, coefficients), of bit planes."""
    counts = fit.counts
    flat = np.unpackbits(packed, axis=1, count=sum(counts), bitorder="little")
    codes = np.zeros((len(packed), len(fit.order)), np.uint8)
    start = 0
    for plane, count in enumerate(counts):
        codes[:, :count] |= flat[:, start : start + count] << plane
        start += count
    return codes


def fit_rotation(level: Level, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean map (K, P) and the components of the channels (C, C), float32."""
    channels, height, width = map_shape(level)
    total = np.zeros((channels + 2, height * width))
    for some in _blocks(values):
        total += np.concatenate(normalise(level, some), axis=1).sum(axis=0, dtype=np.float64)
    centre = (total / len(values)).astype(np.float32)
    spread = np.zeros((channels, channels))
    for some in _blocks(values):
        rows = (normalise(level, some)[0] - centre[:channels]).transpose(1, 0, 2)
        rows = rows.reshape(channels, -1)
        spread += rows @ rows.T
    directions = np.linalg.eigh(spread)[1][:, ::-1].T
    strongest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(channels), strongest])
    return centre, (directions * signs[:, None]).astype(np.float32)


def fit_variance(
    level: Level, values: np.ndarray, centre: np.ndarray, rotation: np.ndarray
) -> np.ndarray:
    """Return the mean square of every coefficient, float64 (K, P)."""
    _, height, width = map_shape(level)
    total = np.zeros(centre.size)
    for some in _blocks(values):
        coefficients = analyse(level, some, centre, rotation, (height, width)).astype(np.float64)
        total += np.square(coefficients).sum(axis=0)
    return (total / len(values)).reshape(centre.shape)


def _blocks(values: np.ndarray) -> list[np.ndarray]:
    step = max(1, _FIT_BYTES * len(values) // max(1, 4 * values.size))
    return [values[start : start + step] for start in range(0, len(values), step)]


def normalise(level: Level, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (values - mean) / std (N, C, P), mean and log std of each position (N, 1, P)."""
    channels, height, width = map_shape(level)
    plain = values.reshape(len(values), channels, height * width).astype(np.float32)
    mean = plain.mean(axis=1, keepdims=True)
    plain -= mean
    variance = np.square(plain).mean(axis=1, keepdims=True) + np.float32(VARIANCE_EPS)
    plain /= np.sqrt(variance)
    return plain, mean, np.log(variance) / 2


def analyse(
    level: Level,
    values: np.ndarray,
    centre: np.ndarray,
    rotation: np.ndarray,
    size: tuple[int, int],
) -> np.ndarray:
    """Return all coefficients of values, float32 (N, K * P)."""
    channels = len(rotation)
    normal, mean, log = normalise(level, values)
    rotated = np.matmul(rotation, normal - centre[:channels])
    side = np.concatenate([mean, log], axis=1) - centre[channels:]
    whole = np.concatenate([rotated, side], axis=1)
    return dct(whole, *size).reshape(len(values), -1)


def synthesise(
    fit: Transform, whole: np.ndarray, size: tuple[int, int], *, channels: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return normalised values (N, C, P), means and logs (N, 1, P) of coefficients.

    Args:
        fit: what was fitted.
        whole: all coefficients, float32 (N, K * P).
        size: height and width.
        channels: components that are not zero, the first ones; all by default.
    """
    used = len(fit.rotation) if channels is None else channels
    spread = whole.reshape(len(whole), *fit.centre.shape)
    maps = dct(spread[:, :used], *size, inverse=True)
    side = dct(spread[:, -2:], *size, inverse=True) + fit.centre[-2:]
    normal = np.matmul(fit.rotation[:used].T, maps) + fit.centre[:-2]
    return normal, side[:, :1], side[:, 1:]


def dct(maps: np.ndarray, height: int, width: int, *, inverse: bool = False) -> np.ndarray:
    """Transform maps (N, k, P) by the orthonormal two-dimensional DCT-II, or back."""
    rows, columns = dct_matrix(height), dct_matrix(width)
    if inverse:
        rows, columns = rows.T, columns.T
    shaped = maps.reshape(*maps.shape[:2], height, width)
    return np.matmul(np.matmul(rows, shaped), columns.T).reshape(maps.shape)


@lru_cache(maxsize=64)
def dct_matrix(size: int) -> np.ndarray:
    """Return the orthonormal DCT-II, float32 (size, size): one frequency a row."""
    frequency, place = np.arange(size)[:, None], np.arange(size)[None]
    matrix = np.cos(np.pi * (2 * place + 1) * frequency / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.astype(np.float32)
