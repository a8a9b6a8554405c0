"""Copy labels out of a later version of them, everything else out of the units' files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from storage.rows.chunks import Chunks

LABEL = "label"


class Relabelled:
    """Copy rows of several arrays of which one is the labels.

    Args:
        chunks: copies rows of the other arrays, in their order.
        names: of all arrays, the labels among them.
        labels: int64 (num_samples,).
    """

    def __init__(self, chunks: Chunks, names: Sequence[str], labels: np.ndarray) -> None:
        self._chunks, self._names, self._labels = chunks, list(names), labels

    def copy(self, samples: np.ndarray, targets: Sequence[np.ndarray]) -> None:
        """Copy samples' rows of every array, in the order of the names."""
        stored = []
        for name, target in zip(self._names, targets, strict=True):
            if name == LABEL:
                np.take(self._labels, samples, out=target)
            else:
                stored.append(target)
        if stored:
            self._chunks.copy(samples, stored)

    def read_ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Ask the kernel for sample ranges."""
        self._chunks.read_ahead(ranges)

    def close(self) -> None:
        """Close every file."""
        self._chunks.close()
