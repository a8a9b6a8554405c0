"""Squared maximum mean discrepancy between two samples of embeddings, unbiased.

Shapes: N and M samples, D features.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Kernel = Literal["rbf", "kid"]
CHUNK = 1024
"""Rows whose kernel values are held at once (count)."""
PAIRED = 2000
"""Samples whose distances give the bandwidth, at most (count)."""


def bandwidth(first: np.ndarray, second: np.ndarray, *, device: str = "cpu") -> float:
    """Return the median distance between L2-normalised samples of both, taken together.

    At most 2,000 samples, evenly spaced, are paired. 0 where most embeddings are the same.

    Args:
        first, second: float (N, D) and (M, D).
        device: where to compute.
    """
    joint = torch.cat([_unit(first, device), _unit(second, device)])
    step = -(-len(joint) // PAIRED)
    return float(torch.pdist(joint[::step]).median())


def squared_mmd(
    first: np.ndarray,
    second: np.ndarray,
    *,
    kernel: Kernel,
    width: float = 1.0,
    device: str = "cpu",
) -> float:
    """Estimate the squared discrepancy without bias; it may be negative.

    Args:
        first, second: float (N, D) and (M, D), two samples or more each.
        kernel: rbf: exp(-d^2 / (2 width^2)) of L2-normalised features; kid: (x.y / D + 1)^3 of
            features as they are.
        width: of the rbf kernel, above 0.
        device: where to compute.

    Source: Gretton et al. 2012, equation 3; KID: Binkowski et al. 2018.
    """
    kind = {"dtype": torch.float64, "device": device}
    known, other = (
        (_unit(first, device), _unit(second, device))
        if kernel == "rbf"
        else (torch.as_tensor(first, **kind), torch.as_tensor(second, **kind))
    )
    n, m = len(known), len(other)
    how = {"kernel": kernel, "width": width}
    within = (_total(known, known, **how) - _diagonal(known, **how)) / (n * (n - 1))
    within += (_total(other, other, **how) - _diagonal(other, **how)) / (m * (m - 1))
    return within - 2 * _total(known, other, **how) / (n * m)


def _total(first: Tensor, second: Tensor, *, kernel: str, width: float) -> float:
    """Return the sum of the kernel over all pairs."""
    return sum(
        float(_values(part @ second.T, part, second, kernel=kernel, width=width).sum())
        for part in first.split(CHUNK)
    )


def _diagonal(rows: Tensor, *, kernel: str, width: float) -> float:
    """Return the sum of the kernel over each sample with itself."""
    if kernel == "rbf":
        return float(len(rows))
    return float((rows.square().sum(dim=1) / rows.shape[1] + 1).pow(3).sum())


def _values(dots: Tensor, first: Tensor, second: Tensor, *, kernel: str, width: float) -> Tensor:
    if kernel == "kid":
        return (dots / first.shape[1] + 1).pow(3)
    squares = first.square().sum(dim=1)[:, None] + second.square().sum(dim=1) - 2 * dots
    return (squares.clamp(min=0) / (-2 * width**2)).exp()


def _unit(features: np.ndarray, device: str) -> Tensor:
    return F.normalize(torch.as_tensor(features, dtype=torch.float64, device=device), dim=1)
