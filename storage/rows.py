"""Read chosen rows of one array into fresh memory, for probes, reports and checks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from storage.chunk_files import ReadableSnapshot
from storage.chunks import open_chunks

_AT_ONCE = 4096  # rows per copy: bounds the address tables, not the result


def read_rows(
    snapshot: ReadableSnapshot,
    name: str,
    indices: Sequence[int] | np.ndarray,
    *,
    max_open: int = 64,
) -> np.ndarray:
    """Return rows of one array, in the order asked for.

    Args:
        snapshot: what to read.
        name: a level, "image" or "label".
        indices: sample numbers, any order, repeats allowed, each in 0..num_samples-1. Rows of
            samples that are not valid hold whatever was stored.
        max_open: chunk files kept mapped at most.

    Returns:
        (N, *per-sample shape) of the array's dtype, memory of its own.

    Raises:
        ConfigError: if the array does not exist.
        DataError: if an index is out of range, or a chunk file is missing or damaged.
    """
    samples = np.asarray(indices, np.int64).reshape(-1)
    chunks = open_chunks(snapshot, [name], access="map", max_open=max_open)
    dtype, shape = snapshot.array_spec(name)
    out = np.empty((len(samples), *shape), dtype)
    for first in range(0, len(samples), _AT_ONCE):
        rows = slice(first, first + _AT_ONCE)
        chunks.copy(samples[rows], [out[rows]])
    chunks.close()
    return out
