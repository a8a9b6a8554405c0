"""Encoder and generator in one module, so that hooks reach both in one pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.teachers.gan.bigbigan.network import BigBiGANEncoder, Encoded


class Reconstructor(nn.Module):
    """Encode images, and generate from their latents where there is a generator."""

    def __init__(self, encoder: BigBiGANEncoder, generator: nn.Module | None) -> None:
        super().__init__()
        self.encoder, self.generator = encoder, generator
        self.z, self.image = nn.Identity(), nn.Identity()

    def forward(self, images: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Map images (N, 3, H, W) in [-1, 1] to reconstructions, or to latents (N, Z).

        Args:
            drawn: standard normal numbers (N, Z) that select z; None for the mean.
        """
        encoded: Encoded = self.encoder(images)
        z = self.z(encoded.mean if drawn is None else encoded.mean + encoded.stdev * drawn)
        if self.generator is None:
            return z
        labels = torch.zeros(len(z), dtype=torch.int64, device=z.device)  # the one class there is
        return self.image(self.generator(z, labels, None))
