"""DreamTeacher: regress a generative teacher's features from a student's pyramid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from distill.losses.feature import feature_loss
from distill.methods.feature_levels import FeatureExtras, shared_heads
from distill.methods.label_branch import Label
from distill.methods.objective import Batch, Composite, Part
from distill.modules.bridge import check_resolutions, resize
from distill.modules.regressor import FeatureRegressor
from distill.students.student import nearest_strides, output_shapes
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.methods import DreamTeacherConfig
    from distill.students.student import Student


class Feature(FeatureExtras):
    """Predict the teacher's maps from the student's through a regressor.

    Noise draws of one feature map share one prediction, whose regression is best at their mean.
    With `bridge: interpolate`, a level whose resolution the student has not is predicted from the
    nearest stride, and the prediction resized.

    Raises:
        ConfigError: a level's map is not of the student's resolution; both sides are listed.

    Source: DreamTeacher, section 3.1.
    """

    def build(
        self, student: Student, levels: Sequence[Level], *, image_size: tuple[int, int], seed: int
    ) -> None:
        """Build the regressor."""
        config, levels = self.config, [level for level in levels if level.is_map]
        shapes = output_shapes(student, image_size=image_size)
        if config.bridge == "none":
            check_resolutions(shapes, strides=student.strides, levels=levels)
        heads = {(lv.tap, lv.timestep, lv.pool): lv for lv in reversed(levels)}
        self.head_of = {lv.name: heads[lv.tap, lv.timestep, lv.pool].name for lv in levels}
        self.sizes = {head.name: tuple(head.shape[1:]) for head in heads.values()}
        wanted = [head.stride for head in heads.values()]
        nearest = nearest_strides(wanted, offered=student.strides)
        depths = [head.shape[0] for head in heads.values()]
        self.regressor = FeatureRegressor(
            student.channels,
            strides=student.strides,
            levels=dict(zip(self.sizes, zip(nearest, depths, strict=True), strict=True)),
            map_size=shapes[-1][1:],
            kind=config.regressor,
            width=config.width,
            scales=config.pool_scales,
            timed=shared_heads(heads.values()) if config.timestep_heads == "shared" else None,
        )
        self.build_extras(levels, depths)

    def weights(self) -> dict[str, float]:
        """Return those of the regression and of attention transfer."""
        return {"mse": self.config.mse_weight, "at": self.config.attention_weight}

    def forward(
        self, maps: Mapping[str, Sequence[Tensor]], pooled: Mapping[str, Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Return "loss" and, unweighted, "mse" and "at"; arguments as `Objective` has them."""
        predicted = {
            name: resize(prediction, size=self.sizes[name])
            for name, prediction in self.regressor(maps[self.view]).items()
        }
        student, teacher, standardised = self.sides(
            {level: predicted[head] for level, head in self.head_of.items()}, batch
        )
        return feature_loss(
            student,
            teacher,
            mse_weight=self.config.mse_weight,
            attention_weight=self.config.attention_weight,
            whiten_axes=self.config.whiten_axes,
            attention_power=self.config.attention_power,
            attention_form=self.config.attention_form,
            standardised=standardised,
            regression=self.config.regression,
            cosine_share=self.config.cosine_share,
            weigh=self.weigher(batch),
        )


class DreamTeacher(Composite):
    """Feature and label distillation: L_mix = L_feat + label_weight * L_ld.

    Source: DreamTeacher, sections 3.1 and 3.2, equation 6.
    """

    section = "dreamteacher"

    @classmethod
    def parts(cls, config: DreamTeacherConfig) -> dict[str, Part]:
        """Return what the mode distils: feature maps, soft labels or both."""
        parts = {}
        if "feature" in config.kinds():
            parts["feature"] = Part(Feature, config)
        if "soft_label" in config.kinds():
            parts["label"] = Part(Label, config, weight=config.label_weight)
        return parts

    @property
    def regressor(self) -> FeatureRegressor:
        """What predicts feature maps."""
        return self.objectives["feature"].regressor  # pyright: ignore[reportReturnType]
