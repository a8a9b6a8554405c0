"""The offset index beside a tar shard: where each sample's members are, without parsing the tar.

`shards/000000.idx` is a plain npy file, int64 (2, members, samples): the offset and the bytes of
the data of each member (an npy member's after its npy header; the JSON's as the last).
"""

from __future__ import annotations

import numpy as np

from dreamshard.errors import DataError
from storage.codecs.npy import read_npy, write_npy
from storage.formats.tar_format import BLOCK, END, padding
from storage.fs.local import Files

_NPY_HEADER = 128


def index_bytes(table: np.ndarray) -> bytes:
    """Return the file of a table, int64 (2, members, samples)."""
    return write_npy(table.astype("<i8"))


def read_index(files: Files, key: str, *, members: int, max_samples: int) -> np.ndarray:
    """Read an index, whoever wrote it, and check that its offsets go up and do not overlap.

    Raises:
        DataError: if it is missing, damaged, or of another shape.
    """
    where = files.path(key)
    mend = "Run `dreamshard verify --repair` on the dataset."
    try:
        data = files.read(key, limit=_NPY_HEADER + 16 * members * max_samples)
        samples = (len(data) - _NPY_HEADER) // (16 * members)
        if not 1 <= samples <= max_samples:
            raise ValueError(f"{samples} samples, allowed 1..{max_samples}")
        table = read_npy(data, np.dtype("<i8"), (2, members, samples))
        starts, sizes = table[0].T.ravel(), table[1].T.ravel()
        if (sizes < 0).any() or (starts < BLOCK).any() or int(starts.max()) >= 1 << 60:
            raise ValueError("offsets out of range")
        if (starts[1:] < starts[:-1] + sizes[:-1] + BLOCK).any() or int(sizes.max()) >= 1 << 60:
            raise ValueError("members overlap")
    except FileNotFoundError:
        raise DataError(f"{where}: got no index beside the shard. {mend}") from None
    except ValueError as error:
        raise DataError(f"{where}: got a damaged index ({error!s:.120}). {mend}") from None
    return table


def shard_bytes(table: np.ndarray) -> int:
    """Return how long the shard of an index must be."""
    end = int(table[0, -1, -1] + table[1, -1, -1])
    return end + padding(end) + len(END)
