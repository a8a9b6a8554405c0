"""DreamTeacher: regress a generative teacher's features from a student's pyramid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from distill.data.sets import Needs
from distill.losses.feature import feature_loss
from distill.methods.base import Method
from distill.methods.label_branch import LabelBranch
from distill.modules.regressor import FeatureRegressor
from distill.students.student import nearest_strides, output_shapes
from dreamshard.errors import ConfigError, Problem
from pipeline.learning.precise import in_float32
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.methods import DreamTeacherConfig


class DreamTeacher(Method):
    """Feature and label distillation: student, regressor, logit head and loss as one module.

    Noise draws of one feature map share one prediction, whose regression is best at their mean.
    With `bridge: interpolate`, a level whose resolution the student has not is predicted from the
    nearest stride, and the prediction resized.

    Raises:
        ConfigError: a level's map is not of the student's resolution; both sides are listed.

    Source: DreamTeacher, section 3.1.
    """

    config: DreamTeacherConfig

    @classmethod
    def needs(cls, config: DreamTeacherConfig) -> Needs:
        """Say which levels are needed: feature maps, soft labels or both."""
        return Needs(kinds=config.kinds())

    def build(self, levels: Sequence[Level], *, image_size: tuple[int, int], seed: int) -> None:
        """Build the regressor of feature maps and the heads of soft labels."""
        config, student = self.config, self.student
        soft = [level for level in levels if level.kind == "soft_label"]
        levels = [level for level in levels if level.kind != "soft_label"]
        self.labels = self.regressor = None
        if soft:
            self.labels = LabelBranch(config, channels=student.channels, levels=soft, seed=seed + 1)
        if not levels:
            return
        shapes = output_shapes(student, image_size=image_size)
        if config.bridge == "none":
            _check_resolutions(shapes, strides=student.strides, levels=levels)
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
        )

    def forward(self, images: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss terms of one batch.

        Args:
            images: (B, 3, H, W), normalised.
            targets: level name to the recorded features (B, C, h, w).

        Returns:
            float32 scalars "loss" (to minimise) and, unweighted, "mse" and "at" of features,
            "label" of soft labels: L_mix = L_feat + label_weight * L_ld.
        """
        maps = self.student(images)
        terms: dict[str, Tensor] = {}
        if self.regressor is not None:
            terms = self._feature_terms(self.regressor(maps), targets)
        if self.labels is not None:
            terms["label"] = self.labels(maps, targets)
            weighted = self.config.label_weight * terms["label"]
            terms["loss"] = terms["loss"] + weighted if "loss" in terms else weighted
        return terms

    def keep(self, folder: Path) -> None:
        """Write the student's logit head, if it has one."""
        if self.labels is not None:
            self.labels.keep(folder)

    def _feature_terms(
        self, regressed: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        predicted = {
            name: resize(prediction, size=self.sizes[name])
            for name, prediction in regressed.items()
        }
        return feature_loss(
            {level: predicted[head] for level, head in self.head_of.items()},
            targets,
            mse_weight=self.config.mse_weight,
            attention_weight=self.config.attention_weight,
            whiten_axes=self.config.whiten_axes,
            attention_power=self.config.attention_power,
            attention_form=self.config.attention_form,
        )


@in_float32
def resize(features: Tensor, *, size: tuple[int, ...]) -> Tensor:
    """Bridge two resolutions: bring a prediction to its level's, bilinear and without aliasing.

    Args:
        features: (B, C, h, w).
        size: (h', w'); the map is returned as it is if it has that size already.
    """
    if tuple(features.shape[-2:]) == tuple(size):
        return features
    return F.interpolate(features, size=list(size), mode="bilinear", antialias=True)


def _check_resolutions(
    shapes: Sequence[tuple[int, int, int]], *, strides: Sequence[int], levels: Sequence[Level]
) -> None:
    """Compare the maps' sizes; strides alone do not tell (an odd image size, another padding)."""
    sizes = dict(zip(strides, (shape[1:] for shape in shapes), strict=True))
    if all(tuple(level.shape[1:]) == sizes.get(level.stride) for level in levels):
        return
    theirs = ", ".join(f"{lv.name} {'x'.join(map(str, lv.shape[1:]))}" for lv in levels)
    ours = ", ".join(f"stride {s} {h}x{w}" for s, (h, w) in sizes.items())
    hint = (
        "Choose levels of the student's resolutions, a student of the levels', or "
        "--dreamteacher.bridge interpolate."
    )
    raise ConfigError(Problem("data.levels", f"maps {theirs}", f"the student's maps {ours}", hint))
