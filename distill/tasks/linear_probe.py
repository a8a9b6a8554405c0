"""Linear probes by three published protocols; the first two see augmented images.

Shapes: B images, D pooled features, K classes, S probes that are trained side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.bench.augment import crop_and_flip
from distill.bench.batches import (
    Images,
    class_labels,
    endless_rows,
    normalised,
    ordered_rows,
)
from distill.bench.layout import TextTable
from distill.probes.frozen import frozen_probe
from distill.probes.scaling import LEGEND, SCALINGS, mark
from dreamshard.rng import generator

if TYPE_CHECKING:
    from distill.bench.bench import Bench
    from distill.configs.tasks import LinearProbeConfig
    from distill.students.student import Student

TITLES = {
    "lbfgs": "frozen features, L-BFGS",
    "simsiam": "SimSiam's LARS",
    "bigbigan": "BigBiGAN's Adam sweep",
    "bigbigan_crelu": "BigBiGAN's, BN+CReLU",
}
CROP = 0.08


class LinearProbe:
    """Train a linear classifier on frozen features, by the protocols asked for."""

    def __init__(self, config: LinearProbeConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed

    def describe(self) -> str:
        """Say in one line what is measured."""
        return f"linear probes: {', '.join(TITLES[name] for name in self.config.protocols)}"

    def count(self, bench: Bench) -> int:
        """Return how many steps `run` will report."""
        total = 0
        if "lbfgs" in self.config.protocols:
            fits = len(SCALINGS) * len(self.config.lbfgs.penalties) + 1
            total += len(bench.names) * fits
        return total + len(bench.networks) * len(set(self.config.protocols) - {"lbfgs"})

    def run(self, bench: Bench, *, report: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Return {"rows": {name: {protocol: {"mean": accuracy in per cent, ...}}}}.

        Raises:
            DataError: images without labels, held-out classes that training has not.
        """
        rows: dict[str, dict[str, Any]] = {name: {} for name in bench.names}
        for protocol in self.config.protocols:
            if protocol == "lbfgs":
                self._frozen(bench, rows, report)
                continue
            train, heldout = bench.images("train"), bench.images("heldout")
            for name, build in bench.networks.items():
                frozen = Pooled(build(), device=bench.device)
                job = _Job(frozen, train, heldout, self.config, self.seed)
                rows[name] |= (job.simsiam if protocol == "simsiam" else job.bigbigan)()
                report()
        return {"rows": {name: row for name, row in rows.items() if row}}

    def tables(self, result: Mapping[str, Any]) -> list[TextTable]:
        """Lay a result of `run` out."""
        rows = result["rows"]
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        lines = [
            [name, *(f"{row[c]['mean']:.1f}{mark(row[c])}" if c in row else "" for c in columns)]
            for name, row in rows.items()
        ]
        header = ["representation", *(TITLES[column] for column in columns)]
        legend = f"; features {LEGEND}" if "lbfgs" in columns else ""
        return [TextTable(f"% correct on held-out images, linear probe{legend}", header, lines)]

    def _frozen(
        self, bench: Bench, rows: dict[str, dict[str, Any]], report: Callable[[], None]
    ) -> None:
        features, config = bench.features, self.config.lbfgs
        for name, both in features.representations.items():
            found = frozen_probe(
                both.train,
                features.train_labels,
                both.heldout,
                features.heldout_labels,
                penalties=config.penalties,
                selection=config.selection,
                iterations=config.iterations,
                seed=self.seed,
                device=str(bench.device),
                report=report,
            )
            rows[name]["lbfgs"] = {
                "mean": found.accuracy,
                "penalty": found.penalty,
                "scaling": found.scaling,
                "selection": {
                    scaling: {f"{key:g}": value for key, value in row.items()}
                    for scaling, row in found.selection.items()
                },
            }


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


