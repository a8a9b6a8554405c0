"""Losses of adversarial training as pure functions: hinge, rotations, gradient penalty.

Shapes: N images, logits (N,) or (N, 1), images (N, 3, H, W). Source: Miyato et al. 2018 (hinge),
Chen et al. 2019 (rotations), Gulrajani et al. 2017 (penalty), Donahue and Simonyan 2019 (scores).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

ROTATIONS = 4
"""Of an image: by 0, 90, 180 and 270 degrees."""
ROTATED_SHARE = 4
"""One image of so many in a batch is rotated: a quarter, in four ways, is as large as the batch."""


def hinge_real(logits: Tensor) -> Tensor:
    """Return the discriminator's loss of real images: mean of max(0, 1 - D)."""
    return F.relu(1 - logits).mean()


def hinge_fake(logits: Tensor) -> Tensor:
    """Return the discriminator's loss of generated images: mean of max(0, 1 + D)."""
    return F.relu(1 + logits).mean()


def rotated_count(batch: int) -> int:
    """Return how many images of a batch are rotated, at least one."""
    return max(1, batch // ROTATED_SHARE)


def rotate(images: Tensor) -> tuple[Tensor, Tensor]:
    """Turn the last quarter of a batch in three more ways.

    Args:
        images: square ones.

    Returns:
        The upright batch followed by the quarter turned by 90, 180 and 270 degrees
        (N + 3 N / 4, 3, H, W), and the labels of the images that rotations are told of: those of
        the last quarter and all that follow, int64, as many zeros as ones, twos and threes.
    """
    chosen = images[len(images) - rotated_count(len(images)) :]
    turned = [torch.rot90(chosen, times, (2, 3)) for times in range(1, ROTATIONS)]
    labels = torch.arange(ROTATIONS, device=images.device).repeat_interleave(len(chosen))
    return torch.cat([images, *turned]), labels


def rotation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of the rotations.

    Args:
        logits: (M, 4) of every image that `rotate` gave; the last len(labels) of them count.
        labels: as `rotate` gives them.
    """
    return F.cross_entropy(logits[len(logits) - len(labels) :], labels)


def gradient_penalty(
    score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor
) -> Tensor:
    """Return the mean of (|gradient of the score| - 1)^2 between real and generated images.

    Args:
        score: images -> logits; no image may change another's.
        real, fake: as many of either.
        mix: (N, 1, 1, 1) in 0..1, the real image's share.
    """
    between = (mix * real + (1 - mix) * fake).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(score(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def joint_discriminator(real: Mapping[str, Tensor], fake: Mapping[str, Tensor]) -> Tensor:
    """Return BigBiGAN's loss of F, H and J: the hinge of every score by itself, added up.

    Args:
        real: score -> values for (x, E(x)).
        fake: score -> values for (G(z), z).
    """
    return torch.stack(
        [hinge_real(value) for value in real.values()]
        + [hinge_fake(value) for value in fake.values()]
    ).sum()


def joint_generator(real: Mapping[str, Tensor], fake: Mapping[str, Tensor]) -> Tensor:
    """Return BigBiGAN's loss of E and G: scores of (x, E(x)) less those of (G(z), z).

    Scores that do not depend on E or G carry no gradient for them.

    Args:
        real, fake: as in `joint_discriminator`.
    """
    told = [value.mean() for value in real.values()] + [-value.mean() for value in fake.values()]
    return torch.stack(told).sum()


def annealed(weight: float, progress: float) -> float:
    """Return a weight that falls linearly to 0 at the end, so that the limit is the data's.

    Args:
        weight: at the beginning.
        progress: how much of the run is over, 0..1.
    """
    return weight * max(0.0, 1 - progress)
