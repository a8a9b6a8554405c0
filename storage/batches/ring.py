"""Reused buffers for batches: page-aligned, in huge pages where the system has them."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Mapping

import numpy as np

PAGE = 4096
_HUGE_PAGE = 1 << 21


def allocate(num_bytes: int) -> np.ndarray:
    """Return zeroed uint8 memory whose start is page-aligned and whose size fills whole pages."""
    size = -(-max(num_bytes, 1) // PAGE) * PAGE
    huge = size >= _HUGE_PAGE
    private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    if not private:  # no such flags on this system: align by hand
        memory = np.zeros(size + PAGE, np.uint8)
        start = -memory.ctypes.data % PAGE
        return memory[start : start + size]
    region = mmap.mmap(-1, size + huge * _HUGE_PAGE, flags=private)
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages: only slower
            region.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(region, np.uint8)
    start = -memory.ctypes.data % _HUGE_PAGE if huge else 0
    return memory[start : start + size]


class Slot:
    """Hold one batch: arrays by name over one buffer, each on a page boundary.

    Args:
        rows: N, samples per batch.
        specs: dtype and per-sample shape by array name.
    """

    def __init__(self, rows: int, specs: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> None:
        offsets, size = {}, 0
        for name, (dtype, shape) in specs.items():
            offsets[name] = size
            size += -(-rows * np.dtype(dtype).itemsize * math.prod(shape) // PAGE) * PAGE
        memory = allocate(size)
        self.index = np.zeros(rows, np.int64)
        self.arrays: dict[str, np.ndarray] = {
            name: np.ndarray((rows, *shape), dtype, memory.data, offsets[name])
            for name, (dtype, shape) in specs.items()
        }
