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

from distill.probes.scaling import Scaling, scaled
from dreamshard.rng import generator

Metric = Literal["cosine", "l1"]
Ties = Literal["nearest", "random"]
SIMILARITIES = 1 << 28
"""Similarities held at once (count)."""
KEPT_OUT = 2000
"""Training samples that choose how features are brought to scale, at most (count)."""
FORMS: tuple[Scaling, ...] = ("raw", "centred", "standardised")


def knn_classes(
    train: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    *,
    ks: Sequence[int],
    temperature: float = 0.1,
    metric: Metric = "cosine",
    ties: Ties = "nearest",
    seed: int = 0,
    chunk: int = 1024,
    device: str = "cpu",
) -> np.ndarray:
    """Classify queries by exact search, a chunk of them at a time.

    Args:
        train: float (N, D).
        labels: int64 (N,), any numbers: memory does not depend on how many, or how large.
        queries: float (M, D).
        ks: numbers of neighbours, each up to N.
        temperature: votes weigh exp(similarity / temperature); 0: all alike.
        metric: cosine (the order of BigBiGAN's D2), or the negative L1 distance of L1-normalised
            features (D1).
        ties: which of tied classes wins: that of the nearest member, or any at random (CompRess).
        seed: of the random choice.
        chunk: queries compared at once; fewer where their similarities take over a gigabyte.
        device: where to compute.

    Returns:
        int64 (M, len(ks)).
    """
    power = 2.0 if metric == "cosine" else 1.0
    kind = {"dtype": torch.float32, "device": device}
    known = F.normalize(torch.as_tensor(train, **kind), p=power, dim=1)
    classes = torch.as_tensor(labels, device=device)
    chunk = max(1, min(chunk, SIMILARITIES // max(1, len(train))))
    guesses, drawn = [], generator(seed, 0, 0, "knn-ties")
    for first in range(0, len(queries), chunk):
        part = F.normalize(torch.as_tensor(queries[first : first + chunk], **kind), p=power, dim=1)
        near = part @ known.T if metric == "cosine" else -torch.cdist(part, known, p=1.0)
        similarity, index = near.topk(max(ks), dim=1)
        luck = None
        if ties == "random":  # row after row from one stream: the chunk does not matter
            luck = torch.as_tensor(drawn.random(index.shape, np.float32), device=device)
        votes = []
        for k in ks:
            voters = similarity[:, :k], classes[index[:, :k]]
            chance = None if luck is None else luck[:, :k]
            votes.append(_vote(*voters, temperature=temperature, luck=chance))
        guesses.append(torch.stack(votes, dim=1).cpu())
    return torch.cat(guesses).numpy()


def _vote(
    similarity: Tensor, classes: Tensor, *, temperature: float, luck: Tensor | None = None
) -> Tensor:
    """Return the class that k neighbours, nearest first, vote for: (B, k) twice to (B,).

    Of tied classes that of the nearest member wins, or with `luck`, random numbers (B, k), that of
    the member whose number is least.
    """
    if temperature:
        weights = ((similarity - similarity[:, :1]) / temperature).exp()  # the largest is 1
    else:
        weights = torch.ones_like(similarity)
    # One place per class among the k, not per class there is; in order, so that ties fall alike.
    ordered, order = classes.sort(dim=1, stable=True)
    place = F.pad(ordered.diff(dim=1) != 0, (1, 0)).cumsum(dim=1)
    ballot = torch.zeros_like(similarity).scatter_add_(1, place, weights.gather(1, order))
    rank = order.to(similarity.dtype) if luck is None else luck.gather(1, order)
    first = torch.full_like(rank, torch.inf).scatter_reduce_(1, place, rank, "amin")
    tied = ballot == ballot.max(dim=1, keepdim=True).values
    winner = first.where(tied, torch.inf).argmin(dim=1, keepdim=True)
    won = (place == winner).int().argmax(dim=1, keepdim=True)
    return ordered.gather(1, won)[:, 0]


def choose_scalings(
    train: np.ndarray,
    labels: np.ndarray,
    *,
    ks: Sequence[int],
    seed: int,
    temperature: float = 0.1,
    metric: Metric = "cosine",
    ties: Ties = "nearest",
    device: str = "cpu",
) -> list[tuple[Scaling, float]]:
    """Choose per k how features are brought to scale, on training samples kept out.

    A fifth of the samples (2,000 at most) are classified by the others; raw features, which the
    published protocols have, are taken where nothing is better.

    Args:
        train: float (N, D).
        labels: int64 (N,).
        ks: numbers of neighbours; at most as many vote as there are others.
        seed: of the choice of those samples.
        temperature, metric, ties, device: as `knn_classes` takes them.

    Returns:
        For each k the scaling, and its accuracy on the samples that chose it, 0..1.
    """
    order = generator(seed, 0, 0, "knn-scaling").permutation(len(train))
    cut = min(KEPT_OUT, max(1, len(train) // 5))
    kept, rest = order[:cut], order[cut:]
    best: list[tuple[Scaling, float]] = [("raw", -1.0)] * len(ks)
    for scaling in FORMS:
        (features,) = scaled(scaling, train, train)
        guesses = knn_classes(
            features[rest],
            labels[rest],
            features[kept],
            ks=[min(k, len(rest)) for k in ks],
            temperature=temperature,
            metric=metric,
            ties=ties,
            seed=seed,
            device=device,
        )
        shares = (guesses == labels[kept][:, None]).mean(axis=0)
        best = [
            (scaling, float(share)) if share > before[1] else before
            for before, share in zip(best, shares, strict=True)
        ]
    return best
