"""BigBiGAN's encoder, for inference; the file's layout and the sources are in `layout.py`.

Shapes: N images, maps (N, C, H, W), vectors (N, C).
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.teachers.gan.bigbigan.layout import BOTTLENECK, EncoderLayout, Perceptron
from pipeline.teachers.gan.normalise import standardise


class Norm(nn.Module):
    """Normalise by stored statistics, then scale and shift."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = (nn.Parameter(torch.empty(channels)) for _ in range(2))
        self.register_buffer("mean", torch.empty(channels))
        self.register_buffer("var", torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) or (N, C) to the same shape."""
        mean, var = cast(Tensor, self.mean), cast(Tensor, self.var)
        whole = x if x.ndim == 4 else x[:, :, None, None]
        return standardise(whole, mean, var, self.weight, self.bias, eps=self.eps).view_as(x)


class Bottleneck(nn.Module):
    """Three convolutions, each after a norm and a ReLU; the second may halve the map."""

    def __init__(self, inputs: int, outputs: int, eps: float, *, stride: int = 1) -> None:
        super().__init__()
        inner = outputs // BOTTLENECK
        self.norm1 = Norm(inputs, eps)
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.norm2 = Norm(inner, eps)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, stride=stride, bias=False)
        self.norm3 = Norm(inner, eps)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)

    def branch(self, rectified: Tensor) -> Tensor:
        """Run what follows the first norm and ReLU."""
        h = self.conv2(F.relu(self.norm2(self.conv1(rectified))))
        return self.conv3(F.relu(self.norm3(h)))


class ResidualUnit(Bottleneck):
    """Add the bottleneck to its input, or to a 1x1 convolution of what the first ReLU gave."""

    def __init__(self, inputs: int, outputs: int, eps: float, *, stride: int, first: bool) -> None:
        super().__init__(inputs, outputs, eps, stride=stride)
        self.first = first
        if first:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H, W), or to half the size."""
        rectified = F.relu(self.norm1(x))
        return self.branch(rectified) + (self.shortcut(rectified) if self.first else x)


class ReversibleUnit(Bottleneck):
    """Change half of the channels by what the other half says, and exchange the halves."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(channels // 2, channels // 2, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        changed, told = x.chunk(2, dim=1)
        return torch.cat([told, changed + self.branch(F.relu(self.norm1(told)))], dim=1)


class Widen(nn.Module):
    """Average 2x2 cells, and put half as many zeros as there are channels before and after."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, 2 C, H / 2, W / 2)."""
        x, half = F.avg_pool2d(x, 2), x.shape[1] // 2
        return F.pad(x, (0, 0, 0, 0, half, half))


class ResidualPerceptron(nn.Module):
    """Two linear layers after ReLUs, added to the input."""

    def __init__(self, block: Perceptron, eps: float) -> None:
        super().__init__()
        self.block = block
        self.fc1 = nn.Linear(block.inputs, block.hidden)
        self.fc2 = nn.Linear(block.hidden, block.outputs)
        if block.shortcut:
            self.shortcut = nn.Linear(block.inputs, block.outputs)
        if block.norms:
            self.norm1, self.norm2 = Norm(block.inputs, eps), Norm(block.hidden, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C) to (N, C')."""
        h = self.fc1(F.relu(self.norm1(x) if self.block.norms else x))
        h = self.fc2(F.relu(self.norm2(h) if self.block.norms else h))
        return h + (self.shortcut(x) if self.block.shortcut else x)


class CReLU(nn.Module):
    """Normalise pooled features without a scale, and keep positive and negative parts apart."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.empty(channels))
        self.register_buffer("var", torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C) to (N, 2 C)."""
        h = (x - cast(Tensor, self.mean)) * (cast(Tensor, self.var) + self.eps).rsqrt()
        return torch.cat([F.relu(h), F.relu(-h)], dim=1)


class Encoded(NamedTuple):
    """The distribution of z, normal: mean and standard deviation, float32 (N, Z)."""

    mean: Tensor
    stdev: Tensor


class Pool(nn.Module):
    """Average the last map, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to float32 (N, C)."""
        return x.float().mean((2, 3))


class BigBiGANEncoder(nn.Module):
    """Map images to the distribution of their latents."""

    def __init__(self, layout: EncoderLayout) -> None:
        super().__init__()
        self.layout, eps = layout, layout.eps
        width = layout.filters * (BOTTLENECK if layout.reversible else 1)
        small = layout.first_stride == 1
        self.stem = nn.Conv2d(
            3, width, layout.stem, stride=1 if small else 2, padding=layout.stem // 2, bias=False
        )
        self.stages = nn.ModuleList()
        for stage, count in enumerate(layout.units):
            outputs = layout.widths[stage]
            units: list[nn.Module] = [
                ReversibleUnit(outputs, eps)
                if layout.reversible
                else ResidualUnit(
                    outputs if unit else width,
                    outputs,
                    eps,
                    stride=2 if stage and not unit else 1,
                    first=not unit,
                )
                for unit in range(count)
            ]
            self.stages.append(nn.Sequential(*units))
            width = outputs
        self.widen = Widen()
        self.norm = Norm(width, eps)
        self.pool = Pool()
        if layout.crelu:
            self.crelu = CReLU(width, eps)
        self.head = nn.Sequential(*(ResidualPerceptron(block, eps) for block in layout.head))
        self.out = nn.Linear(layout.head[-1].outputs if layout.head else width, 2 * layout.latent)
        self.mean, self.stdev = nn.Identity(), nn.Softplus()

    def forward(self, images: Tensor) -> Encoded:
        """Map images (N, 3, H, W) in [-1, 1] to the distributions of z."""
        x = images.to(dtype=self.stem.weight.dtype, memory_format=torch.channels_last)
        x = self.stem(x)
        if self.layout.first_stride > 1:
            # The map is padded by zeros before its maxima are taken, as in the official code.
            x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, stride=2)
        for stage, units in enumerate(self.stages):
            x = self.widen(x) if stage and self.layout.reversible else x
            x = units(x)
        x = self.norm(x)
        pooled = self.pool(F.relu(x) if self.layout.last_relu else x)
        if self.layout.crelu:
            self.crelu(pooled)
        mean, raw = self.out(self.head(pooled)).chunk(2, dim=1)
        return Encoded(self.mean(mean), self.stdev(raw))
