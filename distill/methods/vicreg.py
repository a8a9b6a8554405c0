"""VICReg on the dataset's images: a baseline that needs no teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from distill.data.views import random_view
from distill.losses.vicreg import vicreg_loss
from distill.methods.base import Method
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.methods import VICRegConfig
    from distill.students.student import Student


class VICReg(Method):
    """Let a student agree with itself on two views, with dimensions that vary and differ.

    Args:
        config: the method's settings.
        student: the backbone that is kept; its deepest map's mean is the representation.
        levels, image_size: unused: there is no teacher.
        seed: of the expander's initialisation.

    Source: VICReg, section 4; the two views come from one distribution, as in Squeeze-and-Span.
    """

    needs = frozenset()
    views = 2

    def __init__(
        self,
        config: VICRegConfig,
        *,
        student: Student,
        levels: Sequence[Level],
        image_size: tuple[int, int],
        seed: int,
    ) -> None:
        super().__init__()
        self.config, self.student = config, student
        features, hidden = student.channels[-1], config.hidden
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            for _ in range(config.layers - 1):
                layers += [nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
                features = hidden
            self.expander = nn.Sequential(*layers, nn.Linear(features, config.width, bias=False))

    def forward(self, images: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return "loss", "invariance", "variance" and "covariance".

        Args:
            images: (B, 3, H, W), normalised.
            targets: unused.
        """
        config = self.config
        first, second = (
            self.expander(
                self.student.pooled(
                    random_view(
                        images, config.augment, mean=self.student.mean, std=self.student.std
                    )
                )
            )
            for _ in range(self.views)
        )
        return vicreg_loss(
            first,
            second,
            invariance_weight=config.invariance,
            variance_weight=config.variance,
            covariance_weight=config.covariance,
            halve_variance=config.halve_variance,
        )
