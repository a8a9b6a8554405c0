"""Linear probes that are trained for epochs on augmented images of a frozen student.

Shapes: B images, D pooled features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.bench.augment import crop_and_flip
from distill.bench.batches import Images, class_labels, endless_rows, normalised, ordered_rows
from distill.configs.tasks import CompressProbeConfig, SgdProbeConfig, SimSiamProbeConfig
from distill.students.student import Student

CROP = 0.08
"""Smallest area of a random resized crop, as a share of the image: torchvision's default."""


@dataclass(frozen=True)
class Epochs:
    """A published recipe of a linear classifier on frozen features.

    Args:
        epochs: passes over the training images (count).
        batch_size: images per step (count).
        build: (classifier) -> its optimiser, at the peak of the learning rate.
        rate: epoch, from 0 -> the learning rate's share of its peak.
        spread: standard deviation of the initial weights, biases 0; None: as torch has it.
        look_every: epochs between looks at the held-out images; 0: none but the last.
        standardised: L2-normalise features and standardise them by the statistics that the
            L2-normalised features of the training images, not augmented, have.
    """

    epochs: int
    batch_size: int
    build: Callable[[nn.Module], torch.optim.Optimizer]
    rate: Callable[[int], float]
    spread: float | None = 0.01
    look_every: int = 0
    standardised: bool = False


def simsiam(config: SimSiamProbeConfig, total: int) -> Epochs:
    """Return SimSiam's: LARS, a cosine without warm-up and no weight decay.

    Source: METHODS 4.6; SimSiam's linear evaluation.
    """
    batch_size = min(config.batch_size, total)
    peak = config.lr * batch_size / 256
    return Epochs(
        epochs=config.epochs,
        batch_size=batch_size,
        build=lambda module: lars(module, lr=peak, momentum=config.momentum),
        rate=lambda epoch: _cosine(epoch, config.epochs),
    )


def squeeze_and_span(config: SgdProbeConfig, total: int) -> Epochs:
    """Return Squeeze-and-Span's: SGD at 30 for 256 images, a cosine per epoch, no weight decay.

    Source: METHODS 1.7.
    """
    batch_size = min(config.batch_size, total)
    peak = config.lr * batch_size / 256
    return Epochs(
        epochs=config.epochs,
        batch_size=batch_size,
        build=lambda module: torch.optim.SGD(
            module.parameters(), lr=peak, momentum=config.momentum
        ),
        rate=lambda epoch: _cosine(epoch, config.epochs),
        look_every=config.look_every,
    )


def compress(config: CompressProbeConfig, total: int) -> Epochs:
    """Return CompRess's: L2-normalised, standardised features, SGD that drops by steps.

    Source: METHODS 3.3.
    """
    return Epochs(
        epochs=config.epochs,
        batch_size=min(config.batch_size, total),
        build=lambda module: torch.optim.SGD(
            module.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        ),
        rate=lambda epoch: 0.1 ** sum(epoch >= drop for drop in config.drops),
        spread=None,
        look_every=config.look_every,
        standardised=True,
    )


class Pooled(nn.Module):
    """Freeze a student and average its deepest map over space: (B, 3, H, W) to (B, D)."""

    def __init__(self, student: Student, *, device: torch.device) -> None:
        super().__init__()
        self.student = student.to(device).eval().requires_grad_(False)
        self.device, self.width = device, student.channels[-1]

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return float32 (B, D)."""
        return self.student(images)[-1].float().mean(dim=(2, 3))


class Standard(nn.Module):
    """L2-normalise features and standardise them by a reference's statistics, variance + 1e-5.

    Args:
        reference: float (N, D), features whose statistics count.
    """

    def __init__(self, reference: Tensor) -> None:
        super().__init__()
        known = F.normalize(reference, dim=1)
        self.mean, self.scale = known.mean(dim=0), (known.var(dim=0, correction=0) + 1e-5).sqrt()

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, D)."""
        return (F.normalize(features, dim=1) - self.mean) / self.scale


