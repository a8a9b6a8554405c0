"""One vector per image of what a teacher gave: an embedding, or a map's mean over space.

Shapes: B samples, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dreamshard.errors import ConfigError, Problem
from pipeline.learning.precise import in_float32
from storage.level_names import match_levels
from storage.schema import Level


@in_float32
def as_vector(values: Tensor) -> Tensor:
    """Return (B, C) of a vector (B, C) or a map (B, C, h, w): its mean over space, in float32."""
    values = values.detach().float()
    return values if values.dim() == 2 else values.mean(dim=(2, 3))


def vector_levels(levels: Sequence[Level]) -> list[Level]:
    """Return the levels that are vectors; where there are none, the maps."""
    vectors = [level for level in levels if level.is_vector]
    return vectors or [level for level in levels if level.is_map]


def the_embedding(levels: Sequence[Level], *, name: str, key: str) -> Level:
    """Return the level that is a teacher's embedding.

    Args:
        levels: of the training set.
        name: of the level; empty: the only one that it may be.
        key: of the setting that names it.

    Raises:
        ConfigError: no such level, or several and no name.
    """
    if name:
        usable = [level for level in levels if level.is_vector or level.is_map]
        matching = match_levels(usable, name)
        if len(matching) != 1:
            allowed = ", ".join(level.name for level in usable) or "a vector or a map"
            raise ConfigError(Problem(key, name, f"one of {allowed}"))
        return matching[0]
    candidates = vector_levels(levels)
    if len(candidates) != 1:
        allowed = f"one of {', '.join(lv.name for lv in candidates)}" if candidates else "a level"
        hint = "Name the level; a map is averaged over space."
        raise ConfigError(Problem(key, "nothing", allowed, hint))
    return candidates[0]
