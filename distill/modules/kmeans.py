"""k-means on vectors.

Shapes: N points, K clusters, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.losses.similarity import nearest

CHUNK = 8192  # points at a time: K columns of distances each


def kmeans(points: Tensor, *, count: int, iterations: int, seed: int) -> Tensor:
    """Return the centroids of k-means that began at points drawn at random.

    A cluster that lost all its points begins again at the point that is farthest from its own.

    Args:
        points: float32 (N, D), N of `count` or more.
        count: K.
        iterations: how often points are assigned and centroids moved.
        seed: of the first centroids.

    Returns:
        float32 (K, D).
    """
    generator = torch.Generator().manual_seed(seed)
    centroids = points[torch.randperm(len(points), generator=generator)[:count]].clone()
    for _ in range(iterations):
        own = torch.cat([nearest(chunk, centroids) for chunk in points.split(CHUNK)])
        sums = torch.zeros_like(centroids).index_add_(0, own, points)
        sizes = torch.bincount(own, minlength=count)
        distances = (points - centroids[own]).square().sum(dim=1)
        centroids = sums / sizes.clamp(min=1)[:, None]
        empty = (sizes == 0).nonzero().flatten()
        if len(empty):
            centroids[empty] = points[distances.topk(len(empty)).indices]
    return centroids
