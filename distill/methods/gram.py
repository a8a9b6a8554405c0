"""Self-similarity: the cells of an image are as like one another as they are for the teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.data.sets import Needs
from distill.losses.feature import cell_similarity
from distill.methods.objective import IMAGE, Batch, Objective
from distill.modules.bridge import resize
from distill.students.student import nearest_strides
from dreamshard.errors import ConfigError, Problem
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.objectives import GramConfig
    from distill.students.student import Student


class Gram(Objective):
    """Match the likeness of cells, level by level, with the student's map of the nearest stride.

    It has no head: likeness does not depend on the number of channels. Maps of two resolutions are
    brought to the coarser one.
    """

    config: GramConfig

    @classmethod
    def needs(cls, config: GramConfig) -> Needs:
        """Say that it needs maps, and the images that they lie beside."""
        return Needs(kinds=("feature",), views=(IMAGE,))

    def build(
        self,
        student: Student,
        levels: Sequence[Level],
        *,
        image_size: tuple[int, int],
        seed: int,
    ) -> None:
        """Choose the student's map of each level; refuse maps of a single cell, like itself alone.

        Raises:
            ConfigError: naming the levels.
        """
        chosen = [level for level in levels if level.is_map]
        nearest = nearest_strides([lv.stride for lv in chosen], offered=student.strides)
        self.place = {
            level.name: student.strides.index(stride)
            for level, stride in zip(chosen, nearest, strict=True)
        }
        height, width = image_size
        single = [
            level.name
            for level, stride in zip(chosen, nearest, strict=True)
            if min(level.shape[1] * level.shape[2], -(-height // stride) * -(-width // stride)) < 2
        ]
        if single:
            got = f"levels of which teacher or student has one cell ({', '.join(single)})"
            allowed = "maps of two cells or more, whose likeness to one another is compared"
            raise ConfigError(Problem("mix.gram.weight", got, allowed, "Leave them out."))

    def weights(self) -> dict[str, float]:
        """Return that of the only term."""
        return {"loss": 1.0}

    def forward(
        self, maps: Mapping[str, Sequence[Tensor]], pooled: Mapping[str, Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Return "loss", the mean over the levels; arguments as `Objective` has them."""
        losses = []
        for name, place in self.place.items():
            pair = maps[IMAGE][place], batch.targets[name]
            size = self._size(*pair)
            student, teacher = (resize(each.float(), size=size) for each in pair)
            losses.append(cell_similarity(student, teacher, temperature=self.config.temperature))
        return {"loss": torch.stack(losses).mean()}

    def _size(self, *pair: Tensor) -> tuple[int, int]:
        """Return the coarser of two resolutions, with at most as many cells as the settings say."""
        height, width = min((each.shape[-2], each.shape[-1]) for each in pair)
        shrink = max(1.0, math.sqrt(height * width / self.config.cells))
        return max(1, int(height / shrink)), max(1, int(width / shrink))
