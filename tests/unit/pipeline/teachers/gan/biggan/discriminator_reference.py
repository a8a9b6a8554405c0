"""BigGAN's discriminators written the long way, after the official code's order of operations."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Discriminator:
    """A random discriminator in the official format.

    Args:
        widths: channels into the first block and out of every block (or stage, if deep).
        halved: for each block (or stage), whether it halves the map.
        attention: numbers of stages with attention at their end.
        wide: whether a block's first convolution has as many channels as its second (D_wide).
        depth: blocks per stage, if deep.
        classes: whose projections are added.
    """

    widths: tuple[int, ...] = (3, 8, 16, 32)
    halved: tuple[bool, ...] = (True, True, False)
    attention: tuple[int, ...] = ()
    deep: bool = False
    wide: bool = True
    depth: int = 2
    classes: int = 5
    sn_eps: float = 1e-6
    state: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(0)
        if self.deep:
            self._layer("input_conv", self.widths[0], 3, 3)
        for stage, (into, out) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            for number in range(self.depth if self.deep else 1):
                self._block(f"blocks.{stage}.{number}", out if number else into, out, stage)
            if stage in self.attention:
                self._attention(f"blocks.{stage}.{self.depth if self.deep else 1}", out)
        self._layer("linear", 1, self.widths[-1])
        self._layer("embed", self.classes, self.widths[-1], bias=False)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random)

    def _layer(self, name: str, out: int, into: int, kernel: int = 0, bias: bool = True) -> None:
        shape = (out, into, kernel, kernel) if kernel else (out, into)
        self.state[f"{name}.weight"] = self._normal(*shape)
        self.state[f"{name}.u0"], self.state[f"{name}.sv0"] = self._normal(1, out), torch.ones(1)
        if bias:
            self.state[f"{name}.bias"] = 0.1 * self._normal(out)

    def _block(self, name: str, into: int, out: int, stage: int) -> None:
        if self.deep:
            hidden = out // 4
            sizes = [(hidden, into, 1), (hidden, hidden, 3), (hidden, hidden, 3), (out, hidden, 1)]
            if into != out:
                self._layer(f"{name}.conv_sc", out - into, into, 1)
        else:
            hidden = out if self.wide else into
            sizes = [(hidden, into, 3), (out, hidden, 3)]
            if into != out or self.halved[stage]:
                self._layer(f"{name}.conv_sc", out, into, 1)
        for number, size in enumerate(sizes, 1):
            self._layer(f"{name}.conv{number}", *size)

    def _attention(self, name: str, channels: int) -> None:
        for part, sizes in (
            ("theta", (channels // 8, channels)),
            ("phi", (channels // 8, channels)),
            ("g", (channels // 2, channels)),
            ("o", (channels, channels // 2)),
        ):
            self._layer(f"{name}.{part}", *sizes, 1, bias=False)
        self.state[f"{name}.gamma"] = torch.tensor(0.7)

    def _weight(self, name: str) -> Tensor:
        weight = self.state[f"{name}.weight"]
        matrix = weight.reshape(len(weight), -1)
        v = F.normalize(self.state[f"{name}.u0"] @ matrix, eps=self.sn_eps)
        u = F.normalize(v @ matrix.T, eps=self.sn_eps)
        return weight / (v @ matrix.T @ u.T).squeeze()

    def _conv(self, name: str, x: Tensor) -> Tensor:
        weight = self._weight(name)
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def look(self, images: Tensor) -> dict[str, Tensor]:
        """Return what every tap gives; images (N, 3, H, W)."""
        x, found = images, {}
        if self.deep:
            x = self._conv("input_conv", x)
        for stage, halved in enumerate(self.halved):
            count = self.depth if self.deep else 1
            for number in range(count):
                run = self._run_deep if self.deep else self._run
                at = f"blocks.{stage}.{number}"
                x = run(at, x, first=not stage, halved=halved and not number)
                last = number == count - 1 and stage not in self.attention
                found[f"d.blocks.{stage}" if last else f"d.{at}"] = x
            if stage in self.attention:
                found[f"d.blocks.{stage}"] = x = self._attend(f"blocks.{stage}.{count}", x)
        found["d.pool"] = pooled = F.relu(x).sum((2, 3))
        found["d.linear"] = F.linear(pooled, self._weight("linear"), self.state["linear.bias"])
        classes = self._weight("embed")
        each = [found["d.linear"] + (row * pooled).sum(1, keepdim=True) for row in classes]
        found["d.logits"] = torch.cat(each, 1)
        return found

    def _run(self, name: str, x: Tensor, *, first: bool, halved: bool) -> Tensor:
        h = self._conv(f"{name}.conv1", x if first else F.relu(x))
        h = self._conv(f"{name}.conv2", F.relu(h))
        if halved:
            h = F.avg_pool2d(h, 2)
        steps = [lambda x: F.avg_pool2d(x, 2)] if halved else []
        if f"{name}.conv_sc.weight" in self.state:
            steps.insert(len(steps) if first else 0, lambda x: self._conv(f"{name}.conv_sc", x))
        for step in steps:
            x = step(x)
        return h + x

    def _run_deep(self, name: str, x: Tensor, *, first: bool, halved: bool) -> Tensor:
        h = self._conv(f"{name}.conv1", F.relu(x))
        h = self._conv(f"{name}.conv2", F.relu(h))
        h = F.relu(self._conv(f"{name}.conv3", F.relu(h)))
        if halved:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        h = self._conv(f"{name}.conv4", h)
        if f"{name}.conv_sc.weight" in self.state:
            x = torch.cat([x, self._conv(f"{name}.conv_sc", x)], 1)
        return h + x

    def _attend(self, name: str, x: Tensor) -> Tensor:
        theta = self._conv(f"{name}.theta", x).flatten(2)
        phi = F.max_pool2d(self._conv(f"{name}.phi", x), 2).flatten(2)
        g = F.max_pool2d(self._conv(f"{name}.g", x), 2).flatten(2)
        beta = torch.softmax(theta.transpose(1, 2) @ phi, -1)
        seen = (g @ beta.transpose(1, 2)).view(len(x), -1, *x.shape[2:])
        return self.state[f"{name}.gamma"] * self._conv(f"{name}.o", seen) + x
