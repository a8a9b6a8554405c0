"""An encoder of images, and what its generator makes of the latents it finds.

Shapes: N images (N, 3, H, W) in [-1, 1]; latents (N, Z), or (N, layers, W) of w_plus.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.teachers.gan.bigbigan.network import Pool
from pipeline.teachers.posthoc.layout import SMALL, EncoderLayout
from pipeline.teachers.timm.small_resnet import cifar_resnet18


class PosthocEncoder(nn.Module):
    """A ResNet, its last map's mean, and a perceptron of two layers.

    Args:
        layout: which ResNet.
        shape: of a latent, per sample.

    Source: Squeeze-and-Span, baseline "Encoding": the student's network with a head of two layers.
    """

    def __init__(self, layout: EncoderLayout, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.small, width = shape, layout.network == SMALL, layout.widths[-1]
        if self.small:
            self.backbone: nn.Module = cifar_resnet18(width=layout.width, out_indices=[3])
        else:
            import timm

            self.backbone = timm.create_model(layout.network, num_classes=0, zero_init_last=True)
        self.pool = Pool()
        self.head = nn.Sequential(
            nn.Linear(width, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, math.prod(shape)),
        )
        self.latents = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Map images to latents, float32."""
        asked = cast(Any, self.backbone)
        x = images.to(dtype=asked.conv1.weight.dtype, memory_format=torch.channels_last)
        x = asked(x)[-1] if self.small else asked.forward_features(x)
        return self.latents(self.head(self.pool(x)).float().view(-1, *self.shape))


class Reconstructor(nn.Module):
    """Encode images and generate from what is found, in one module so that hooks reach both."""

    def __init__(self, encoder: PosthocEncoder, generator: nn.Module, latent: str) -> None:
        super().__init__()
        self.encoder, self.generator, self.latent = encoder, generator, latent
        self.image = nn.Identity()

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map images, and classes int64 (N,) where the generator wants them, to reconstructions."""
        latents = self.encoder(images)
        return self.image(images_of(self.generator, latents, labels, latent=self.latent))


def latents_of(generator: nn.Module, z: Tensor, labels: Tensor | None, *, latent: str) -> Tensor:
    """Return what an encoder is to find in the image of a z (N, Z): z itself, or its w (N, W)."""
    if latent == "z":
        return z
    asked = cast(Any, generator)
    classes = None
    if labels is not None:
        classes = F.one_hot(labels, asked.layout.mapping.classes).float()
    return asked.mapping(z, classes, None)


def images_of(
    generator: nn.Module, latents: Tensor, labels: Tensor | None, *, latent: str
) -> Tensor:
    """Generate images from latents, with constant noise where there is any.

    Args:
        latents: (N, Z), or (N, layers, W).
        labels: int64 (N,), of conditional generators whose latent is z.
        latent: which latents they are.
    """
    if latent == "z":
        return generator(latents, labels, None)
    asked = cast(Any, generator)
    return asked.from_w(asked.truncate(latents) if latents.ndim == 2 else latents)
