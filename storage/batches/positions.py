"""Endless positions: a training stream as one integer, shuffled without a table in memory.

Position `p` stands for one sample of one epoch. Epoch `e` is a seeded permutation of the samples,
computed number by number (a Feistel network walked until it lands inside the range), so any
position can be asked for at once, at any world size, and a resume is one integer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dreamshard.errors import ConfigError, DataError, Problem

PERMUTATION_VERSION = "feistel-1"
Shuffle = Literal["full", "block", "none"]
SHUFFLES: tuple[Shuffle, ...] = ("full", "block", "none")

_ROUNDS = 8  # blake2b gives 64 bytes: one 64-bit key per round
_SHORT = 64  # ranges this short are sorted by hash: a network's halves would be too few bits to mix
_MIX_1 = np.uint64(0xFF51AFD7ED558CCD)  # odd constants with well spread bits
_MIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
_MIX_SHIFT = np.uint64(32)


def permute(
    positions: np.ndarray, *, num_samples: int, seed: int, epoch: int, purpose: str = "samples"
) -> np.ndarray:
    """Map positions within an epoch to samples by that epoch's seeded permutation.

    Args:
        positions: int64 (N,), each in 0..num_samples-1, in any order.
        num_samples: size of the permutation, 1..2^62.
        seed: chooses the permutation, with the two below.
        epoch: 0 or more.
        purpose: what the permutation is for.

    Returns:
        int64 (N,), each in 0..num_samples-1; a bijection over all positions.
    """
    return _map(positions, num_samples, _round_keys(seed, epoch, purpose))


def invert(
    samples: np.ndarray, *, num_samples: int, seed: int, epoch: int, purpose: str = "samples"
) -> np.ndarray:
    """Undo `permute`: map samples to their positions within the epoch."""
    return _map(samples, num_samples, _round_keys(seed, epoch, purpose), backwards=True)


def _round_keys(seed: int, epoch: int, purpose: str) -> np.ndarray:
    text = f"{PERMUTATION_VERSION}/{purpose}/{seed}/{epoch}"
    digest = hashlib.blake2b(text.encode(), digest_size=8 * _ROUNDS).digest()
    return np.frombuffer(digest, "<u8")


def _mix(half: np.ndarray, key: np.uint64, keep: np.uint64) -> np.ndarray:
    mixed = (half ^ key) * _MIX_1
    mixed ^= mixed >> _MIX_SHIFT
    mixed *= _MIX_2
    return mixed >> keep  # the product's high bits depend on every bit below them


def _feistel(values: np.ndarray, keys: np.ndarray, bits: int, *, backwards: bool) -> np.ndarray:
    shift, keep, mask = np.uint64(bits), np.uint64(64 - bits), np.uint64((1 << bits) - 1)
    left, right = values >> shift, values & mask
    if backwards:
        for key in keys[::-1]:
            left, right = right ^ _mix(left, key, keep), left
    else:
        for key in keys:
            left, right = right, left ^ _mix(right, key, keep)
    return (left << shift) | right


def _map(values: np.ndarray, size: int, keys: np.ndarray, *, backwards: bool = False) -> np.ndarray:
    if size > _SHORT:
        return _walk(values, size, keys, backwards)
    order = np.argsort(_feistel(np.arange(size, dtype=np.uint64), keys, 32, backwards=False))
    return (np.argsort(order) if backwards else order)[np.asarray(values, np.int64)]


def _walk(values: np.ndarray, size: int, keys: np.ndarray, backwards: bool) -> np.ndarray:
    bits = ((size - 1).bit_length() + 1) // 2  # of each half: the domain is under 4 * size
    out = _feistel(np.asarray(values, np.uint64), keys, bits, backwards=backwards)
    outside = np.flatnonzero(out >= size)
    while outside.size:  # every cycle of the domain holds an inside value: its starting point
        again = _feistel(out[outside], keys, bits, backwards=backwards)
        out[outside] = again
        outside = outside[again >= size]
    return out.astype(np.int64)


@dataclass(frozen=True)
class Window:
    """Name what a shuffle window covers: it ends before position `end`, and reads `ranges`."""

    end: int
    ranges: list[tuple[int, int]]


class PositionStream:
    """Map an endless stream of positions to the valid samples of a snapshot.

    Args:
        num_samples: samples of the snapshot, valid or not.
        valid: bool (num_samples,), samples that count; None = all.
        seed: chooses the order; epochs differ under one seed.
        shuffle: "full" permutes all samples of an epoch; "block" visits blocks of neighbours in
            permuted order, `window_blocks` of them at a time, and permutes the samples inside
            each such window (cold or remote data is then read mostly in sequence); "none" keeps
            the order of the samples.
        block_samples: samples per block, 1 or more.
        window_blocks: blocks per window, 1 or more.

    Raises:
        ConfigError: if a setting is out of range.
        DataError: if no sample is valid.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        valid: np.ndarray | None = None,
        seed: int = 0,
        shuffle: Shuffle = "full",
        block_samples: int = 1024,
        window_blocks: int = 32,
    ) -> None:
        _check_settings(shuffle, block_samples, window_blocks)
        if valid is not None and len(valid) != num_samples:
            raise DataError(f"valid: got {len(valid)} rows, allowed num_samples = {num_samples}.")
        self._index = None if valid is None or np.all(valid) else np.flatnonzero(valid)
        self.epoch_size = num_samples if self._index is None else len(self._index)
        if self.epoch_size < 1:
            raise DataError(
                f"snapshot: got {num_samples} samples, none of them valid, allowed at least 1. "
                "Run `dreamshard inspect` on the dataset."
            )
        self.seed, self.shuffle = seed, shuffle
        self.block_samples, self.window_blocks = block_samples, window_blocks
        self._blocks = -(-self.epoch_size // block_samples)
        self._last = self.epoch_size - (self._blocks - 1) * block_samples  # the short block's size

    def describe(self) -> dict[str, str | int]:
        """Return what decides the order, for checkpoints and run folders."""
        order: dict[str, str | int] = {
            "permutation": PERMUTATION_VERSION,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "epoch_size": self.epoch_size,
        }
        if self.shuffle == "block":
            order |= {"block_samples": self.block_samples, "window_blocks": self.window_blocks}
        return order

    def samples(self, start: int, count: int) -> np.ndarray:
        """Return the samples of positions [start, start + count), int64 (count,)."""
        return self.at(np.arange(start, start + count, dtype=np.int64))

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return the samples of any positions: int64 (N,) of 0 or more -> int64 (N,)."""
        epochs, offsets = np.divmod(np.asarray(positions, np.int64), self.epoch_size)
        if self.shuffle == "none":
            ordinals = offsets
        else:
            ordinals = np.empty_like(offsets)
            order = self._full if self.shuffle == "full" else self._block
            for epoch in np.unique(epochs):
                rows = epochs == epoch
                ordinals[rows] = order(offsets[rows], int(epoch))
        return ordinals if self._index is None else self._index[ordinals]

    def window(self, position: int) -> Window:
        """Return the shuffle window that holds a position, for reading ahead of it.

        Raises:
            ConfigError: unless the shuffle is "block".
        """
        if self.shuffle != "block":
            raise ConfigError(
                Problem("shuffle", repr(self.shuffle), "'block' where windows are asked for")
            )
        epoch, offset = divmod(position, self.epoch_size)
        order = _BlockOrder(self, epoch)
        number = int(order.slot_of(np.array([offset]))[0]) // self.window_blocks
        first, stop = self._window_slots(number)
        blocks = self._permuted_blocks(np.arange(first, stop), epoch)
        ranges = []
        for block in np.sort(blocks).tolist():
            low = block * self.block_samples
            high = min(low + self.block_samples, self.epoch_size) - 1
            if self._index is not None:
                low, high = int(self._index[low]), int(self._index[high])
            ranges.append((low, high + 1))
        return Window(epoch * self.epoch_size + int(order.start_of(np.array([stop]))[0]), ranges)

    def _full(self, offsets: np.ndarray, epoch: int) -> np.ndarray:
        return permute(offsets, num_samples=self.epoch_size, seed=self.seed, epoch=epoch)

    def _block(self, offsets: np.ndarray, epoch: int) -> np.ndarray:
        order = _BlockOrder(self, epoch)
        windows = order.slot_of(offsets) // self.window_blocks
        moved = np.empty_like(offsets)
        for window in np.unique(windows):
            rows = windows == window
            low, high = order.start_of(np.array(self._window_slots(int(window))))
            purpose = f"window/{window}"
            moved[rows] = low + permute(
                offsets[rows] - low,
                num_samples=int(high - low),
                seed=self.seed,
                epoch=epoch,
                purpose=purpose,
            )
        slots = order.slot_of(moved)
        blocks = self._permuted_blocks(slots, epoch)
        return blocks * self.block_samples + moved - order.start_of(slots)

    def _permuted_blocks(self, slots: np.ndarray, epoch: int) -> np.ndarray:
        return permute(
            slots, num_samples=self._blocks, seed=self.seed, epoch=epoch, purpose="blocks"
        )

    def _window_slots(self, window: int) -> tuple[int, int]:
        first = window * self.window_blocks
        return first, min(first + self.window_blocks, self._blocks)


class _BlockOrder:
    """Place an epoch's blocks one after another, one of them shorter than the rest."""

    def __init__(self, stream: PositionStream, epoch: int) -> None:
        self.size, self.missing = stream.block_samples, stream.block_samples - stream._last
        last = np.array([stream._blocks - 1])
        self.short = int(
            invert(
                last, num_samples=stream._blocks, seed=stream.seed, epoch=epoch, purpose="blocks"
            )[0]
        )

    def start_of(self, slots: np.ndarray) -> np.ndarray:
        return slots * self.size - self.missing * (slots > self.short)

    def slot_of(self, offsets: np.ndarray) -> np.ndarray:
        after = offsets >= (self.short + 1) * self.size - self.missing
        return (offsets + self.missing * after) // self.size


def _check_settings(shuffle: str, block_samples: int, window_blocks: int) -> None:
    problems: list[Problem | str] = []
    if shuffle not in SHUFFLES:
        problems.append(Problem("shuffle", repr(shuffle), ", ".join(SHUFFLES)))
    if block_samples < 1:
        problems.append(Problem("block_samples", str(block_samples), "1 or more"))
    if window_blocks < 1:
        problems.append(Problem("window_blocks", str(window_blocks), "1 or more"))
    if problems:
        raise ConfigError(problems)
