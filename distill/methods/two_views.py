"""VICReg and SimSiam on the dataset's images: baselines that need no teacher, two views alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from distill.data.sets import Needs
from distill.losses.simsiam import simsiam_loss
from distill.losses.vicreg import vicreg_loss
from distill.methods.objective import FIRST, SECOND, Batch, Composite, Objective, Part
from distill.modules.projector import hidden_layers
from pipeline.learning.ranks import gathered_rows
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.methods import AugmentConfig, SimSiamConfig, VICRegConfig
    from distill.students.student import Student


class TwoViews(Objective):
    """Compare a student's two random views of an image."""

    @classmethod
    def needs(cls, config: object) -> Needs:
        """Say that there is no teacher: two views are enough."""
        return Needs(kinds=(), views=(FIRST, SECOND), deepest=True)


class Invariance(TwoViews):
    """Let a student's two views agree, in dimensions that vary and differ.

    Source: VICReg, section 4; the two views come from one distribution, as in Squeeze-and-Span.
    """

    config: VICRegConfig
    over_batch = "variance and covariance"

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


class Agreement(TwoViews):
    """Let a student predict its own projection of another view of an image.

    Source: SimSiam, section 3; widths and layers as in Squeeze-and-Span's baseline.
    """

    config: SimSiamConfig
    fixed_rate = ("predictor.",)  # its learning rate stays at the peak (paper, section 4)

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


class TwoViewMethod(Composite):
    """Train on two views of the samples' images."""

    kind: ClassVar[type[Objective]]
    views = 2

    @classmethod
    def parts(cls, config: VICRegConfig | SimSiamConfig) -> dict[str, Part]:
        """Return the only objective, of the method's own name."""
        return {cls.section: Part(cls.kind, config)}

    @classmethod
    def augment(cls, config: VICRegConfig | SimSiamConfig) -> AugmentConfig:
        """Return how the two views are made."""
        return config.augment


class VICReg(TwoViewMethod):
    """Let a student agree with itself on two views, with dimensions that vary and differ.

    Source: VICReg.
    """

    section, kind = "vicreg", Invariance


class SimSiam(TwoViewMethod):
    """Let a student agree with itself on two views of an image.

    Source: SimSiam.
    """

    section, kind = "simsiam", Agreement
