"""VICReg on the dataset's images: a baseline that needs no teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from distill.data.sets import Needs
from distill.losses.vicreg import vicreg_loss
from distill.methods.objective import FIRST, SECOND, Batch, Composite, Objective, Part
from distill.modules.projector import hidden_layers
from pipeline.learning.ranks import gathered_rows
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.methods import AugmentConfig, VICRegConfig
    from distill.students.student import Student


class Invariance(Objective):
    """Let a student's two views agree, in dimensions that vary and differ.

    Source: VICReg, section 4; the two views come from one distribution, as in Squeeze-and-Span.
    """

    config: VICRegConfig
    over_batch = "variance and covariance"

    @classmethod
    def needs(cls, config: VICRegConfig) -> Needs:
        """Say that there is no teacher: two views are enough."""
        return Needs(kinds=(), views=(FIRST, SECOND), deepest=True)

    def build(
        self,
        student: Student,
        levels: Sequence[Level],
        *,
        image_size: tuple[int, int],
        seed: int,
    ) -> None:
        """Build the expander."""
        config, features = self.config, student.channels[-1]
        count = config.layers - 1
        self.expander = nn.Sequential(
            *hidden_layers(features, config.hidden, count=count),
            nn.Linear(config.hidden if count else features, config.width, bias=False),
        )

    def weights(self) -> dict[str, float]:
        """Return those of the paper's three terms."""
        config = self.config
        return {
            "invariance": config.invariance,
            "variance": config.variance,
            "covariance": config.covariance,
        }

    def forward(
        self, maps: Mapping[str, Sequence[Tensor]], pooled: Mapping[str, Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Return "loss", "invariance", "variance" and "covariance", of the batch over all ranks.

        Arguments as `Objective` has them.
        """
        config = self.config
        first, second = (gathered_rows(self.expander(pooled[view])) for view in (FIRST, SECOND))
        return vicreg_loss(
            first,
            second,
            invariance_weight=config.invariance,
            variance_weight=config.variance,
            covariance_weight=config.covariance,
            halve_variance=config.halve_variance,
        )


class VICReg(Composite):
    """Let a student agree with itself on two views, with dimensions that vary and differ.

    Source: VICReg.
    """

    section = "vicreg"
    views = 2

    @classmethod
    def parts(cls, config: VICRegConfig) -> dict[str, Part]:
        """Return the only objective."""
        return {"vicreg": Part(Invariance, config)}

    @classmethod
    def augment(cls, config: VICRegConfig) -> AugmentConfig:
        """Return how the two views are made."""
        return config.augment
