"""Read chosen rows of one array into fresh memory, for probes, reports and checks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from storage.rows.chunk_files import Access, ReadableSnapshot
from storage.rows.chunks import open_chunks

_MAX_OPEN = 64  # chunk files
_AT_ONCE = 4096  # rows per copy: bounds the address tables, not the result


def read_rows(
    snapshot: ReadableSnapshot,
    name: str,
    indices: Sequence[int] | np.ndarray,
    *,
    decode: bool = True,
    access: Access = "map",
) -> np.ndarray:
    """Return rows of one array, in the order asked for.

    Args:
        snapshot: what to read.
        name: a level, "image" or "label".
        indices: sample numbers, any order, repeats allowed, each in 0..num_samples-1. Rows of
            samples that are not valid hold whatever was stored.
        decode: turn a level that is stored by a quantising codec into float32 values; without it
            its rows come as they are stored. Plain numbers always do.
        access: see `open_chunks`; "pread" does without compiled code, for few rows, "range" on a
            remote root without whole files, too.

    Returns:
        (N, *per-sample shape), memory of its own.

    Raises:
        ConfigError: if the array does not exist.
        DataError: if an index is out of range, or a chunk file is missing or damaged.
    """
    samples = np.asarray(indices, np.int64).reshape(-1)
    known = decode and name in snapshot.array_names  # one that is not is refused below
    names = list(snapshot.components(name)) if known else [name]
    chunks = open_chunks(snapshot, names, access=access, max_open=_MAX_OPEN)
    specs = [snapshot.array_spec(part) for part in names]
    out = [np.empty((len(samples), *shape), dtype) for dtype, shape in specs]
    for first in range(0, len(samples), _AT_ONCE):
        rows = slice(first, first + _AT_ONCE)
        chunks.copy(samples[rows], [target[rows] for target in out])
    chunks.close()
    return snapshot.decode(name, dict(zip(names, out, strict=True))) if decode else out[0]
