"""Which samples a position of the endless stream stands for: pure functions of (settings, p).

The stream is cut into micro-batches that begin anew with every epoch, so what a teacher computes
together never depends on who asks, from where, or at what world size. Several sources share a
stream by a fixed pattern of positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from storage.batches.positions import PositionStream, invert

Shuffle = Literal["full", "runs", "none"]
EPOCH_LANE = 1 << 40
"""Distance of an epoch's sample numbers in the RNG key from those of the epoch before, where every
epoch draws fresh noise; epoch 0 draws what a dataset's samples do."""


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass serves: positions [first, first + len(samples)) of one source.

    Args:
        part: number of the source.
        epoch: pass over the source, 0 or more; always 0 where it has no end.
        first: the source's own position of the first sample.
        samples: int64 (n,), numbers of the samples, n at most the micro-batch.
    """

    part: int
    epoch: int
    first: int
    samples: np.ndarray

    @property
    def key(self) -> tuple[int, int]:
        """Identify it among all of a stream."""
        return self.part, self.first


class Order:
    """Map one source's endless positions to samples and micro-batches.

    Args:
        part: number of the source in its stream.
        num_samples: samples per epoch; None for a generator without end.
        micro_batch: samples per forward pass, 1 or more.
        seed: of the permutation.
        shuffle: "full" permutes the samples of an epoch; "runs" permutes whole micro-batches of
            neighbours, a few units at a time, so that units fill up one after another and the
            teacher computes the very micro-batches of an offline run; "none" keeps their order.
        samples_per_unit: for "runs", a multiple of micro_batch.
        window_units: for "runs", units that are mixed with one another.
    """

    def __init__(
        self,
        *,
        part: int = 0,
        num_samples: int | None,
        micro_batch: int,
        seed: int = 0,
        shuffle: Shuffle = "full",
        samples_per_unit: int = 0,
        window_units: int = 8,
    ) -> None:
        self.part, self.num_samples, self.micro_batch = part, num_samples, micro_batch
        self.shuffle = shuffle if num_samples is not None else "none"
        self._samples_per_unit = samples_per_unit
        self._stream: PositionStream | None = None
        if num_samples is None or self.shuffle == "none":
            return
        if self.shuffle == "full":
            self._stream = PositionStream(num_samples=num_samples, seed=seed)
        elif num_samples >= micro_batch:
            self._stream = PositionStream(
                num_samples=num_samples // micro_batch,
                seed=seed,
                shuffle="block",
                block_samples=max(1, samples_per_unit // micro_batch),
                window_blocks=window_units,
            )

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return the samples of any positions: int64 (N,) of 0 or more -> int64 (N,)."""
        positions = np.asarray(positions, np.int64)
        if self.num_samples is None:
            return positions
        epochs, offsets = np.divmod(positions, self.num_samples)
        if self._stream is None:
            return offsets
        if self.shuffle == "full":
            return self._stream.at(positions)
        runs = self.num_samples // self.micro_batch
        slots, rows = np.divmod(offsets, self.micro_batch)
        whole = slots < runs  # the short run at the end of an epoch stays there
        samples = offsets.copy()
        moved = self._stream.at(epochs[whole] * runs + slots[whole])
        samples[whole] = moved * self.micro_batch + rows[whole]
        return samples

    def home(self, batch: MicroBatch) -> int | None:
        """Number a micro-batch's unit in the order of this epoch; None unless units fill up."""
        if self.shuffle != "runs" or self._stream is None:
            return None
        unit = int(batch.samples[0]) // self._samples_per_unit
        blocks = -(-self._stream.epoch_size // self._stream.block_samples)
        if unit >= blocks:
            return unit  # no more than the short run at the end
        slots = invert(
            np.array([unit]),
            num_samples=blocks,
            seed=self._stream.seed,
            epoch=batch.epoch,
            purpose="blocks",
        )
        return int(slots[0])

    def micro_batches(self, start: int, stop: int) -> Iterator[MicroBatch]:
        """Yield the micro-batches that cover positions [start, stop), in order."""
        size, total = self.micro_batch, self.num_samples
        while start < stop:
            epoch, offset = (0, start) if total is None else divmod(start, total)
            lead = offset % size
            first = start - lead
            count = size if total is None else min(size, total - (offset - lead))
            samples = self.at(np.arange(first, first + count))
            yield MicroBatch(self.part, epoch, first, samples)
            start = first + count


class Mix:
    """Share one stream between sources in exact proportions, position by position.

    Every `sum(weights)` positions hold `weights[k]` of source k, spread as evenly as they go.

    Args:
        weights: one count per source, each 1 or more.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        self.weights = np.asarray(weights, np.int64)
        self.period = int(self.weights.sum())
        self._pattern = _spread(self.weights)
        before = np.zeros((self.period + 1, len(weights)), np.int64)
        before[1:] = np.cumsum(self._pattern[:, None] == np.arange(len(weights)), axis=0)
        self._before = before

    def parts(self, start: int, stop: int) -> np.ndarray:
        """Return which source each position of [start, stop) belongs to, int64 (stop - start,)."""
        return self._pattern[np.arange(start, stop) % self.period]

    def before(self, position: int) -> list[int]:
        """Count the positions of each source below `position`: where its own stream stands."""
        rounds, rest = divmod(position, self.period)
        return (rounds * self.weights + self._before[rest]).tolist()


def _spread(weights: np.ndarray) -> np.ndarray:
    """Write down the pattern: always the source that is furthest behind its share."""
    period, credit = int(weights.sum()), np.zeros(len(weights), np.int64)
    pattern = np.empty(period, np.int64)
    for slot in range(period):
        credit += weights
        pattern[slot] = chosen = int(np.argmax(credit))
        credit[chosen] -= period
    return pattern


def stand_ins(valid: np.ndarray) -> np.ndarray | None:
    """Say which row of a micro-batch stands where a row cannot be used: the next one that can.

    Args:
        valid: bool (n,).

    Returns:
        int64 (n,), rows; None where all can be used; empty where none can.
    """
    valid = np.asarray(valid, bool)
    if valid.all():
        return None
    usable = np.flatnonzero(valid)
    return (
        usable[np.searchsorted(usable, np.arange(len(valid))) % len(usable)]
        if len(usable)
        else usable
    )
