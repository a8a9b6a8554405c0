"""Quantisers of few bits, and how many bits each of many coefficients should get."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np

MAX_BITS = 8  # per coefficient
BOOK_SIZE = sum(1 << bits for bits in range(1, MAX_BITS + 1))
_TINY = 1e-12


@lru_cache(maxsize=MAX_BITS)
def gaussian_book(bits: int) -> np.ndarray:
    """Return the values of the Lloyd-Max quantiser of a standard Gaussian, float64 (2^bits,).

    Source: Max, "Quantizing for minimum distortion" (1960), found by his own iteration.
    """
    normal, cells = NormalDist(), 1 << bits
    book = np.array([math.sqrt(3) * normal.inv_cdf((i + 0.5) / cells) for i in range(cells)])
    for _ in range(200):
        edges = [-math.inf, *((book[1:] + book[:-1]) / 2).tolist(), math.inf]
        below = np.array([0.0, *(normal.cdf(edge) for edge in edges[1:-1]), 1.0])
        density = np.array([0.0, *(normal.pdf(edge) for edge in edges[1:-1]), 0.0])
        book = -np.diff(density) / np.maximum(np.diff(below), _TINY)
    return book


def distortion(book: np.ndarray) -> float:
    """Return the mean squared error of a quantiser of a standard Gaussian, of its cells' means."""
    edges = (book[1:] + book[:-1]) / 2
    shares = np.diff([0.0, *map(NormalDist().cdf, edges.tolist()), 1.0])
    return float(1 - (shares * book**2).sum())


def allocate_bits(variance: np.ndarray, budget: int, errors: list[float]) -> np.ndarray:
    """Give each coefficient the whole number of bits that lowers the sum of errors most.

    Reverse water-filling for whole bits: the gain of a further bit falls with each, so that taking
    the largest gains one by one is optimal.

    Args:
        variance: of each coefficient, weighted, any shape.
        budget: bits in all.
        errors: errors[b] of a quantiser of b bits at variance 1, falling and convex.

    Returns:
        int64, the shape of `variance`, 0..len(errors)-1, no more than `budget` in all.
    """
    flat = variance.ravel()
    gains = -np.diff(errors)[:, None] * flat
    order = np.argsort(-gains.ravel(), kind="stable")[: min(budget, gains.size)]
    chosen = order[gains.ravel()[order] > 0] % len(flat)
    return np.bincount(chosen, minlength=len(flat)).reshape(variance.shape)
