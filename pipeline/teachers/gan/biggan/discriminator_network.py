"""BigGAN's and BigGAN-deep's discriminator, for inference.

Modules carry the names of the official state dict. Shapes: N images, maps (N, C, H, W). Source:
Brock et al. 2019, appendix B; BigGAN-PyTorch; Miyato and Koyama 2018 (projection).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.teachers.gan.biggan.discriminator_layout import DBlock, DiscriminatorLayout
from pipeline.teachers.gan.biggan.network import Attention


class Residual(nn.Module):
    """Two 3x3 convolutions, the map halved after them; the first block has no ReLU before."""

    def __init__(self, block: DBlock, *, first: bool) -> None:
        super().__init__()
        self.block, self.first = block, first
        self.conv1 = nn.Conv2d(block.inputs, block.hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(block.hidden, block.outputs, 3, padding=1)
        if block.shortcut:
            self.conv_sc = nn.Conv2d(block.inputs, block.outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H, W), or to half the size."""
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if self.block.downsample:
            # Averaging and a 1x1 convolution may change places: a quarter of the work.
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + (self.conv_sc(x) if self.block.shortcut else x)


class DeepResidual(nn.Module):
    """BigGAN-deep's bottleneck; its shortcut appends the channels that the input lacks."""

    def __init__(self, block: DBlock) -> None:
        super().__init__()
        self.block = block
        self.conv1 = nn.Conv2d(block.inputs, block.hidden, 1)
        self.conv2 = nn.Conv2d(block.hidden, block.hidden, 3, padding=1)
        self.conv3 = nn.Conv2d(block.hidden, block.hidden, 3, padding=1)
        self.conv4 = nn.Conv2d(block.hidden, block.outputs, 1)
        if block.shortcut:
            self.conv_sc = nn.Conv2d(block.inputs, block.shortcut, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H, W), or to half the size."""
        h = self.conv2(F.relu(self.conv1(F.relu(x))))
        h = F.relu(self.conv3(F.relu(h)))
        if self.block.downsample:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        if self.block.shortcut:
            x = torch.cat([x, self.conv_sc(x)], dim=1)
        return self.conv4(h) + x


class SumPool(nn.Module):
    """Add the cells of the last map up, in float32, after a ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to float32 (N, C)."""
        return F.relu(x).float().sum((2, 3))


class ClassLogits(nn.Module):
    """Give the logit that the discriminator would have for each class."""

    def forward(self, told: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Map pooled (N, C), logits (N, 1) and class embeddings (K, C) to (N, K)."""
        pooled, logit, classes = told
        return logit + pooled @ classes.T


class BigGANDiscriminator(nn.Module):
    """Look at images: blocks, pooled vector, the logit without a class and those of all classes."""

    def __init__(self, layout: DiscriminatorLayout) -> None:
        super().__init__()
        if layout.deep:
            self.input_conv = nn.Conv2d(3, layout.stages[0][0].inputs, 3, padding=1)
        self.blocks = nn.ModuleList()
        for number, (stage, attends) in enumerate(
            zip(layout.stages, layout.attention, strict=True)
        ):
            parts: list[nn.Module] = [
                DeepResidual(block) if layout.deep else Residual(block, first=not number)
                for block in stage
            ]
            if attends:
                parts.append(Attention(stage[-1].outputs))
            self.blocks.append(nn.ModuleList(parts))
        self.pool = SumPool()
        self.linear = nn.Linear(layout.width, 1)
        if layout.classes:
            self.embed = nn.Embedding(layout.classes, layout.width)
            self.logits = ClassLogits()

    def pooled(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) in [-1, 1] to what logits are made of, float32 (N, C)."""
        convolution = next(part for part in self.modules() if isinstance(part, nn.Conv2d))
        kind = cast(Tensor, convolution.bias).dtype  # its weight, read, takes a step of its norm
        x = images.to(dtype=kind, memory_format=torch.channels_last)
        if hasattr(self, "input_conv"):
            x = self.input_conv(x)
        for parts in self.blocks:
            for part in cast(nn.ModuleList, parts):
                x = part(x)
        return self.pool(x)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) in [-1, 1] to float32 (N, 1), or (N, K) for K classes."""
        pooled = self.pooled(images)
        logit = self.linear(pooled)
        return self.logits((pooled, logit, self.embed.weight)) if hasattr(self, "embed") else logit