@dataclass
class _Job:
    """One network under the two protocols that see augmented images."""

    network: Pooled
    train: Images
    heldout: Images
    config: LinearProbeConfig
    seed: int

    def __post_init__(self) -> None:
        self.labels, self.truth, self.classes = class_labels(self.train, self.heldout)

    def simsiam(self) -> dict[str, Any]:
        """Train with LARS, a cosine without warm-up and no weight decay; judge the last weights.

        Source: METHODS 4.6; SimSiam's linear evaluation.
        """
        config = self.config.simsiam
        batch_size = min(config.batch_size, len(self.labels))
        classifier = nn.Linear(self.network.width, self.classes)
        nn.init.normal_(classifier.weight, std=0.01, generator=_generator(self.seed))
        nn.init.zeros_(classifier.bias)
        classifier.to(self.network.device)
        peak = config.lr * batch_size / 256
        optimizer = lars(classifier, lr=peak, momentum=config.momentum)
        per_epoch = math.ceil(len(self.labels) / batch_size)
        steps = config.epochs * per_epoch
        rows = np.arange(len(self.labels))
        for step, (features, labels) in enumerate(self._batches(rows, batch_size, steps)):
            epoch = step // per_epoch
            for group in optimizer.param_groups:
                group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
            loss = F.cross_entropy(classifier(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        features, truth = self._all(self.heldout, self.truth)
        with torch.no_grad():
            right = classifier(features).argmax(dim=1) == truth
        mean = 100.0 * float(right.float().mean())
        return {"simsiam": {"mean": mean, "steps": steps, "batch_size": batch_size}}

    def bigbigan(self) -> dict[str, Any]:
        """Train one classifier per learning rate, all on the same batches; choose the best.

        Source: BigBiGAN, appendix (evaluation); METHODS 6.
        """
        config = self.config.bigbigan
        order = generator(self.seed, 0, 0, "bigbigan-selection").permutation(len(self.labels))
        cut = min(config.selection, len(self.labels) // 5)
        kept, rest = order[:cut], order[cut:]
        forms = [False, True] if config.crelu else [False]
        sweeps = [
            Sweep(self.network.width, self.classes, lrs=config.lrs, ema=config.ema, crelu=crelu)
            for crelu in forms
        ]
        for sweep in sweeps:
            sweep.to(self.network.device)
        batch_size = min(config.batch_size, len(rest))
        for features, labels in self._batches(rest, batch_size, config.steps):
            for sweep in sweeps:
                sweep.step(features, labels)
        selection = self._all(self.train, self.labels, kept)
        heldout = self._all(self.heldout, self.truth)
        found = {}
        for sweep in sweeps:
            chosen = sweep.accuracies(*selection)
            best = int(np.argmax(chosen))
            found["bigbigan_crelu" if sweep.crelu else "bigbigan"] = {
                "mean": sweep.accuracies(*heldout)[best],
                "lr": config.lrs[best],
                "selection": {f"{lr:g}": a for lr, a in zip(config.lrs, chosen, strict=True)},
                "last_weights": sweep.accuracies(*heldout, averaged=False)[best],
            }
        return found

    def _batches(
        self, rows: np.ndarray, batch_size: int, steps: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (features (B, D), labels (B,)) of augmented training images."""
        device, drawn = self.network.device, _generator(self.seed + 1)
        order = endless_rows(rows, batch_size=batch_size, seed=self.seed)
        for _, chosen in zip(range(steps), order, strict=False):
            pixels = self.train.rows(chosen).images
            images = normalised(pixels, student=self.network.student, device=device)
            images, _ = crop_and_flip(images, smallest=CROP, generator=drawn)
            yield self.network(images), torch.from_numpy(self.labels[chosen]).to(device)

    def _all(
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


class Sweep(nn.Module):
    """Train S linear classifiers at S learning rates on the same features.

    Zero initial weights, Adam, exponential averages of the weights. With `crelu` the features are
    batch-normalised without parameters and both their signs rectified: [relu(h), relu(-h)].

    Args:
        width: D.
        num_classes: K.
        lrs: S learning rates.
        ema: decay of the averages.
        crelu: BN+CReLU features.
    """

    def __init__(
        self, width: int, num_classes: int, *, lrs: list[float], ema: float, crelu: bool
    ) -> None:
        super().__init__()
        self.crelu, self.ema = crelu, ema
        self.norm = nn.BatchNorm1d(width, affine=False) if crelu else nn.Identity()
        size = 2 * width if crelu else width
        self.weights = nn.ParameterList(
            nn.Parameter(torch.zeros(size + 1, num_classes)) for _ in lrs
        )
        self.averages = [torch.zeros(size + 1, num_classes) for _ in lrs]
        groups = [{"params": [w], "lr": lr} for w, lr in zip(self.weights, lrs, strict=True)]
        self.optimizer = torch.optim.Adam(groups)

    def step(self, features: Tensor, labels: Tensor) -> None:
        """Take one step with all classifiers."""
        self.norm.train()
        inputs = self._inputs(features)
        losses = [F.cross_entropy(_linear(inputs, weight), labels) for weight in self.weights]
        self.optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        self.optimizer.step()
        for number, weight in enumerate(self.weights):
            average = self.averages[number].to(weight.device)
            self.averages[number] = average.lerp_(weight.detach(), 1 - self.ema)

    @torch.no_grad()
    def accuracies(self, features: Tensor, labels: Tensor, *, averaged: bool = True) -> list[float]:
        """Return each classifier's accuracy in per cent, with averaged or last weights."""
        self.norm.eval()
        inputs = self._inputs(features)
        return [
            100.0 * float((_linear(inputs, w).argmax(dim=1) == labels).float().mean())
            for w in (self.averages if averaged else self.weights)
        ]

    def _inputs(self, features: Tensor) -> Tensor:
        found = self.norm(features)
        return torch.cat([found.relu(), (-found).relu()], dim=1) if self.crelu else found


def _linear(features: Tensor, weight: Tensor) -> Tensor:
    return torch.addmm(weight[-1], features, weight[:-1])


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
