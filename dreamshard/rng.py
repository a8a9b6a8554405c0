"""Draw random numbers that depend only on (seed, index, draw, purpose).

The generator is counter-based: sample 7 gets the same numbers whether one worker or forty make the
dataset, in whatever order. `RNG_VERSION` is part of every dataset's recipe; the golden vectors in
the tests pin the streams, because numpy promises stable bits for Philox itself but not for ever
for the distributions on top of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

RNG_VERSION = "philox-1"
_GOLDEN = "976d1c08c05c1ba6"


def _key(seed: int, purpose: str) -> np.ndarray:
    digest = hashlib.blake2b(f"{RNG_VERSION}/{purpose}/{int(seed)}".encode(), digest_size=16)
    return np.frombuffer(digest.digest(), dtype="<u8").astype(np.uint64)


def _stream(key: np.ndarray, index: int, draw: int) -> np.random.Generator:
    # Word 0 counts up as numbers are drawn: 2^64 blocks of 4 before two samples could meet.
    counter = np.array([0, draw, index, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def generator(seed: int, index: int, draw: int, purpose: str) -> np.random.Generator:
    """Return the generator of one sample, one draw and one purpose.

    Args:
        seed: the run's seed, any integer.
        index: global index of the sample, 0 or more.
        draw: number of the draw for this sample, 0 or more.
        purpose: what the numbers are for ("noise", "crop", ...); streams of different purposes
            are independent.

    Raises:
        OverflowError: index or draw is negative.
    """
    return _stream(_key(seed, purpose), index, draw)


def normal(
    seed: int,
    indices: Sequence[int] | np.ndarray,
    draw: int,
    purpose: str,
    shape: tuple[int, ...],
    *,
    threads: int = 1,
) -> np.ndarray:
    """Draw standard normal numbers for each index: float32 (N, *shape).

    Args:
        threads: that draw at the same time (count); the numbers are the same.
    """
    key = _key(seed, purpose)
    out = np.empty((len(indices), *shape), dtype=np.float32)

    def fill(row: int) -> None:
        stream = _stream(key, int(indices[row]), draw)
        stream.standard_normal(dtype=np.float32, out=out[row, ...])

    if threads > 1 and len(indices) > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, range(len(indices))))
    else:
        for row in range(len(indices)):
            fill(row)
    return out


def uniform(
    seed: int,
    indices: Sequence[int] | np.ndarray,
    draw: int,
    purpose: str,
    shape: tuple[int, ...],
) -> np.ndarray:
    """Draw numbers from [0, 1) for each index: float64 (N, *shape)."""
    key = _key(seed, purpose)
    out = np.empty((len(indices), *shape), dtype=np.float64)
    for row, index in enumerate(indices):
        out[row] = _stream(key, int(index), draw).random(shape)
    return out


def integers(
    seed: int,
    indices: Sequence[int] | np.ndarray,
    draw: int,
    purpose: str,
    shape: tuple[int, ...],
    high: int,
) -> np.ndarray:
    """Draw integers from [0, high) for each index: int64 (N, *shape)."""
    key = _key(seed, purpose)
    out = np.empty((len(indices), *shape), dtype=np.int64)
    for row, index in enumerate(indices):
        out[row] = _stream(key, int(index), draw).integers(high, size=shape, dtype=np.int64)
    return out


def is_golden() -> bool:
    """Tell whether the installed numpy draws the numbers that `RNG_VERSION` stands for."""
    drawn = [
        normal(0, [7], 1, "golden", (64,)),
        uniform(0, [7], 1, "golden", (8,)),
        integers(0, [7], 1, "golden", (8,), 1000),
    ]
    digest = hashlib.blake2b(digest_size=8)
    for numbers in drawn:
        digest.update(numbers.astype(numbers.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest() == _GOLDEN