@dataclass
class Frozen:
    """One frozen network and the labelled images that its probes learn from and are judged on."""

    network: Pooled
    train: Images
    heldout: Images
    seed: int

    def __post_init__(self) -> None:
        self.labels, self.truth, self.classes = class_labels(self.train, self.heldout)

    def by_epochs(self, recipe: Epochs) -> dict[str, Any]:
        """Train a classifier and judge it.

        Returns:
            "mean": accuracy of the last weights on the held-out images in per cent, "steps",
            "batch_size"; with looks at the held-out images also "best": {"mean", "epoch"}, which
            is how some papers report, and was chosen on the images that judge.
        """
        device = self.network.device
        classifier = nn.Linear(self.network.width, self.classes)
        drawn = torch.Generator().manual_seed(self.seed)
        if recipe.spread is not None:
            nn.init.normal_(classifier.weight, std=recipe.spread, generator=drawn)
            nn.init.zeros_(classifier.bias)
        else:
            bound = self.network.width**-0.5  # as torch does, from a seed of ours
            for values in (classifier.weight, classifier.bias):
                nn.init.uniform_(values, -bound, bound, generator=drawn)
        reference = self.all(self.train, self.labels)[0] if recipe.standardised else None
        inputs = nn.Identity() if reference is None else Standard(reference)
        optimizer = recipe.build(classifier.to(device))
        peak = optimizer.param_groups[0]["lr"]
        features, truth = self.all(self.heldout, self.truth)
        features = inputs(features)
        per_epoch = math.ceil(len(self.labels) / recipe.batch_size)
        steps, looks = recipe.epochs * per_epoch, dict[int, float]()
        rows = np.arange(len(self.labels))
        for step, (seen, labels) in enumerate(self.batches(rows, recipe.batch_size, steps), 1):
            for group in optimizer.param_groups:
                group["lr"] = peak * recipe.rate((step - 1) // per_epoch)
            loss = F.cross_entropy(classifier(inputs(seen)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            epoch, left = divmod(step, per_epoch)
            is_look = recipe.look_every and epoch % recipe.look_every == 0
            if not left and (is_look or epoch == recipe.epochs):
                looks[epoch] = _accuracy(classifier, features, truth)
        result = {"mean": looks[recipe.epochs], "steps": steps, "batch_size": recipe.batch_size}
        if recipe.look_every:
            best = max(looks, key=looks.__getitem__)
            result["best"] = {"mean": looks[best], "epoch": best}
        return result

    def batches(
        self, rows: np.ndarray, batch_size: int, steps: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (features (B, D), labels (B,)) of augmented training images."""
        device, drawn = self.network.device, torch.Generator().manual_seed(self.seed + 1)
        order = endless_rows(rows, batch_size=batch_size, seed=self.seed)
        for _, chosen in zip(range(steps), order, strict=False):
            pixels = self.train.rows(chosen).images
            images = normalised(pixels, student=self.network.student, device=device)
            images, _ = crop_and_flip(images, smallest=CROP, generator=drawn)
            yield self.network(images), torch.from_numpy(self.labels[chosen]).to(device)

    def all(
        self, images: Images, labels: np.ndarray, rows: np.ndarray | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return features (N, D) and labels (N,) of images as they are."""
        rows = np.arange(len(labels)) if rows is None else rows
        parts = []
        for at in ordered_rows(len(rows), batch_size=256):
            pixels = images.rows(rows[at]).images
            student, device = self.network.student, self.network.device
            parts.append(self.network(normalised(pixels, student=student, device=device)))
        return torch.cat(parts), torch.from_numpy(labels[rows]).to(self.network.device)


def lars(module: nn.Module, *, lr: float, momentum: float) -> torch.optim.Optimizer:
    """Return LARS without weight decay, its rate adapted to every weight as in SimSiam's probe.

    A step is lr x 0.001 x |w| / |gradient| times the gradient; plain where a weight is 0.
    """
    from timm.optim.lars import Lars

    any_momentum: Any = momentum  # timm's annotation says int
    # By default timm adapts only weights that decay: without decay it would be plain SGD.
    return Lars(module.parameters(), lr=lr, momentum=any_momentum, always_adapt=True)


def _cosine(epoch: int, epochs: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


@torch.no_grad()
def _accuracy(classifier: nn.Module, features: Tensor, truth: Tensor) -> float:
    return 100.0 * float((classifier(features).argmax(dim=1) == truth).float().mean())
