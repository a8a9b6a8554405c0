"""SimSiam on the dataset's images: a baseline that needs no teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from distill.data.sets import Needs
from distill.losses.simsiam import simsiam_loss
from distill.methods.base import Method
from distill.modules.projector import hidden_layers
from pipeline.learning.ranks import gathered_rows
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.methods import SimSiamConfig


class SimSiam(Method):
    """Let a student agree with itself on two views of an image.

    Source: SimSiam, section 3; widths and layers as in Squeeze-and-Span's baseline.
    """

    config: SimSiamConfig
    views = 2

    @classmethod
    def needs(cls, config: SimSiamConfig) -> Needs:
        """Say that there is no teacher: images are enough."""
        return Needs(kinds=())

    def build(self, levels: Sequence[Level], *, image_size: tuple[int, int], seed: int) -> None:
        """Build projector and predictor."""
        config, features, width = self.config, self.student.channels[-1], self.config.width
        self.fixed_rate = ("predictor.",)  # its learning rate stays at the peak (paper, section 4)
        count = config.projector_layers - 1
        self.projector = nn.Sequential(
            *hidden_layers(features, width, count=count, bias=False),
            nn.Linear(width if count else features, width, bias=False),
            nn.BatchNorm1d(width, affine=False),
        )
        self.predictor = nn.Sequential(
            *hidden_layers(width, config.predictor_width, count=1, bias=False),
            nn.Linear(config.predictor_width, width),
        )

    def forward(self, images: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return "loss" and "std", the spread of the projections (1/sqrt(width) if healthy).

        Args:
            images: (B, 3, H, W), normalised.
            targets: unused.
        """
        projections = [
            self.projector(self.pooled_view(images, self.config.augment)) for _ in range(self.views)
        ]
        predictions = [self.predictor(projection) for projection in projections]
        whole = gathered_rows(projections[0].detach().float())
        unit = nn.functional.normalize(whole, dim=1)
        return {"loss": simsiam_loss(*predictions, *projections), "std": unit.std(dim=0).mean()}
