"""The mapping network of StyleGAN2: from z, class and instance to w.

It is computed in float64, which costs next to nothing here: w decides everything after it, and so
does not depend on how a processor rounds.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from pipeline.teachers.gan.stylegan2.layers import Dense
from pipeline.teachers.gan.stylegan2.layout import MappingLayout

LENGTH_EPS = 1e-8


def normalised(x: Tensor) -> Tensor:
    """Divide each row (N, C) by its root mean square."""
    return x * (x.square().mean(1, keepdim=True) + LENGTH_EPS).rsqrt()


class Mapping(nn.Module):
    """Bring z, class and instance to one length each, side by side, then through the layers.

    Where there are both, the class comes before the instance (IC-GAN's).
    """

    def __init__(self, layout: MappingLayout, *, averaged: bool) -> None:
        super().__init__()
        self.layout = layout
        class_width, instance_width = layout.embeds
        if layout.classes:
            self.embed = Dense(layout.classes, class_width)
        if layout.features:
            self.embed_feats = Dense(layout.features, instance_width)
        self.layers = len(layout.widths) - 1
        for number, (inputs, outputs) in enumerate(itertools.pairwise(layout.widths)):
            setattr(self, f"fc{number}", Dense(inputs, outputs, activation=layout.activation))
        if averaged:
            self.register_buffer("w_avg", torch.empty(layout.widths[-1]))

    def forward(self, z: Tensor | None, classes: Tensor | None, features: Tensor | None) -> Tensor:
        """Map z (N, Z), classes float32 (N, K), one number a class, and features (N, D) to (N, W).

        What the network is not told of is ignored.
        """
        parts = []
        if self.layout.latent and z is not None:
            parts.append(normalised(z.double()))
        if self.layout.classes and classes is not None:
            parts.append(normalised(self.embed(classes.double())))
        if self.layout.features and features is not None:
            parts.append(normalised(self.embed_feats(features.double())))
        x = torch.cat(parts, 1)
        for number in range(self.layers):
            x = self.get_submodule(f"fc{number}")(x)
        return x.float()
