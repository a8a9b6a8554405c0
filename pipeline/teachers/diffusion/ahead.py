"""Draw noise before it is needed: a GPU would wait for it, while the decoding threads do not."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakValueDictionary

import numpy as np

from dreamshard import rng

MOST_BYTES = 1 << 28
"""Noise of a micro-batch up to this size is drawn ahead; several are held at a time."""

Draw = tuple[str, int]
"""Purpose and number of a draw."""


class NoiseAhead:
    """Draw the standard normal numbers of micro-batches, some of them ahead.

    What is drawn ahead is kept as long as the caller keeps what `draw` returned, so that a
    micro-batch that is given up leaves nothing behind. The numbers are those of `rng.normal`.

    Args:
        seed: of the teacher.
        space: shape of a sample's noise.
    """

    def __init__(self, seed: int, space: tuple[int, ...]) -> None:
        self._seed, self._space = seed, space
        self._ready: WeakValueDictionary[tuple[Draw, bytes], np.ndarray] = WeakValueDictionary()

    def draw(self, indices: np.ndarray, draws: Sequence[Draw]) -> list[np.ndarray]:
        """Draw ahead; safe in any thread.

        Returns:
            the arrays, to be kept until they are taken; none where they are too large to keep.
        """
        if 4 * len(indices) * int(np.prod(self._space)) * len(draws) > MOST_BYTES:
            return []
        kept = []
        for purpose, number in draws:
            drawn = rng.normal(self._seed, indices, number, purpose, self._space)
            self._ready[(purpose, number), indices.tobytes()] = drawn
            kept.append(drawn)
        return kept

    def take(self, indices: np.ndarray, draw: Draw, *, threads: int = 1) -> np.ndarray:
        """Return the numbers of a draw, float32 (N, *space); drawn now if they were not before."""
        ready = self._ready.get((draw, indices.tobytes()))
        if ready is not None:
            return ready
        purpose, number = draw
        return rng.normal(self._seed, indices, number, purpose, self._space, threads=threads)
