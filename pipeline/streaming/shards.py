"""Read micro-batches of a dataset's shards: cached ones in a mix, and those that `keep` filled."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from dreamshard.errors import DataError
from pipeline.streaming.order import stand_ins
from storage.dataset import Dataset
from storage.rows.chunk_files import Chunks
from storage.rows.chunks import open_chunks
from storage.snapshot import Snapshot

REFRESH_S = 5.0
"""Least time between two looks at a dataset that is being filled (seconds)."""
REFRESH_SHARE = 0.02
"""Largest share of the time that goes into looking."""
MAX_OPEN = 256


class ShardRows:
    """Copy rows of a snapshot into batches.

    Args:
        snapshot: what to read.
        names: arrays to copy.
    """

    def __init__(self, snapshot: Snapshot, names: Sequence[str]) -> None:
        self._names = list(names)
        self._specs = [snapshot.array_spec(name) for name in names]
        self._show(snapshot)

    def copy(
        self, samples: np.ndarray, places: np.ndarray | slice, target: Mapping[str, np.ndarray]
    ) -> None:
        """Copy samples' rows to some places of a batch's arrays.

        Raises:
            DataError: a chunk file is missing or damaged.
        """
        rows = [np.empty((len(samples), *shape), dtype) for dtype, shape in self._specs]
        self._chunks.copy(samples, rows)
        for name, values in zip(self._names, rows, strict=True):
            target[name][places] = values
        target["index"][places] = samples

    def close(self) -> None:
        """Close every file."""
        self._chunks.close()

    def _show(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._chunks: Chunks = open_chunks(snapshot, self._names, access="map", max_open=MAX_OPEN)


class KeptRows(ShardRows):
    """Copy rows of the units that are committed so far, and know which those are.

    Args:
        dataset: being filled.
        names: arrays to copy.
    """

    def __init__(self, dataset: Dataset, names: Sequence[str]) -> None:
        self._dataset, self._size = dataset, dataset.samples_per_unit
        self._next_look = 0.0
        super().__init__(dataset.snapshot(), names)
        self._units = set(self._snapshot.units.tolist())

    def has(self, samples: np.ndarray) -> bool:
        """Tell whether a micro-batch is there; it lies within one unit."""
        unit = int(samples[0]) // self._size
        if unit not in self._units:
            self._look()
        return unit in self._units and int(samples[-1]) < self._snapshot.num_samples

    def usable(self, samples: np.ndarray) -> np.ndarray:
        """Return the samples that stand for a micro-batch, unusable ones replaced."""
        rows = stand_ins(self._snapshot.valid[samples])
        if rows is None:
            return samples
        if not len(rows):
            raise DataError(
                f"{self._snapshot.url}: got no usable image among samples "
                f"{samples[:3].tolist()}..., allowed some in every micro-batch."
            )
        return samples[rows]

    def _look(self) -> None:
        started = time.monotonic()
        if started < self._next_look:
            return
        snapshot = self._dataset.snapshot()
        if len(snapshot.units) > len(self._units):
            self.close()
            self._show(snapshot)
            self._units = set(snapshot.units.tolist())
        now = time.monotonic()
        self._next_look = now + max(REFRESH_S, (now - started) / REFRESH_SHARE)
