"""SimSiam on the dataset's images: a baseline that needs no teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from distill.data.sets import Needs
from distill.losses.simsiam import simsiam_loss
from distill.methods.objective import FIRST, SECOND, Batch, Composite, Objective, Part
from distill.modules.projector import hidden_layers
from pipeline.learning.ranks import gathered_rows
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.methods import AugmentConfig, SimSiamConfig
    from distill.students.student import Student


class Agreement(Objective):
    """Let a student predict its own projection of another view of an image.

    Source: SimSiam, section 3; widths and layers as in Squeeze-and-Span's baseline.
    """

    config: SimSiamConfig
    fixed_rate = ("predictor.",)  # its learning rate stays at the peak (paper, section 4)

    @classmethod
    def needs(cls, config: SimSiamConfig) -> Needs:
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
        """Build projector and predictor."""
        config, features, width = self.config, student.channels[-1], self.config.width
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

    def weights(self) -> dict[str, float]:
        """Return that of the only term."""
        return {"loss": 1.0}

    def forward(
        self, maps: Mapping[str, Sequence[Tensor]], pooled: Mapping[str, Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Return "loss" and "std", the spread of the projections.

        A healthy spread is 1/sqrt(width). Arguments as `Objective` has them.
        """
        projections = [self.projector(pooled[view]) for view in (FIRST, SECOND)]
        predictions = [self.predictor(projection) for projection in projections]
        whole = gathered_rows(projections[0].detach().float())
        unit = nn.functional.normalize(whole, dim=1)
        return {"loss": simsiam_loss(*predictions, *projections), "std": unit.std(dim=0).mean()}


class SimSiam(Composite):
    """Let a student agree with itself on two views of an image.

    Source: SimSiam.
    """

    section = "simsiam"
    views = 2

    @classmethod
    def parts(cls, config: SimSiamConfig) -> dict[str, Part]:
        """Return the only objective."""
        return {"simsiam": Part(Agreement, config)}

    @classmethod
    def augment(cls, config: SimSiamConfig) -> AugmentConfig:
        """Return how the two views are made."""
        return config.augment
