"""Nearest neighbours by exact search.

Shapes: N training and M held-out samples, D features, B queries of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Metric = Literal["cosine", "l1"]


def knn_classes(
    train: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    *,
    ks: Sequence[int],
    temperature: float = 0.1,
    metric: Metric = "cosine",
    chunk: int = 1024,
    device: str = "cpu",
) -> np.ndarray:
    """Classify queries by exact search, a chunk of them at a time.

    Args:
        train: float (N, D).
        labels: int64 (N,), 0..K-1.
        queries: float (M, D).
        ks: numbers of neighbours, each up to N.
        temperature: votes weigh exp(similarity / temperature); 0: all alike, and of tied classes
            the one whose member is nearest wins.
        metric: cosine, or the negative L1 distance of L1-normalised features.
        chunk: queries compared at once.
        device: where to compute.

    Returns:
        int64 (M, len(ks)).
    """
    power = 2.0 if metric == "cosine" else 1.0
    kind = {"dtype": torch.float32, "device": device}
    known = F.normalize(torch.as_tensor(train, **kind), p=power, dim=1)
    classes = torch.as_tensor(labels, device=device)
    total = int(classes.max()) + 1
    found = []
    for first in range(0, len(queries), chunk):
        part = F.normalize(torch.as_tensor(queries[first : first + chunk], **kind), p=power, dim=1)
        near = part @ known.T if metric == "cosine" else -torch.cdist(part, known, p=1.0)
        similarity, index = near.topk(max(ks), dim=1)
        votes = [
            _vote(similarity[:, :k], classes[index[:, :k]], total=total, temperature=temperature)
            for k in ks
        ]
        found.append(torch.stack(votes, dim=1).cpu())
    return torch.cat(found).numpy()


def _vote(similarity: Tensor, classes: Tensor, *, total: int, temperature: float) -> Tensor:
    """Return the class that k neighbours, nearest first, vote for: (B, k) twice to (B,)."""
    rank = torch.arange(similarity.shape[1], device=similarity.device)
    if temperature:
        weights = ((similarity - similarity[:, :1]) / temperature).exp()  # the largest is 1
    else:
        weights = torch.ones_like(similarity)
        # Less than any difference of votes, more for the nearer: it decides ties alone.
        weights = weights + (0.5 / similarity.shape[1]) * (0.5 ** rank.clamp(max=20))
    ballot = torch.zeros(len(similarity), total, device=similarity.device)
    return ballot.scatter_add_(1, classes, weights).argmax(dim=1)
