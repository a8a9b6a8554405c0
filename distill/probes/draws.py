"""Draws of labelled samples, the same for every representation that is judged on them."""

from __future__ import annotations

import numpy as np

from dreamshard.rng import generator


def label_draws(
    labels: np.ndarray, *, shots: int, draws: int, seed: int, purpose: str
) -> np.ndarray:
    """Draw a few labelled samples per class, several times.

    Args:
        labels: int64 (N,); every class needs at least `shots` samples.
        shots: samples per class.
        draws: how many independent draws.
        seed: of the random numbers.
        purpose: what they are for; a draw depends on nothing else.

    Returns:
        int64 (draws, classes * shots), sample numbers.
    """
    classes = [np.flatnonzero(labels == value) for value in np.unique(labels)]
    rows = []
    for draw in range(draws):
        rng = generator(seed, draw, shots, purpose)
        rows.append(np.concatenate([rng.permutation(members)[:shots] for members in classes]))
    return np.stack(rows)


def fraction_draws(labels: np.ndarray, *, fraction: float, draws: int, seed: int) -> np.ndarray:
    """Draw a share of the labelled samples, the same share of every class, several times.

    Args:
        labels: int64 (N,).
        fraction: share of each class's samples, 0..1; every class gets one at least.
        draws: how many independent draws.
        seed: of the random numbers.

    Returns:
        int64 (draws, M), sample numbers.
    """
    classes = [np.flatnonzero(labels == value) for value in np.unique(labels)]
    rows = []
    for draw in range(draws):
        rng = generator(seed, draw, round(1e6 * fraction), "label-fraction")
        picked = [
            rng.permutation(members)[: max(1, round(fraction * len(members)))]
            for members in classes
        ]
        rows.append(np.concatenate(picked))
    return np.stack(rows)
