"""Fill one rank's part of each batch of the stream, reading ahead where blocks are shuffled."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dreamshard.errors import DataError
from storage.batches.positions import PositionStream
from storage.batches.ring import Slot
from storage.rows.chunk_files import Chunks

_PLANNED = 4096  # samples whose places in the stream are worked out at once


@dataclass(frozen=True, kw_only=True)
class Share:
    """Say which positions a rank reads: `rank`'s part of each `batch_size` from `start` on."""

    batch_size: int
    rank: int
    world_size: int
    start: int

    @property
    def rows(self) -> int:
        """Samples per batch of this rank."""
        return self.batch_size // self.world_size

    def positions(self, first: int, count: int) -> np.ndarray:
        """Return the stream positions of batches [first, first + count), int64 (count, rows)."""
        starts = self.start + np.arange(first, first + count, dtype=np.int64) * self.batch_size
        return starts[:, None] + np.arange(self.rank * self.rows, (self.rank + 1) * self.rows)


class Filler:
    """Fill batches, each in `parts` that different threads may take at the same time.

    Args:
        prefetch: batches that may be under way at a time.
    """

    def __init__(
        self,
        *,
        chunks: Chunks,
        names: Sequence[str],
        stream: PositionStream,
        share: Share,
        parts: int,
        prefetch: int,
    ) -> None:
        self._chunks, self._names, self._stream, self._share = chunks, names, stream, share
        self._cuts = [share.rows * part // parts for part in range(parts + 1)]
        planned = min(_PLANNED, 8 * stream.epoch_size)  # each epoch has a cost of its own
        self._per_plan = max(prefetch, planned // share.rows)  # batches under way span two plans
        self._plans: dict[int, np.ndarray] = {}  # int64 (batches, rows) by number of the plan
        self._lock = threading.Lock()
        self._ahead = _ReadAhead(chunks, stream, share.start) if stream.shuffle == "block" else None

    def fill(self, number: int, part: int, slot: Slot) -> None:
        """Write part 0..parts-1 of batch `number` into a slot."""
        low, high = self._cuts[part], self._cuts[part + 1]
        if low == high:
            return
        samples = self._samples(number)[low:high]
        if self._ahead is not None:
            self._ahead.reach(self._share.start + number * self._share.batch_size)
        slot.index[low:high] = samples
        self._chunks.copy(samples, [slot.arrays[name][low:high] for name in self._names])

    def stop(self) -> None:
        """End reading ahead."""
        if self._ahead is not None:
            self._ahead.stop()

    def _samples(self, number: int) -> np.ndarray:
        plan, row = divmod(number, self._per_plan)
        with self._lock:
            if plan not in self._plans:
                self._plans.pop(plan - 2, None)
                positions = self._share.positions(plan * self._per_plan, self._per_plan)
                self._plans[plan] = self._stream.at(positions.ravel()).reshape(positions.shape)
            return self._plans[plan][row]


class _ReadAhead:
    """Ask the kernel, from a thread of its own, for the shuffle window after the one being read."""

    def __init__(self, chunks: Chunks, stream: PositionStream, start: int) -> None:
        self._chunks, self._stream = chunks, stream
        self._asked = [start, start]  # starts of the window asked for last and of the one after it
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[list[tuple[int, int]] | None] = queue.SimpleQueue()
        self._stopped = False
        threading.Thread(target=self._work, name="dreamshard-ahead", daemon=True).start()

    def reach(self, position: int) -> None:
        with self._lock:
            while self._asked[0] <= position:
                window = self._stream.window(self._asked[1])
                self._asked = [self._asked[1], window.end]
                self._queue.put(window.ranges)

    def stop(self) -> None:
        self._stopped = True
        self._queue.put(None)

    def _work(self) -> None:
        while (ranges := self._queue.get()) is not None:
            for span in ranges:
                if self._stopped:
                    return
                with contextlib.suppress(DataError):  # the copy will meet the same file and say so
                    self._chunks.read_ahead([span])
