"""Sections that show pictures: what went in, what the teacher draws, what it sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dreamshard.console.report.material import Material
from dreamshard.console.report.page import Section, Strip
from dreamshard.foreign.files import read_bytes
from dreamshard.pictures import feature_rgb, image_grid

if TYPE_CHECKING:
    from storage.schema import Level
    from storage.snapshot import Snapshot

SHOWN = 10
"""Images whose feature maps are shown."""
INPUTS = 40
"""Images shown of what goes in."""


def inputs(material: Material) -> Section | None:
    """Show images of the dataset, evenly spaced."""
    section = Section(name="inputs", title="The images that went in")
    snapshot = _snapshot(material)
    if snapshot is None:
        return None
    from storage.rows.pick import read_rows

    rows = np.flatnonzero(snapshot.valid)
    rows = rows[np.linspace(0, len(rows) - 1, min(INPUTS, len(rows))).astype(int)]
    images = read_rows(snapshot, "image", rows)
    height, width = images.shape[1:3]
    classes = len(np.unique(snapshot.labels[snapshot.valid & (snapshot.labels >= 0)]))
    told = f"labels of {classes:,} classes" if classes else "no labels"
    section.text = (
        f"{len(rows)} of {snapshot.num_valid:,} images, {height} × {width} pixels, {told}."
    )
    png = image_grid(images, columns=20, cell_px=max(40, width))
    section.strips.append(Strip(png, alt="input images"))
    return section


def samples(material: Material) -> Section | None:
    """Show what the teacher draws from noise."""
    section = Section(name="samples", title="What the teacher draws from noise")
    if material.samples_png is None:
        return None
    section.text = "Images sampled from the teacher; its features come from the same network."
    png = read_bytes(material.samples_png)
    section.strips.append(Strip(png, alt="samples of the teacher", width_px=420))
    return section


def features(material: Material) -> Section | None:
    """Show the teacher's feature maps, one row of pictures per level."""
    section = Section(name="features", title="What the teacher sees")
    snapshot = _snapshot(material)
    if snapshot is None:
        return None
    from storage.rows.pick import read_rows

    rows = one_per_class(snapshot.labels, snapshot.valid, count=SHOWN)
    section.text = (
        "Each row is one recorded level: the first three principal components of its feature "
        "vectors as red, green and blue, one basis for the whole row. Equal colours within a row "
        "mean equal features."
    )
    png = image_grid(read_rows(snapshot, "image", rows), columns=SHOWN)
    section.levels.append(Strip(png, name="image"))
    for level in sorted(snapshot.levels, key=lambda level: (level.stride, level.timestep)):
        if len(level.shape) == 3:
            colours = feature_rgb(read_rows(snapshot, level.name, rows))
            png = image_grid(colours, columns=SHOWN)
            section.levels.append(Strip(png, name=level.name, note=level_note(level)))
    return section


def one_per_class(labels: np.ndarray, valid: np.ndarray, *, count: int) -> np.ndarray:
    """Choose up to `count` valid samples: the first of every class, then the first ones left.

    Args:
        labels: int64 (N,), -1 for none.
        valid: bool (N,).

    Returns: int64 sample numbers, classes in order.
    """
    usable = np.flatnonzero(valid)
    classes, first = np.unique(labels[usable], return_index=True)
    chosen = usable[first[classes >= 0]][:count]
    rest = usable[~np.isin(usable, chosen)][: count - len(chosen)]
    return np.concatenate([chosen, rest])


def level_note(level: Level) -> str:
    """Describe a level in a few words."""
    channels, height, width = level.shape
    note = f"{height} × {width} cells of {channels}"
    return f"{note}, stride {level.stride}" if level.stride else note


def _snapshot(material: Material) -> Snapshot | None:
    """Return the dataset's snapshot if it holds an image to show."""
    if material.dataset is None or "image" not in material.dataset.arrays:
        return None
    snapshot = material.dataset.snapshot()
    return snapshot if snapshot.num_valid else None
