"""What an interpreter is fitted to and judged on: views of features, and the truth beside them.

Shapes: N images, K classes, B examples of a batch; targets are masks (N, H, W) or labels (N,).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dreamshard.rng import generator
from pipeline.learning.interpreting.features import FeatureViews
from pipeline.teachers.interpreted.interpreter import Interpreter


@dataclass(frozen=True)
class Examples:
    """Pair the views of N images with their targets.

    Args:
        views: features of the images, several times over.
        targets: integers (N, H, W) or (N,), classes or `ignore`.
        ignore: what stands for no class.
    """

    views: FeatureViews
    targets: np.ndarray
    ignore: int

    def order(
        self, *, epochs: int, batch_size: int, seed: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (views, rows) of batches: each image once an epoch, in a view drawn for it."""
        count = len(self.targets)
        for epoch in range(epochs):
            drawn = generator(seed, epoch, 0, "interpret-order")
            order = drawn.permutation(count)
            view = drawn.integers(len(self.views.mirrored), size=count)
            for first in range(0, count, batch_size):
                chosen = slice(first, first + batch_size)
                yield view[chosen], order[chosen]

    def logits(self, interpreter: Interpreter, view: np.ndarray, rows: np.ndarray) -> Tensor:
        """Return an interpreter's logits: (B, K, H, W) at the masks' size, or (B, K)."""
        device = str(next(interpreter.parameters()).device)
        logits = interpreter(self.views.batch(view, rows, device=device))
        size = self.targets.shape[1:]
        return F.interpolate(logits, size=size, mode="bilinear") if size else logits

    def truth(self, view: np.ndarray, rows: np.ndarray, *, device: torch.device) -> Tensor:
        """Return the targets, int64 (B, H, W) or (B,); masks of mirrored views are mirrored."""
        truth = self.targets[rows].astype(np.int64)
        if truth.ndim == 3:
            flipped = self.views.mirrored[view]
            truth[flipped] = truth[flipped][:, :, ::-1]
        return torch.from_numpy(truth).to(device)


def judge(interpreter: Interpreter, examples: Examples) -> dict[str, float]:
    """Return "accuracy", the share of cells or images found, and for masks "miou", in per cent.

    Args:
        interpreter: in evaluation mode.
        examples: whose first view is looked at.
    """
    from sklearn.metrics import accuracy_score, jaccard_score

    guesses = []
    with torch.inference_mode():
        for row in range(len(examples.targets)):
            logits = examples.logits(interpreter, np.array([0]), np.array([row]))
            guesses.append(logits.argmax(dim=1).cpu().numpy())
    known = examples.targets != examples.ignore
    truth, guess = examples.targets[known], np.concatenate(guesses)[known]
    scores = {"accuracy": 100.0 * float(accuracy_score(truth, guess))}
    if examples.targets.ndim == 3:
        seen = np.union1d(truth, guess)  # the mean leaves other classes out
        scores["miou"] = 100.0 * float(jaccard_score(truth, guess, labels=seen, average="macro"))
    return scores
