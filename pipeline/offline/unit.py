"""Beside the teacher while a unit is made: the thread that writes, and what is counted."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import suppress

import numpy as np
import xxhash

from pipeline.images.inputs import Work
from storage.formats.writer import UnitWriter
from storage.schema import FeatureBatch

QUEUE_DEPTH = 4
"""Micro-batches computed and not yet written: bounds memory, rides out a slow write."""


class Tally:
    """What is counted while a unit is computed."""

    def __init__(self) -> None:
        self.digest = xxhash.xxh3_128()
        self.teacher_s = 0.0
        self.count = self.invalid = 0
        self.errors: list[str] = []

    def add(self, work: Work, batch: FeatureBatch, seconds: float) -> None:
        """Count one micro-batch."""
        self.count += work.count
        self.digest.update(work.digest)
        self.teacher_s += seconds
        self.invalid += int(np.count_nonzero(~batch.valid))
        self.errors += batch.error.values()


class WriterThread:
    """Write micro-batches beside the teacher, in order, a bounded number behind it."""

    def __init__(self, writer: UnitWriter) -> None:
        self.waited_s = 0.0
        self._writer = writer
        self._queue: queue.Queue[tuple[int, FeatureBatch] | None] = queue.Queue(QUEUE_DEPTH)
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def put(self, offset: int, batch: FeatureBatch) -> None:
        """Queue a batch; wait while the queue is full.

        Raises:
            Exception: what the writer raised, if it did.
        """
        started = time.perf_counter()
        self._queue.put((offset, batch))
        self.waited_s += time.perf_counter() - started
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Wait until all is written."""
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Drop what is queued and end the thread."""
        self._stopped.set()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        # After an error it goes on taking from the queue, so that nobody waits on it for ever.
        while (item := self._queue.get()) is not None:
            if self._error is None and not self._stopped.is_set():
                try:
                    self._writer.write(*item)
                except BaseException as error:
                    self._error = error


def end_reading(works: Iterator[Work]) -> None:
    """End what reads ahead, in the thread that asked for it.

    Left to the garbage collector, it may be ended in a thread of its own pools, in the middle of
    handing a task to them: that thread waits for itself, and every pool of the process for it.
    """
    if isinstance(works, Generator):
        with suppress(ValueError):  # the teacher's thread is still taking from it
            works.close()
