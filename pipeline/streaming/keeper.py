"""Commit what is streamed, off the critical path: micro-batches add up to units.

Only micro-batches as an offline run would cut them count, so a unit committed here is the very unit
`dreamshard encode` or `synthesize` would have made. A unit that does not get whole (another actor
made a part of it, too many are open) is left to a later epoch or to those commands: keeping is
never waited for.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from secrets import token_hex

import numpy as np
import xxhash

from dreamshard.errors import DreamshardError
from storage.dataset import Dataset
from storage.schema import FeatureBatch

OPEN_UNITS = 8
"""Units that may be in the making at a time; of more, the one that waited longest is dropped."""

log = logging.getLogger(__name__)


@dataclass
class _Unit:
    """A unit in the making."""

    count: int
    have: int = 0
    batches: dict[int, tuple[FeatureBatch, bytes]] = field(default_factory=dict)
    """By row of the unit: the micro-batch that begins there, and its input's digest."""


class Keeper:
    """Put micro-batches together to units and commit each as soon as it is whole.

    Args:
        url: the dataset; its arrays are as long as its end.
        fsync: flush units before they count as done.
    """

    def __init__(self, url: str, *, fsync: bool = True) -> None:
        self._dataset = Dataset.open(url, fsync=fsync)
        self._end, self._size = self._dataset.requested(), self._dataset.samples_per_unit
        self._step = self._dataset.pins.micro_batch
        self._units: OrderedDict[int, _Unit] = OrderedDict()
        self._done: set[int] = set()
        self._lock = threading.Lock()
        self._run_id = f"stream-{token_hex(4)}"
        self._lease = self._dataset.lease(self._run_id)
        self._lease.__enter__()
        self.committed = 0
        """Units committed by this keeper."""
        self._queue: queue.Queue[tuple[int, _Unit] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="keeper", daemon=True)
        self._thread.start()

    def offer(self, batch: FeatureBatch, digest: bytes) -> None:
        """Take a micro-batch, if it is one that an offline run would make.

        Args:
            batch: as the teacher gave it, rows that are not valid included; not to be changed.
            digest: of the source's bytes that went in.
        """
        place = self._place(batch.index)
        if place is None:
            return
        number, row = place
        with self._lock:
            if number in self._done:
                return
            if number not in self._units and self._dataset.commit_of(number) is not None:
                self._done.add(number)
                return
            unit = self._units.setdefault(
                number, _Unit(min(self._size, self._end - number * self._size))
            )
            self._units.move_to_end(number)
            if row not in unit.batches:
                unit.batches[row] = (batch, digest)
                unit.have += len(batch)
            if unit.have == unit.count:
                self._done.add(number)
                self._queue.put((number, self._units.pop(number)))
            while len(self._units) > OPEN_UNITS:
                dropped, _ = self._units.popitem(last=False)
                log.info("unit %d is left to a later epoch: %d are open", dropped, len(self._units))

    def close(self) -> None:
        """Finish the units that are whole, and let go of the others."""
        self._queue.put(None)
        self._thread.join()
        self._dataset.roll_up(final=True)
        self._lease.__exit__(None, None, None)

    def _place(self, index: np.ndarray) -> tuple[int, int] | None:
        """Return unit and row of a natural micro-batch; None for any other."""
        first, count = int(index[0]), len(index)
        unit, row = divmod(first, self._size)
        end = min(self._size, self._end - unit * self._size)
        whole = row % self._step == 0 and count == min(self._step, end - row)
        return (unit, row) if whole and np.array_equal(index, first + np.arange(count)) else None

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            number, unit = item
            try:
                self._commit(number, unit)
                self.committed += 1
                self._dataset.roll_up()
            except (DreamshardError, OSError) as error:
                # The stream goes on without it: a full disk must not stop the training.
                log.warning("unit %d was not kept: %s", number, error)
                with self._lock:
                    self._done.discard(number)

    def _commit(self, number: int, unit: _Unit) -> None:
        digest = xxhash.xxh3_128()
        with self._dataset.unit_writer(number, count=unit.count, run_id=self._run_id) as writer:
            for row in sorted(unit.batches):
                batch, part = unit.batches[row]
                digest.update(part)
                writer.write(row, batch)
            writer.commit(input_digest=digest.hexdigest())
