"""StyleGAN2's losses: non-saturating logistic, R1 on real images.

Source: Karras et al. 2020 (StyleGAN2), section 4 and appendix B; Mescheder et al. 2018 (R1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return softplus(-real) + softplus(fake), means of scores (N, 1)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Return softplus(-fake), the mean of scores (N, 1)."""
    return F.softplus(-fake).mean()


def r1(scores: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the mean squared norm of the gradient of scores by their images.

    Args:
        scores: images -> (N, 1), twice differentiable.
        images: (N, 3, H, W), real ones.
    """
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(scores(images).sum(), images, create_graph=True)
    return gradient.float().square().sum((1, 2, 3)).mean()
