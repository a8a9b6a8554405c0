"""Fill batches in background threads, in order, a bounded number ahead of the consumer."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from dreamshard.errors import DreamshardError

_Slot = TypeVar("_Slot")


class Prefetcher(Generic[_Slot]):
    """Fill slot after slot, each in `parts` that different threads may take.

    Args:
        fill: fill(number, part, slot) writes part 0..parts-1 of batch `number`.
        slot_of: slot_of(number) gives the slot of a batch; called once per batch, in order, and
            only when `ahead` lets that batch start.
        parts: parts per batch, 1 or more.
        threads: background threads, 1 or more; they are daemons and never outlive the process.
        ahead: batches filled or being filled beyond the last one handed out, 1 or more.
    """

    def __init__(
        self,
        *,
        fill: Callable[[int, int, _Slot], None],
        slot_of: Callable[[int], _Slot],
        parts: int,
        threads: int,
        ahead: int,
    ) -> None:
        self._fill, self._slot_of, self._parts, self._ahead = fill, slot_of, parts, ahead
        self._changed = threading.Condition()
        self._taken = 0  # parts handed to threads
        self._handed = 0  # batches handed to the consumer
        self._slots: dict[int, _Slot] = {}
        self._missing: dict[int, int] = {}  # unfinished parts by batch
        self._failures: dict[int, BaseException] = {}  # first failure by batch
        self._closed = False
        self._process = os.getpid()
        self.wait_s = 0.0  # seconds `next` has spent waiting
        names = [f"dreamshard-read-{number}" for number in range(threads)]
        self._threads = [threading.Thread(target=self._work, name=n, daemon=True) for n in names]
        for thread in self._threads:
            thread.start()

    def next(self) -> _Slot:
        """Return the next batch's slot, waiting for it if need be.

        Raises:
            DreamshardError: after close, or in a forked process, which has no threads.
            BaseException: whatever a thread raised.
        """
        if os.getpid() != self._process:
            raise DreamshardError(
                "reader: got a read in a forked process, allowed only where the reader was made. "
                "Make the reader after the fork."
            )
        started = time.perf_counter()
        with self._changed:
            number = self._handed
            while self._missing.get(number) != 0:
                if number in self._failures:
                    raise self._failures[number]
                if self._closed:
                    raise DreamshardError("reader: got a read after close. Make a new reader.")
                self._changed.wait()
            self._handed += 1
            del self._missing[number]
            slot = self._slots.pop(number)
            self._changed.notify_all()
        self.wait_s += time.perf_counter() - started
        return slot

    def stop(self) -> None:
        """Tell the threads to end, without waiting for them."""
        self._closed = True
        if os.getpid() == self._process:
            with self._changed:
                self._changed.notify_all()

    def close(self) -> None:
        """End the threads and wait for the part each is at."""
        self.stop()
        for thread in self._threads:
            if thread is not threading.current_thread() and os.getpid() == self._process:
                thread.join()

    def _work(self) -> None:
        number = 0
        try:
            while (ticket := self._take()) is not None:
                number = ticket[0]
                self._fill(*ticket)
                with self._changed:
                    self._missing[number] -= 1
                    if not self._missing[number]:
                        self._changed.notify_all()
        except BaseException as error:
            self._fail(number, error)

    def _fail(self, number: int, error: BaseException) -> None:
        """Stop taking parts; all of the earlier batches are taken, and are still handed out."""
        with self._changed:
            self._failures.setdefault(number, error)
            self._changed.notify_all()

    def _take(self) -> tuple[int, int, _Slot] | None:
        with self._changed:
            while self._taken // self._parts >= self._handed + self._ahead:
                if self._closed or self._failures:
                    return None
                self._changed.wait()
            if self._closed or self._failures:
                return None
            number, part = divmod(self._taken, self._parts)
            if part == 0:
                try:
                    self._slots[number] = self._slot_of(number)
                except BaseException as error:
                    self._fail(number, error)
                    return None
                self._missing[number] = self._parts
            self._taken += 1
            return number, part, self._slots[number]
