"""What the feature objective asks of its levels: several teachers, timesteps, room for a shift."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dreamshard.errors import Problem
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.objectives import FeatureConfig
    from distill.data.sets import TrainingSet


def feature_problems(config: FeatureConfig, training_set: TrainingSet) -> list[Problem | str]:
    """Say which settings the levels do not allow, by their keys within the objective's."""
    levels = [level for level in training_set.levels if level.is_map]
    found: list[Problem | str] = []
    if config.balance != "levels" or config.teacher_dropping:
        of_level = training_set.source.teachers
        if len({of_level[level.name] for level in levels}) < 2:
            hint = "Name further datasets of the same samples, of other teachers, in data.join."
            pairs = [
                ("balance", config.balance, "levels"),
                ("teacher_dropping", config.teacher_dropping, 0),
            ]
            found += [
                Problem(name, f"{value} with one teacher's maps", f"{usual}", hint)
                for name, value, usual in pairs
                if value != usual
            ]
    if config.timestep_heads == "shared" and not shared_heads(levels):
        got = ", ".join(level.name for level in levels)
        hint = "Record more with `dreamshard encode --teacher.timesteps`, or leave it at own."
        allowed = "levels of two timesteps or more of one tap"
        found.append(Problem("timestep_heads", f"shared with {got}", allowed, hint))
    if config.shift_cells:
        found += _shift_problems(config.shift_cells, levels)
    return found


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
