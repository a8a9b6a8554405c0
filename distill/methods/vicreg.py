"""VICReg on the dataset's images: a baseline that needs no teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from distill.data.sets import Needs
from distill.losses.vicreg import vicreg_loss
from distill.methods.base import Method
from distill.modules.projector import hidden_layers
from pipeline.learning.ranks import gathered_rows
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.methods import VICRegConfig


class VICReg(Method):
    """Let a student agree with itself on two views, with dimensions that vary and differ.

    Source: VICReg, section 4; the two views come from one distribution, as in Squeeze-and-Span.
    """

    config: VICRegConfig
    views = 2
    over_batch = "variance and covariance"

    @classmethod
    def needs(cls, config: VICRegConfig) -> Needs:
        """Say that there is no teacher: images are enough."""
        return Needs(kinds=())

    def build(self, levels: Sequence[Level], *, image_size: tuple[int, int], seed: int) -> None:
        """Build the expander."""
        config, features = self.config, self.student.channels[-1]
        count = config.layers - 1
        self.expander = nn.Sequential(
            *hidden_layers(features, config.hidden, count=count),
            nn.Linear(config.hidden if count else features, config.width, bias=False),
        )

    def forward(self, images: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return "loss", "invariance", "variance" and "covariance", of the batch over all ranks.

        Args:
            images: (B, 3, H, W), normalised.
            targets: unused.
        """
        config = self.config
        first, second = (
            gathered_rows(self.expander(self.pooled_view(images, self.config.augment)))
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
