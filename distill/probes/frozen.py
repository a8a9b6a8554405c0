"""Logistic regression on features extracted once: full-batch L-BFGS in torch, scaling chosen.

Shapes: N training and M held-out images, D features, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.probes.scaling import SCALINGS, Scaling, scaled
from dreamshard.rng import generator

SMALL_GRADIENT = 1e-3
"""Largest gradient of a fit that counts as done; features have a mean square of 1."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeResult:
    """Say how good a probe is.

    Args:
        accuracy: on the held-out images, per cent.
        penalty: that was chosen.
        scaling: of the features, that was chosen with it.
        selection: scaling -> penalty -> accuracy on the images that chose, per cent.
        gradient: largest of the last fit where it ended; far from 0, it was not done.
    """

    accuracy: float
    penalty: float
    scaling: Scaling
    selection: dict[Scaling, dict[float, float]]
    gradient: float

    def cell(self) -> dict[str, Any]:
        """Return what a table keeps of it: the accuracy as "mean", and what was chosen."""
        return {
            "mean": self.accuracy,
            "penalty": self.penalty,
            "scaling": self.scaling,
            "gradient": self.gradient,
        }


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    *,
    penalty: float,
    num_classes: int,
    iterations: int,
    start: Tensor | None = None,
) -> Tensor:
    """Minimise mean cross-entropy + penalty * ||W||^2 / 2 with L-BFGS, from zero or from `start`.

    Args:
        features: float32 (N, D), brought to scale, the sqrt(D) of `standardise` taken back.
        labels: int64 (N,).
        penalty: weight of the squared L2 norm of the weights; the bias has none.
        num_classes: K.
        iterations: most iterations.
        start: an earlier solution to begin at.

    Returns:
        float32 (D + 1, K), the bias last.
    """
    shape = (features.shape[1] + 1, num_classes)
    solution = torch.zeros(shape, device=features.device) if start is None else start.clone()
    solution.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [solution],
        max_iter=iterations,
        history_size=10,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _objective(features, labels, solution, penalty)
        loss.backward()
        return loss

    optimizer.step(closure)
    return solution.detach()


def largest_gradient(features: Tensor, labels: Tensor, solution: Tensor, penalty: float) -> float:
    """Return the largest entry of the gradient of what `fit_logistic` minimises, at a solution."""
    at = solution.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(_objective(features, labels, at, penalty), at)
    return float(gradient.abs().max())


def _objective(features: Tensor, labels: Tensor, solution: Tensor, penalty: float) -> Tensor:
    loss = F.cross_entropy(logits(features, solution), labels)
    return loss + 0.5 * penalty * solution[:-1].square().sum()


def logits(features: Tensor, solution: Tensor) -> Tensor:
    """Return float32 (N, K)."""
    return torch.addmm(solution[-1], features, solution[:-1])


def frozen_probe(
    train: np.ndarray,
    train_labels: np.ndarray,
    heldout: np.ndarray,
    heldout_labels: np.ndarray,
    *,
    penalties: Sequence[float],
    selection: float,
    iterations: int,
    seed: int,
    balanced: bool = False,
    device: str = "cpu",
    report: Callable[[], None] = lambda: None,
) -> ProbeResult:
    """Choose scaling and penalty on training images kept out, fit on all, judge on others.

    Features are shifted and scaled by their statistics over the training images, standardised one
    by one or centred only; both have a mean square of 1.

    Args:
        train, heldout: float (N, D) and (M, D).
        train_labels, heldout_labels: int64 (N,) and (M,).
        penalties: candidates; of equals the larger is taken.
        selection: share of the training images kept out to choose on.
        iterations: most L-BFGS iterations of a fit; a last fit that they end is logged.
        seed: of the choice of those images.
        balanced: judge by the mean over classes, when choosing too, instead of over images.
        device: where to compute.
        report: called after each fit.
    """
    labels = torch.from_numpy(train_labels).to(device)
    classes = int(max(train_labels.max(), heldout_labels.max())) + 1
    order = generator(seed, 0, 0, "probe-penalty").permutation(len(train))
    cut = max(1, round(selection * len(train)))
    kept, rest = (torch.from_numpy(part).to(device) for part in (order[:cut], order[cut:]))
    scores: dict[Scaling, dict[float, float]] = {}
    fits: dict[tuple[Scaling, float], Tensor] = {}
    for scaling in SCALINGS:
        (known,) = _inputs(scaling, train, train, device=device)
        scores[scaling], start = {}, None
        for penalty in sorted(penalties, reverse=True):  # each begins where the stronger ended
            start = fit_logistic(
                known[rest],
                labels[rest],
                penalty=penalty,
                num_classes=classes,
                iterations=iterations,
                start=start,
            )
            fits[scaling, penalty] = start
            scores[scaling][penalty] = _accuracy(
                known[kept], labels[kept], start, balanced=balanced
            )
            report()
    pairs: list[tuple[Scaling, float]] = [
        (scaling, penalty) for scaling in SCALINGS for penalty in scores[scaling]
    ]
    best = max(pairs, key=lambda pair: scores[pair[0]][pair[1]])
    known, unknown = _inputs(best[0], train, train, heldout, device=device)
    # Begun at the chosen one: of fewer images, by the same statistics, and close.
    solution, gradient = _last(known, labels, fits[best], penalty=best[1], iterations=iterations)
    report()
    truth = torch.from_numpy(heldout_labels).to(device)
    accuracy = _accuracy(unknown, truth, solution, balanced=balanced)
    return ProbeResult(accuracy, best[1], best[0], scores, gradient)


def _last(
    features: Tensor, labels: Tensor, start: Tensor, *, penalty: float, iterations: int
) -> tuple[Tensor, float]:
    """Fit to all images, and return the largest gradient with the solution; log where it is big."""
    solution = fit_logistic(
        features,
        labels,
        penalty=penalty,
        num_classes=start.shape[1],
        iterations=iterations,
        start=start,
    )
    gradient = largest_gradient(features, labels, solution, penalty)
    if gradient > SMALL_GRADIENT:
        log.warning(
            "linear probe: no end after %d steps (%d samples of %d features, penalty %g, largest "
            "gradient %.1g): its accuracy is that of an unfinished fit; raise its `iterations`",
            iterations, *features.shape, penalty, gradient,
        )  # fmt: skip
    return solution, gradient


def _inputs(
    scaling: Scaling, reference: np.ndarray, *others: np.ndarray, device: str
) -> list[Tensor]:
    root = np.float32(np.sqrt(reference.shape[1]))
    return [
        torch.from_numpy(each * root).to(device) for each in scaled(scaling, reference, *others)
    ]


def _accuracy(features: Tensor, labels: Tensor, solution: Tensor, *, balanced: bool) -> float:
    right = (logits(features, solution).argmax(dim=1) == labels).float()
    if balanced:  # over the classes that there are
        return 100.0 * float(
            torch.stack([right[labels == each].mean() for each in labels.unique()]).mean()
        )
    return 100.0 * float(right.mean())
