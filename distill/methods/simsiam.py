"""SimSiam on the dataset's images: a baseline that needs no teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from distill.data.views import random_view
from distill.losses.simsiam import simsiam_loss
from distill.methods.base import Method
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.methods import SimSiamConfig
    from distill.students.student import Student


class SimSiam(Method):
    """Let a student agree with itself on two views of an image.

    Args:
        config: the method's settings.
        student: the backbone that is kept; its deepest map's mean is the representation.
        levels, image_size: unused: there is no teacher.
        seed: of the heads' initialisation.

    Source: SimSiam, section 3; widths and layers as in Squeeze-and-Span's baseline.
    """

    needs = frozenset()
    views = 2

    def __init__(
        self,
        config: SimSiamConfig,
        *,
        student: Student,
        levels: Sequence[Level],
        image_size: tuple[int, int],
        seed: int,
    ) -> None:
        super().__init__()
        self.config, self.student = config, student
        self.fixed_rate = ("predictor.",)  # its learning rate stays at the peak (paper, section 4)
        features, width = student.channels[-1], config.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            for _ in range(config.projector_layers - 1):
                layers += [nn.Linear(features, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
                features = width
            layers += [nn.Linear(features, width, bias=False), nn.BatchNorm1d(width, affine=False)]
            self.projector = nn.Sequential(*layers)
            self.predictor = nn.Sequential(
                nn.Linear(width, config.predictor_width, bias=False),
                nn.BatchNorm1d(config.predictor_width),
                nn.ReLU(),
                nn.Linear(config.predictor_width, width),
            )

    def forward(self, images: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return "loss" and "std", the spread of the projections (1/sqrt(width) if healthy).

        Args:
            images: (B, 3, H, W), normalised.
            targets: unused.
        """
        projections, predictions = [], []
        for _ in range(self.views):
            view = random_view(
                images, self.config.augment, mean=self.student.mean, std=self.student.std
            )
            projections.append(self.projector(self.student.pooled(view)))
            predictions.append(self.predictor(projections[-1]))
        unit = nn.functional.normalize(projections[0].detach().float(), dim=1)
        return {"loss": simsiam_loss(*predictions, *projections), "std": unit.std(dim=0).mean()}
