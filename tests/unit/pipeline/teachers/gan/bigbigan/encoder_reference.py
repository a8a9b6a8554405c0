"""BigBiGAN's encoder written the long way, after the papers' and the official codes' operations.

`Encoder(...)` makes random variables as TensorFlow would name and shape them, in the order in which
the graph is built; `encode` runs them on images (N, H, W, 3), all in TensorFlow's order of axes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Encoder:
    """A random encoder.

    Args:
        reversible: RevNet rather than ResNet.
        filters: channels of a ResNet's stem.
        units: per stage.
        latent, hidden: numbers of z, and between the layers of the perceptron.
        blocks: of the perceptron.
        norms: whether it has norms before its ReLUs.
        crelu: whether there are statistics for BN + CReLU.
        last: whether a shortcut's layer is built last in its block.
        apart: whether mean and standard deviation have layers of their own.
    """

    reversible: bool = False
    filters: int = 8
    units: tuple[int, ...] = (2, 1)
    latent: int = 6
    hidden: int = 20
    blocks: int = 2
    norms: bool = False
    crelu: bool = True
    last: bool = False
    apart: bool = False
    last_relu: bool = True
    eps: float = 1e-4
    v: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(0)
        self.counts: dict[str, int] = {}
        stem = self.filters * (4 if self.reversible else 1)
        self.stem, width = self._kernel(7, 7, 3, stem), stem
        self.stages: list[list[dict[str, str]]] = []
        for stage, count in enumerate(self.units):
            out = 4 * self.filters * 2**stage
            seen = [out // 2] * count if self.reversible else [width] + [out] * (count - 1)
            self.stages.append([self._unit(into, out, unit) for unit, into in enumerate(seen)])
            width = out
        self.norm, self.width = self._norm(width), width
        now, self.head = width, []
        for _ in range(self.blocks):
            self.head.append(self._perceptron(now))
            now = self.hidden
        ends = [self.latent, self.latent] if self.apart else [2 * self.latent]
        self.out = [self._linear(now, end) for end in ends]
        self.crelu_norm = self._norm(width, affine=False) if self.crelu else ""

    def _unit(self, into: int, out: int, unit: int) -> dict[str, str]:
        half = out // 2 if self.reversible else out
        shortcut = not self.reversible and not unit
        own = {"norm1": self._norm(into)}
        if shortcut and not self.last:
            own["shortcut"] = self._kernel(1, 1, into, out)
        own["conv1"], own["norm2"] = self._kernel(1, 1, into, half // 4), self._norm(half // 4)
        own["conv2"] = self._kernel(3, 3, half // 4, half // 4)
        own["norm3"], own["conv3"] = self._norm(half // 4), self._kernel(1, 1, half // 4, half)
        if shortcut and self.last:
            own["shortcut"] = self._kernel(1, 1, into, out)
        return own

    def _perceptron(self, now: int) -> dict[str, str]:
        own = {}
        if now != self.hidden and not self.last:
            own["shortcut"] = self._linear(now, self.hidden)
        if self.norms:
            own["norm1"] = self._norm(now)
        own["fc1"] = self._linear(now, self.hidden)
        if self.norms:
            own["norm2"] = self._norm(self.hidden)
        own["fc2"] = self._linear(self.hidden, self.hidden)
        if now != self.hidden and self.last:
            own["shortcut"] = self._linear(now, self.hidden)
        return own

    def _name(self, kind: str) -> str:
        self.counts[kind] = number = self.counts.get(kind, -1) + 1
        return f"module/Encoder/{kind}_{number}"

    def _normal(self, *shape: int) -> np.ndarray:
        return torch.randn(shape, generator=self.random).numpy()

    def _kernel(self, *shape: int) -> str:
        name = self._name("conv2d")
        self.v[f"{name}/w"] = self._normal(*shape) * np.prod(shape[:3]) ** -0.5
        return name

    def _linear(self, into: int, out: int) -> str:
        name = self._name("linear")
        self.v[f"{name}/w"] = self._normal(into, out) * into**-0.5
        self.v[f"{name}/b"] = 0.2 * self._normal(out)
        return name

    def _norm(self, channels: int, *, affine: bool = True) -> str:
        name = self._name("batch_norm")
        if affine:
            self.v[f"{name}/gamma"] = 1 + 0.1 * self._normal(channels)
            self.v[f"{name}/beta"] = 0.1 * self._normal(channels)
        self.v[f"{name}/moving_mean"] = 0.1 * self._normal(channels)
        self.v[f"{name}/moving_variance"] = 0.5 + np.abs(self._normal(channels))
        return name

    def _get(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.v[name], np.float32))

    def _convolve(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = self._get(f"{name}/w").permute(3, 2, 0, 1)
        edge = kernel.shape[-1] // 2
        x = F.pad(x.permute(0, 3, 1, 2), (edge, edge, edge, edge))
        return F.conv2d(x, kernel, stride=stride).permute(0, 2, 3, 1)

    def _connect(self, x: Tensor, name: str) -> Tensor:
        return x @ self._get(f"{name}/w") + self._get(f"{name}/b")

    def _normalise(self, x: Tensor, name: str) -> Tensor:
        var = self._get(f"{name}/moving_variance") + self.eps
        x = (x - self._get(f"{name}/moving_mean")) / var.sqrt()
        if f"{name}/gamma" in self.v:
            x = x * self._get(f"{name}/gamma") + self._get(f"{name}/beta")
        return x

    def encode(self, images: np.ndarray) -> dict[str, Tensor]:
        """Return what every tap gives; images float32 (N, H, W, 3), maps as (N, C, H, W)."""
        x = self._convolve(torch.from_numpy(images), self.stem, 2).permute(0, 3, 1, 2)
        x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, stride=2).permute(0, 2, 3, 1)
        found = {}
        for stage, units in enumerate(self.stages):
            if stage and self.reversible:
                x = F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
                x = F.pad(x, (x.shape[3] // 2, x.shape[3] // 2))
            for number, unit in enumerate(units):
                x = self._run(x, unit, 2 if stage and not number else 1)
            found[f"e.block{stage + 1}"] = x.permute(0, 3, 1, 2)
        x = self._normalise(x, self.norm)
        x = F.relu(x) if self.last_relu else x
        found["e.avepool"] = pooled = x.mean((1, 2))
        if self.crelu:
            h = self._normalise(pooled, self.crelu_norm)
            found["e.bn_crelu"] = torch.cat([F.relu(h), F.relu(-h)], 1)
        for block in self.head:
            h = self._normalise(pooled, block["norm1"]) if self.norms else pooled
            h = self._connect(F.relu(h), block["fc1"])
            h = self._normalise(h, block["norm2"]) if self.norms else h
            h = self._connect(F.relu(h), block["fc2"])
            kept = self._connect(pooled, block["shortcut"]) if "shortcut" in block else pooled
            pooled = h + kept
        told = torch.cat([self._connect(pooled, name) for name in self.out], 1)
        found["e.z_mean"], raw = told[:, : self.latent], told[:, self.latent :]
        found["e.z_stdev"] = torch.log1p(raw.exp())
        return found

    def _run(self, x: Tensor, unit: dict[str, str], stride: int) -> Tensor:
        if self.reversible:
            x1, x2 = x.chunk(2, 3)
            h = F.relu(self._normalise(x2, unit["norm1"]))
            return torch.cat([x2, x1 + self._branch(h, unit)], 3)
        h = F.relu(self._normalise(x, unit["norm1"]))
        if "shortcut" in unit:
            x = self._convolve(h, unit["shortcut"], stride)
        return x + self._branch(h, unit, stride)

    def _branch(self, h: Tensor, unit: dict[str, str], stride: int = 1) -> Tensor:
        h = self._convolve(h, unit["conv1"])
        h = self._convolve(F.relu(self._normalise(h, unit["norm2"])), unit["conv2"], stride)
        return self._convolve(F.relu(self._normalise(h, unit["norm3"])), unit["conv3"])
