"""Linear probes by published protocols; all but the frozen one see augmented images.

Shapes: B images, D pooled features, K classes, S probes that are trained side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.bench.layout import TextTable
from distill.probes.frozen import frozen_probe
from distill.probes.scaling import LEGEND, SCALINGS, mark
from distill.tasks.linear_epochs import (
    Epochs,
    Frozen,
    Pooled,
    compress,
    simsiam,
    squeeze_and_span,
)
from dreamshard.rng import generator

if TYPE_CHECKING:
    from distill.bench.bench import Bench
    from distill.configs.tasks import BigBiGanProbeConfig, LinearProbeConfig

TITLES = {
    "lbfgs": "frozen features, L-BFGS",
    "simsiam": "SimSiam's LARS",
    "squeeze_and_span": "Squeeze-and-Span's SGD",
    "compress": "CompRess's",
    "bigbigan": "BigBiGAN's Adam sweep",
    "bigbigan_crelu": "BigBiGAN's, BN+CReLU",
}


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
                rows[name] |= self._trained(protocol, Frozen(frozen, train, heldout, self.seed))
                report()
        return {"rows": {name: row for name, row in rows.items() if row}}

    def _trained(self, protocol: str, frozen: Frozen) -> dict[str, Any]:
        config, total = self.config, len(frozen.labels)
        if protocol == "bigbigan":
            return bigbigan(frozen, config.bigbigan)
        recipes: dict[str, Callable[[], Epochs]] = {
            "simsiam": lambda: simsiam(config.simsiam, total),
            "squeeze_and_span": lambda: squeeze_and_span(config.squeeze_and_span, total),
            "compress": lambda: compress(config.compress, total),
        }
        return {protocol: frozen.by_epochs(recipes[protocol]())}

    def tables(self, result: Mapping[str, Any]) -> list[TextTable]:
        """Lay a result of `run` out."""
        rows = result["rows"]
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        lines = [
            [name, *(_text(row[c]) if c in row else "" for c in columns)]
            for name, row in rows.items()
        ]
        header = ["representation", *(TITLES[column] for column in columns)]
        legend = f"; features {LEGEND}" if "lbfgs" in columns else ""
        if {"squeeze_and_span", "compress"} & set(columns):
            legend += "; in brackets the best epoch, chosen on these images as the papers do"
        return [TextTable(f"% correct on held-out images, linear probe{legend}", header, lines)]

    def _frozen(
        self, bench: Bench, rows: dict[str, dict[str, Any]], report: Callable[[], None]
    ) -> None:
        features, config = bench.features, self.config.lbfgs
        for name, both in features.representations.items():
            result = frozen_probe(
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
            rows[name]["lbfgs"] = result.cell() | {
                "selection": {
                    scaling: {f"{key:g}": value for key, value in row.items()}
                    for scaling, row in result.selection.items()
                },
            }


def bigbigan(frozen: Frozen, config: BigBiGanProbeConfig) -> dict[str, Any]:
    """Train one classifier per learning rate, all on the same batches; choose the best.

    Source: BigBiGAN, appendix (evaluation); METHODS 6.
    """
    order = generator(frozen.seed, 0, 0, "bigbigan-selection").permutation(len(frozen.labels))
    cut = min(config.selection, len(frozen.labels) // 5)
    kept, rest = order[:cut], order[cut:]
    forms = [False, True] if config.crelu else [False]
    sweeps = [
        Sweep(frozen.network.width, frozen.classes, lrs=config.lrs, ema=config.ema, crelu=crelu)
        for crelu in forms
    ]
    for sweep in sweeps:
        sweep.to(frozen.network.device)
    batch_size = min(config.batch_size, len(rest))
    for features, labels in frozen.batches(rest, batch_size, config.steps):
        for sweep in sweeps:
            sweep.step(features, labels)
    selection = frozen.all(frozen.train, frozen.labels, kept)
    heldout = frozen.all(frozen.heldout, frozen.truth)
    results = {}
    for sweep in sweeps:
        chosen = sweep.accuracies(*selection)
        best = int(np.argmax(chosen))
        results["bigbigan_crelu" if sweep.crelu else "bigbigan"] = {
            "mean": sweep.accuracies(*heldout)[best],
            "lr": config.lrs[best],
            "selection": {f"{lr:g}": a for lr, a in zip(config.lrs, chosen, strict=True)},
            "last_weights": sweep.accuracies(*heldout, averaged=False)[best],
        }
    return results


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
        normed = self.norm(features)
        return torch.cat([normed.relu(), (-normed).relu()], dim=1) if self.crelu else normed


def _text(cell: Mapping[str, Any]) -> str:
    best = f" ({cell['best']['mean']:.1f})" if "best" in cell else ""
    return f"{cell['mean']:.1f}{mark(cell)}{best}"


def _linear(features: Tensor, weight: Tensor) -> Tensor:
    return torch.addmm(weight[-1], features, weight[:-1])
