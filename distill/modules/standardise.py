"""Standardise a teacher's maps by statistics of the dataset: per channel, or by PHI-S.

Shapes: N samples, C channels, h and w cells of a map.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.learning.precise import in_float32

Standard = Literal["channel", "phi_s"]
EPS = 1e-6  # as of the per-position whitening: far below the variance of any map in use


class Standardiser(nn.Module):
    """Bring a teacher's map to zero mean and unit variance over the dataset; a part of checkpoints.

    Unlike whitening per position, it leaves the energy of a position and of an image as it is.

    Args:
        channels: C.
        kind: channel divides every channel by its own standard deviation; phi_s turns the channels
            so that all have the same variance, and divides them by one number.

    Source: PHI-S, Ranzinger et al. 2024 (arXiv 2410.01680), section 3; channel as in Theia.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, channels: int, *, kind: Standard) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("matrix", torch.eye(channels))

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Take the statistics of some samples.

        Args:
            values: float32 (N, C, h, w).
        """
        cells = values.double().transpose(0, 1).flatten(1)  # (C, N*h*w)
        mean = cells.mean(dim=1)
        centred = cells - mean[:, None]
        self.mean.copy_(mean)
        if self.kind == "channel":
            deviation = (centred.square().mean(dim=1) + EPS).sqrt()
            self.matrix.copy_(torch.diag(1 / deviation))
        else:
            self.matrix.copy_(phi_s(centred @ centred.T / cells.shape[1]))

    @in_float32
    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape, float32; no gradient flows."""
        centred = features.detach().float() - self.mean[:, None, None]
        if self.kind == "channel":
            return centred * self.matrix.diagonal()[:, None, None]
        return torch.einsum("cd,bdhw->bchw", self.matrix, centred)


def phi_s(covariance: Tensor) -> Tensor:
    """Return PHI-S's matrix: after it every channel has variance 1, by one scale and a rotation.

    With C = U L U^T it is H U^T / sqrt(mean of L), H a Hadamard matrix over sqrt(C) where C is a
    power of two, and elsewhere another rotation that spreads the variances evenly.

    Args:
        covariance: float64 (C, C).

    Returns:
        float64 (C, C), invertible: sqrt(mean of L) times its transpose is its inverse, over L's.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0)
    size = len(values)
    even = hadamard(size) if size & (size - 1) == 0 else spreading(values)
    return even @ vectors.T / (values.mean() + EPS).sqrt()


def hadamard(size: int) -> Tensor:
    """Return Sylvester's Hadamard matrix over sqrt(size), float64; `size` a power of two."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


def spreading(variances: Tensor) -> Tensor:
    """Return a rotation after which uncorrelated channels have the same variance each.

    Turning two channels, one above the mean and one below, brings one of them to the mean, and
    leaves the others alone; C - 1 such turns do it (Schur and Horn).

    Args:
        variances: float64 (C,), of channels without correlations.

    Returns:
        float64 (C, C), orthogonal.
    """
    rotation = torch.eye(len(variances), dtype=torch.float64)
    left = {place: float(value) for place, value in enumerate(variances)}
    mean = float(variances.mean())
    while len(left) > 1:
        low, high = min(left, key=left.__getitem__), max(left, key=left.__getitem__)
        span = left[high] - left[low]
        if span <= 0:
            break
        # Not correlated yet: each turned pair gives one to the mean, and the other goes on.
        share = (left[high] - mean) / span  # sine squared
        sine, cosine = math.sqrt(min(1, max(0, share))), math.sqrt(min(1, max(0, 1 - share)))
        first, second = rotation[high].clone(), rotation[low].clone()
        rotation[high], rotation[low] = (
            cosine * first + sine * second,
            cosine * second - sine * first,
        )
        left[low] += left[high] - mean
        del left[high]
    return rotation
