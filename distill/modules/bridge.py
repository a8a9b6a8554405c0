"""From a student's resolutions to a teacher's: refuse a difference, or resize over it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from dreamshard.errors import ConfigError, Problem
from pipeline.learning.precise import in_float32
from storage.schema import Level


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


def check_resolutions(
    shapes: Sequence[tuple[int, int, int]], *, strides: Sequence[int], levels: Sequence[Level]
) -> None:
    """Compare the maps' sizes; strides alone do not tell (an odd image size, another padding).

    Args:
        shapes: (C, h, w) of the student's maps, finest first.
        strides: of the same.
        levels: maps to predict.

    Raises:
        ConfigError: one of them is not of the student's resolution; both sides are listed.
    """
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
