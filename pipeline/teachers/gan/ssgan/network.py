"""The networks of SS-GAN and SNGAN, for inference.

Spectral normalisation is divided out of the weights on loading. Blocks carry the names they have
in the file: `blocks.block2` of torch-mimicry, `blocks.B1` of compare_gan.

Shapes: N samples, z (N, Z), maps (N, C, H, W). Source: as `layout.py`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.teachers.gan.normalise import standardise
from pipeline.teachers.gan.ssgan.layout import Block, DiscriminatorLayout, GeneratorLayout


class StoredNorm(nn.Module):
    """Normalise by stored statistics; gain and bias are parameters or come from z."""

    def __init__(self, channels: int, layout: GeneratorLayout) -> None:
        super().__init__()
        self.eps, self.modulation = layout.eps, layout.modulation
        self.register_buffer("running_mean", torch.empty(channels))
        self.register_buffer("running_var", torch.empty(channels))
        self.gamma: nn.Parameter | nn.Linear
        self.beta: nn.Parameter | nn.Linear
        if self.modulation is None:
            self.gamma, self.beta = (nn.Parameter(torch.empty(channels)) for _ in range(2))
            return
        if self.modulation:
            self.hidden = nn.Linear(layout.latent, self.modulation)
        told = self.modulation or layout.latent
        self.gamma, self.beta = (nn.Linear(told, channels) for _ in range(2))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Map x (N, C, H, W) and the latent z float32 (N, Z) to (N, C, H, W)."""
        told = F.relu(self.hidden(z)) if self.modulation else z
        gain, bias = (
            each(told) if isinstance(each, nn.Linear) else each for each in (self.gamma, self.beta)
        )
        mean, var = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)
        return standardise(x, mean, var, gain, bias, eps=self.eps)


class UpBlock(nn.Module):
    """Two 3x3 convolutions, the first after doubling the map, each after normalisation and ReLU."""

    def __init__(self, block: Block, layout: GeneratorLayout) -> None:
        super().__init__()
        self.block, self.upsample = block, layout.upsample
        self.norm1 = StoredNorm(block.inputs, layout)
        self.conv1 = nn.Conv2d(block.inputs, block.hidden, 3, padding=1)
        self.norm2 = StoredNorm(block.hidden, layout)
        self.conv2 = nn.Conv2d(block.hidden, block.outputs, 3, padding=1)
        if block.shortcut:
            self.shortcut = _shortcut(block)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H, W), or to twice the size."""
        h = F.relu(self.norm1(x, z))
        h = self.conv1(self._resample(h))
        h = self.conv2(F.relu(self.norm2(h, z)))
        # Averaging and a 1x1 convolution may change places: a quarter of the work. Among inserted
        # zeros they may not, where the bias counts.
        if self.block.shortcut == 1 and self.upsample != "zero_insertion":
            return h + self._resample(self.shortcut(x))
        x = self._resample(x)
        return h + (self.shortcut(x) if self.block.shortcut else x)

    def _resample(self, x: Tensor) -> Tensor:
        if not self.block.resample:
            return x
        if self.upsample == "bilinear":
            return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        if self.upsample == "nearest":
            return F.interpolate(x, scale_factor=2)
        rows, channels, height, width = x.shape
        spread = x.new_zeros(rows, channels, 2 * height, 2 * width)
        spread[:, :, ::2, ::2] = x
        return spread


class DownBlock(nn.Module):
    """Two 3x3 convolutions, the map halved by averaging after the second."""

    def __init__(self, block: Block, *, first: bool, rectified: bool) -> None:
        super().__init__()
        # torch-mimicry's first block begins with a convolution; compare_gan's ReLU leaves images in
        # [0, 1] as they are.
        self.block, self.first, self.rectified = block, first, rectified and not first
        self.conv1 = nn.Conv2d(block.inputs, block.hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(block.hidden, block.outputs, 3, padding=1)
        if block.shortcut:
            self.shortcut = _shortcut(block)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H, W), or to half the size."""
        h = x if self.first else F.relu(x)
        if self.rectified:
            x = h
        h = self._resample(self.conv2(F.relu(self.conv1(h))))
        if self.block.shortcut == 1:  # averaging and a 1x1 convolution may change places
            return h + self.shortcut(self._resample(x))
        return h + self._resample(self.shortcut(x) if self.block.shortcut else x)

    def _resample(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if self.block.resample else x


def _shortcut(block: Block) -> nn.Conv2d:
    return nn.Conv2d(block.inputs, block.outputs, block.shortcut, padding=block.shortcut // 2)


class SSGANGenerator(nn.Module):
    """Turn latents into images."""

    def __init__(self, layout: GeneratorLayout) -> None:
        super().__init__()
        self.layout = layout
        width = layout.blocks[0].inputs
        self.z = nn.Identity()
        self.linear = nn.Linear(layout.latent, width * layout.bottom**2)
        self.first = nn.Unflatten(1, (width, layout.bottom, layout.bottom))
        self.blocks = nn.ModuleDict({block.name: UpBlock(block, layout) for block in layout.blocks})
        self.norm = StoredNorm(layout.blocks[-1].outputs, layout)
        self.last = nn.Conv2d(layout.blocks[-1].outputs, 3, 3, padding=1)

    def forward(self, z: Tensor, labels: Tensor | None = None, features: object = None) -> Tensor:
        """Map z float32 (N, Z) to images (N, 3, H, W) in [-1, 1]; it is told nothing else."""
        z = self.z(z)
        x = self.first(self.linear(z).to(self.last.weight.dtype))
        x = x.to(memory_format=torch.channels_last)
        for block in self.blocks.values():
            x = block(x, z)
        x = self.last(F.relu(self.norm(x, z)))
        return torch.sigmoid(x) * 2 - 1 if self.layout.unsigned else torch.tanh(x)


class Pool(nn.Module):
    """Bring the last map to a vector, in float32, after a ReLU."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to float32 (N, C)."""
        x = F.relu(x).float()
        return x.sum((2, 3)) if self.kind == "sum" else x.mean((2, 3))


class SSGANDiscriminator(nn.Module):
    """Look at images: blocks, pooled vector, logit of being real and logits of the rotations."""

    def __init__(self, layout: DiscriminatorLayout) -> None:
        super().__init__()
        self.layout = layout
        self.blocks = nn.ModuleDict(
            {
                block.name: DownBlock(block, first=not number, rectified=layout.rectified)
                for number, block in enumerate(layout.blocks)
            }
        )
        self.pool = Pool(layout.pool)
        width = layout.blocks[-1].outputs
        self.logit = nn.Linear(width, 1)
        if layout.rotations:
            self.rotation = nn.Linear(width, layout.rotations)

    def pooled(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) in [-1, 1] to what both logits are made of, float32 (N, C)."""
        first = cast(DownBlock, next(iter(self.blocks.values())))
        x = images / 2 + 0.5 if self.layout.unsigned else images
        kind = cast(Tensor, first.conv1.bias).dtype  # its weight, read, takes a step of its norm
        x = x.to(dtype=kind, memory_format=torch.channels_last)
        for block in self.blocks.values():
            x = block(x)
        return self.pool(x)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) in [-1, 1] to logits float32 (N, 1)."""
        pooled = self.pooled(images)
        if self.layout.rotations:
            self.rotation(pooled)
        return self.logit(pooled)
