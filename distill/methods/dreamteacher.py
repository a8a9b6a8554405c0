"""DreamTeacher: regress a generative teacher's features from a student's pyramid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from distill.data.sets import NUMBER, Needs
from distill.data.statistics import SAMPLES, read_values
from distill.losses.feature import feature_loss, whiten
from distill.methods.feature_levels import feature_problems, shared_heads
from distill.methods.label_branch import Label
from distill.methods.objective import IMAGE, SHIFTED, Batch, Composite, Objective, Part
from distill.modules.bridge import check_resolutions, resize
from distill.modules.regressor import FeatureRegressor
from distill.modules.shift import CellShift
from distill.modules.standardise import Standardiser
from distill.modules.teachers import TeacherWeights
from distill.students.student import nearest_strides, output_shapes
from dreamshard.errors import ConfigError
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.methods import DreamTeacherConfig
    from distill.configs.objectives import FeatureConfig
    from distill.data.sets import TrainingSet
    from distill.students.student import Student


class Feature(Objective):
    """Predict the teacher's maps from the student's through a regressor.

    Noise draws of one feature map share one prediction, whose regression is best at their mean.
    With `bridge: interpolate`, a level whose resolution the student has not is predicted from the
    nearest stride, and the prediction resized.

    Raises:
        ConfigError: a level's map is not of the student's resolution; both sides are listed.

    Source: DreamTeacher, section 3.1.
    """

    config: FeatureConfig

    @classmethod
    def needs(cls, config: FeatureConfig) -> Needs:
        """Say that it needs maps, and the images that they lie beside."""
        return Needs(
            kinds=("feature",),
            views=(SHIFTED if config.shift_cells else IMAGE,),
            bridged=config.bridge != "none",
            numbers=bool(config.shift_cells or config.teacher_dropping),
        )

    @classmethod
    def settled(cls, config: FeatureConfig, training_set: TrainingSet) -> FeatureConfig:
        """Refuse what needs several teachers, several timesteps or larger maps than there are."""
        problems = feature_problems(config, training_set)
        if problems:
            raise ConfigError(problems)
        return config

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
        self.standards = nn.ModuleList()
        if config.whiten != "layer_norm":  # one per head; names have dots, so they are in a list
            self.standards.extend(Standardiser(d, kind=config.whiten) for d in depths)
        self.view, self.shift, self.teachers = IMAGE, None, None
        self.weighed = config.balance != "levels" or config.teacher_dropping > 0
        if config.shift_cells:
            self.view = SHIFTED
            self.shift = CellShift(config.shift_cells, levels, seed=self.seed)

    def prepare(self, training_set: TrainingSet) -> None:
        """Take the statistics of the dataset, where they standardise the teacher's maps.

        And tell the teachers apart, where they are weighed.
        """
        config = self.config
        if self.weighed:
            of_level = training_set.source.teachers
            self.teachers = TeacherWeights(
                [of_level[name] for name in self.head_of],
                balance=config.balance,
                dropping=config.teacher_dropping,
                seed=self.seed,
            )
        for name, standard in zip(self.sizes, self.standards, strict=False):
            assert isinstance(standard, Standardiser)
            standard.fit(read_values(training_set, name, most=SAMPLES))

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
        student = {level: predicted[head] for level, head in self.head_of.items()}
        teacher = {level: batch.targets[level] for level in student}
        standardised = self._standardised(batch) if self.standards else None
        if self.shift is not None:
            if standardised is None:
                axes = self.config.whiten_axes
                standardised = {n: whiten(v.detach(), axes=axes) for n, v in teacher.items()}
            student = self.shift.inner(student)
            teacher, standardised = (self.shift.seen(each) for each in (teacher, standardised))
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
            weigh=None if self.teachers is None else self._weigher(batch),
        )

    def show(self, view: str, images: Tensor, targets: Mapping[str, Tensor]) -> Tensor | None:
        """Return the images moved by whole cells, for the view of that name."""
        if view != SHIFTED or self.shift is None:
            return None
        return self.shift(images, targets[NUMBER])

    def _weigher(self, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
        """Return what weighs the terms of each sample and level, (B, L), by their teachers."""
        config, teachers = self.config, self.teachers
        assert teachers is not None

        def weigh(mse: Tensor, attention: Tensor) -> Tensor:
            losses = config.mse_weight * mse + config.attention_weight * attention
            return teachers(losses.detach(), batch.targets.get(NUMBER))

        return weigh

    def _standardised(self, batch: Batch) -> dict[str, Tensor]:
        by_head = dict(zip(self.sizes, self.standards, strict=True))
        return {name: by_head[head](batch.targets[name]) for name, head in self.head_of.items()}


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
