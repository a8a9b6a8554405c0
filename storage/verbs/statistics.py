"""Numbers and a picture of what levels hold, from samples spread evenly over a dataset."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dreamshard.errors import DataError
from dreamshard.pictures import feature_rgb, image_grid
from storage.codecs.arrays import IMAGE
from storage.rows.pick import read_rows
from storage.schema import Level
from storage.snapshot import Snapshot

STATISTICS_SAMPLES = 256
SHEET_SAMPLES = 8
_BLOCK_BYTES = 64 << 20
_CELL_PX = 64  # side of a picture on the sheet, at least


@dataclass(frozen=True)
class LevelStatistics:
    """Describe the values of one level, as decoded.

    Args:
        name: the level.
        samples: samples looked at.
        mean, std: over all values.
        low, high: smallest and largest value.
        zeros: share of values that are exactly 0, 0..1.
        dead: channels (first axis) that never change.
        norm: mean over positions of a position's length over the channels.
    """

    name: str
    samples: int
    mean: float
    std: float
    low: float
    high: float
    zeros: float
    dead: int
    norm: float


def spread(snapshot: Snapshot, count: int, *, first: int | None = None) -> np.ndarray:
    """Choose up to `count` valid samples, evenly spread over the first so many; int64, ascending.

    Raises:
        DataError: if none is valid.
    """
    valid = np.flatnonzero(snapshot.valid[:first])
    if not len(valid):
        raise DataError(f"{snapshot.url}: got no valid sample, allowed one or more.")
    return valid[np.unique(np.linspace(0, len(valid) - 1, min(count, len(valid))).astype(int))]


@np.errstate(invalid="ignore", over="ignore")
def level_statistics(
    snapshot: Snapshot,
    level: Level,
    samples: np.ndarray,
    *,
    on_samples: Callable[[int], None] = lambda _: None,
) -> LevelStatistics:
    """Look at a level's values, a few samples at a time; what is not finite shows as it is.

    Args:
        snapshot: what to read.
        level: one of its levels.
        samples: int64 (N,), sample numbers, 1 or more.
        on_samples: called with how many more samples were read.
    """
    channels = level.shape[0] if level.shape else 1
    step = max(1, _BLOCK_BYTES // max(1, 8 * math.prod(level.shape)))
    total, squares, zeros, length, cells = 0.0, 0.0, 0, 0.0, 0
    low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
    for start in range(0, len(samples), step):
        some = samples[start : start + step]
        values = read_rows(snapshot, level.name, some, access="pread").astype(np.float64)
        values = values.reshape(len(some), channels, -1)
        total, squares = total + values.sum(), squares + np.square(values).sum()
        zeros += values.size - np.count_nonzero(values)
        length += np.sqrt(np.square(values).sum(axis=1)).sum()
        cells += values.shape[0] * values.shape[2]
        low = np.minimum(low, values.min(axis=(0, 2)))
        high = np.maximum(high, values.max(axis=(0, 2)))
        on_samples(len(some))
    count = cells * channels
    mean = total / count
    return LevelStatistics(
        name=level.name,
        samples=len(samples),
        mean=float(mean),
        std=float(np.sqrt(np.maximum(0.0, squares / count - mean**2))),
        low=float(low.min()),
        high=float(high.max()),
        zeros=zeros / count,
        dead=int((low == high).sum()),
        norm=float(length / cells),
    )


def contact_sheet(snapshot: Snapshot) -> bytes:
    """Show SHEET_SAMPLES samples: the image, then each map's first three components as colours.

    Returns:
        A PNG, one row a sample, evenly spread over the dataset.

    Raises:
        DataError: if there is neither an image nor a map to show, no valid sample, or no Pillow.
    """
    samples = spread(snapshot, SHEET_SAMPLES)
    columns: list[np.ndarray] = []
    if IMAGE in snapshot.array_names:
        columns.append(read_rows(snapshot, IMAGE, samples, access="pread"))
    for level in snapshot.levels:
        if len(level.shape) == 3 and "float" in level.dtype:
            rows = read_rows(snapshot, level.name, samples, access="pread")
            columns.append(feature_rgb(rows))
    if not columns:
        raise DataError(f"{snapshot.url}: got no images and no feature maps, allowed one to show.")
    side = max(_CELL_PX, *(max(column.shape[1:3]) for column in columns))
    cells = [enlarge(column[row], side) for row in range(len(samples)) for column in columns]
    try:
        return image_grid(np.stack(cells), columns=len(columns), cell_px=side)
    except ImportError:
        raise DataError("inspect --sheet: got no Pillow. Run `pip install pillow`.") from None


def enlarge(picture: np.ndarray, side: int) -> np.ndarray:
    """Return a picture (h, w, 3) as (side, side, 3), cells repeated, not blurred."""
    height, width = picture.shape[:2]
    return picture[np.arange(side) * height // side][:, np.arange(side) * width // side]
