"""Nearest neighbours: what a representation is worth without any training.

Shapes: N training and M held-out images, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from distill.bench.layout import TextTable
from dreamshard.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from distill.bench.bench import Bench
    from distill.configs.tasks import KnnConfig

Metric = Literal["cosine", "l1"]


class Knn:
    """Classify held-out images by their nearest training images, for every representation.

    Source: Squeeze-and-Span's monitor (cosine, k = 200, weights exp(s / 0.1)); BigBiGAN's appendix
    (D_p of p-normalised features, majority, ties to the nearest).
    """

    def __init__(self, config: KnnConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed

    def describe(self) -> str:
        """Say in one line what is measured."""
        config = self.config
        votes = f"temperature {config.temperature:g}" if config.temperature else "majority"
        return f"nearest neighbours ({config.metric}, {votes}), k = {_listing(config.k)}"

    def count(self, bench: Bench) -> int:
        """Return how many rows `run` will report."""
        return len(bench.names)

    def run(self, bench: Bench, *, report: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Return {"rows": {name: {k: {"mean": accuracy in per cent}}}}.

        Raises:
            DataError: fewer training images than neighbours.
        """
        features = bench.features
        total = len(features.train_labels)
        if max(self.config.k) > total:
            raise DataError(f"knn.k: got {max(self.config.k)}, allowed up to {total}, the images.")
        rows: dict[str, dict[str, Any]] = {}
        for name, both in features.representations.items():
            guesses = knn_classes(
                both.train,
                features.train_labels,
                both.heldout,
                ks=self.config.k,
                temperature=self.config.temperature,
                metric=self.config.metric,
                chunk=self.config.chunk,
                device=str(bench.device),
            )
            right = guesses == features.heldout_labels[:, None]
            shares = 100.0 * right.mean(axis=0)
            pairs = zip(self.config.k, shares, strict=True)
            rows[name] = {str(k): {"mean": float(share)} for k, share in pairs}
            report()
        return {"rows": rows}

    def tables(self, result: Mapping[str, Any]) -> list[TextTable]:
        """Lay a result of `run` out."""
        rows = result["rows"]
        ks = next(iter(rows.values()))
        lines = [
            [name, *(f"{cell['mean']:.1f}" for cell in row.values())] for name, row in rows.items()
        ]
        title = f"% correct by nearest neighbours, {self.config.metric}"
        return [TextTable(title, ["representation", *(f"k = {k}" for k in ks)], lines)]


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
    import torch
    from torch.nn import functional as F

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
    import torch

    rank = torch.arange(similarity.shape[1], device=similarity.device)
    if temperature:
        weights = ((similarity - similarity[:, :1]) / temperature).exp()  # the largest is 1
    else:
        weights = torch.ones_like(similarity)
        # Less than any difference of votes, more for the nearer: it decides ties alone.
        weights = weights + (0.5 / similarity.shape[1]) * (0.5 ** rank.clamp(max=20))
    ballot = torch.zeros(len(similarity), total, device=similarity.device)
    return ballot.scatter_add_(1, classes, weights).argmax(dim=1)


def _listing(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
