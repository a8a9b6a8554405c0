"""What feature distillation may have beside the paper's: standards, teachers weighed, a shift.

Statistics of the dataset in the place of whitening, several teachers that are balanced or dropped,
one head for several timesteps, students whose crop moves by whole cells; and what each of them asks
of the levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from distill.data.sets import NUMBER, Needs
from distill.data.statistics import SAMPLES, read_values
from distill.losses.feature import whiten
from distill.methods.objective import IMAGE, SHIFTED, Batch, Objective
from distill.modules.shift import CellShift
from distill.modules.standardise import Standardiser
from distill.modules.teachers import TeacherWeights
from dreamshard.errors import ConfigError, Problem
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.objectives import FeatureConfig
    from distill.data.sets import TrainingSet


class FeatureExtras(Objective):
    """Hold what an objective on feature maps may have beside its regressor.

    What builds on it sets `head_of` (level -> head) and `sizes` (head -> map size), then calls
    `build_extras`.
    """

    config: FeatureConfig
    head_of: dict[str, str]
    sizes: dict[str, tuple[int, ...]]

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

    def build_extras(self, levels: Sequence[Level], depths: Sequence[int]) -> None:
        """Build what the settings ask for; depths are the channels of each head."""
        config = self.config
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
            hint = ", or set whiten of this objective to layer_norm"
            standard.fit(read_values(training_set, name, most=SAMPLES, hint=hint))

    def show(self, view: str, images: Tensor, targets: Mapping[str, Tensor]) -> Tensor | None:
        """Return the images moved by whole cells, for the view of that name."""
        if view != SHIFTED or self.shift is None:
            return None
        return self.shift(images, targets[NUMBER])

    def sides(
        self, student: dict[str, Tensor], batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor] | None]:
        """Return predictions, teacher's maps and standardised ones by level, cut alike by a shift.

        The last is None where whitening is left to the loss.
        """
        teacher = {level: batch.targets[level] for level in student}
        standardised = None
        if self.standards:
            by_head = dict(zip(self.sizes, self.standards, strict=True))
            standardised = {n: by_head[head](teacher[n]) for n, head in self.head_of.items()}
        if self.shift is None:
            return student, teacher, standardised
        if standardised is None:  # before the cut: whole maps have other means than their parts
            axes = self.config.whiten_axes
            standardised = {n: whiten(v.detach(), axes=axes) for n, v in teacher.items()}
        return (
            self.shift.inner(student),
            self.shift.seen(teacher),
            self.shift.seen(standardised),
        )

    def weigher(self, batch: Batch) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Return what weighs the terms of each sample and level, (B, L); None: alike."""
        config, teachers = self.config, self.teachers
        if teachers is None:
            return None

        def weigh(mse: Tensor, attention: Tensor) -> Tensor:
            losses = config.mse_weight * mse + config.attention_weight * attention
            return teachers(losses.detach(), batch.targets.get(NUMBER))

        return weigh


def feature_problems(config: FeatureConfig, training_set: TrainingSet) -> list[Problem | str]:
    """Say which settings the levels do not allow, by their keys within the objective's."""
    levels = [level for level in training_set.levels if level.is_map]
    problems: list[Problem | str] = []
    if config.balance != "levels" or config.teacher_dropping:
        of_level = training_set.source.teachers
        if len({of_level[level.name] for level in levels}) < 2:
            hint = "Name further datasets of the same samples, of other teachers, in data.join."
            pairs = [
                ("balance", config.balance, "levels"),
                ("teacher_dropping", config.teacher_dropping, 0),
            ]
            problems += [
                Problem(name, f"{value} with one teacher's maps", f"{usual}", hint)
                for name, value, usual in pairs
                if value != usual
            ]
    if config.timestep_heads == "shared" and not shared_heads(levels):
        got = ", ".join(level.name for level in levels)
        hint = "Record more with `dreamshard encode --teacher.timesteps`, or leave it at own."
        allowed = "levels of two timesteps or more of one tap"
        problems.append(Problem("timestep_heads", f"shared with {got}", allowed, hint))
    if config.shift_cells:
        problems += _shift_problems(config.shift_cells, levels)
    return problems


def _shift_problems(cells: int, levels: list[Level]) -> list[Problem | str]:
    grid = max(level.stride for level in levels)
    uneven = [level.name for level in levels if grid % level.stride]
    if uneven:
        allowed = f"0, as stride {grid} is no multiple of that of {', '.join(uneven)}"
        return [Problem("shift_cells", str(cells), allowed)]
    side = min(min(level.shape[1:]) for level in levels if level.stride == grid)
    if side > 2 * cells:
        return []
    most = (side - 1) // 2
    allowed = f"at most {most}, as the coarsest map (stride {grid}) has {side} cells a side"
    return [Problem("shift_cells", str(cells), allowed, "Leave the coarsest level out.")]


def shared_heads(levels: Iterable[Level]) -> dict[str, tuple[str, int]]:
    """Return, for levels whose tap has several timesteps, whose head they share and their own t."""
    groups: dict[tuple[str, str], list[Level]] = {}
    for level in levels:
        groups.setdefault((level.tap, level.pool), []).append(level)
    return {
        level.name: (group[0].name, level.timestep)
        for group in groups.values()
        if len({one.timestep for one in group}) > 1
        for level in group
    }
