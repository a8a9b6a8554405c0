"""How features are brought to scale before a read-out: two ways, as neither is fair to everything.

Standardising every feature blows up what hardly varies (the edges of an image, dead channels);
centring alone leaves the loudest features in charge. A comparison that fixes one of them favours a
representation by it: read-outs try both and choose on training samples.

Shapes: N samples, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

Scaling = Literal["raw", "centred", "standardised"]

# Where fits are equal, the first is taken.
SCALINGS: tuple[Scaling, ...] = ("standardised", "centred")
"""What a linear probe chooses from."""
# A feature that hardly varies (a corner pixel) must not be blown up to unit variance.
SMALLEST_SPREAD = 1e-3


def standardise(reference: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Shift and scale every feature by the reference's statistics.

    Every feature gets mean 0 and standard deviation 1 over the reference, where its own deviation
    is at least a thousandth of the largest; all are then divided by sqrt(D), so that a
    regularisation strength means the same for representations of different sizes.

    Args:
        reference: (N, D), whose mean and deviation are used; no labels are.
        others: arrays (M, D) to transform.

    Returns:
        float32 arrays, one per entry of `others`.
    """
    mean, spread = reference.mean(axis=0), reference.std(axis=0)
    floor = SMALLEST_SPREAD * float(spread.max()) or 1.0
    scale = np.maximum(spread, floor) * np.sqrt(reference.shape[1])
    return [((features - mean) / scale).astype(np.float32) for features in others]


def centre(reference: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Shift features by the reference's means, and scale all by one number.

    The number makes the mean squared length of the reference 1, as `standardise` does; features
    keep their sizes beside one another.

    Args:
        reference: (N, D), whose means and overall deviation are used; no labels are.
        others: arrays (M, D) to transform.

    Returns:
        float32 arrays, one per entry of `others`.
    """
    mean = reference.mean(axis=0)
    scale = float(np.sqrt(reference.var(axis=0).sum())) or 1.0
    return [((features - mean) / scale).astype(np.float32) for features in others]


def scaled(scaling: Scaling, reference: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Bring features to scale in one of the ways; raw leaves them as they are."""
    if scaling == "raw":
        return [np.asarray(features, np.float32) for features in others]
    return (standardise if scaling == "standardised" else centre)(reference, *others)


LEGEND = "s standardised, c centred"
"""What the letters of `mark` stand for."""


def mark(cell: Mapping[str, Any]) -> str:
    """Return what tells in a table which scaling a cell's figure has; empty where none was chosen.

    c: centred, s: standardised, r: raw.
    """
    return f" {cell['scaling'][0]}" if "scaling" in cell else ""
