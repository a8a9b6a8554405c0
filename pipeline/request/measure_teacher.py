"""`dreamshard inspect teacher PATH --measure`: what its features know, and how it draws.

A network that looks at images is probed, tap by tap, by two poolings; an encoder with its generator
is judged by what comes back of images; one that draws, by how far its samples are from them.

Shapes: N images, C channels, cells h x w.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamshard.errors import ConfigError, Problem
from dreamshard.pictures import image_grid
from dreamshard.progress import Progress
from dreamshard.rng import generator
from pipeline.images import quality
from pipeline.teachers.base import Mode, Teacher
from pipeline.teachers.inspecting.choose import FOLDS, probe_together

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 32
"""Images of a pass (count)."""
FEWEST = 32
"""Images that say anything (count)."""
CELLS = {"mean over space": 1, "means of 4x4 cells": 4}
"""Pooling -> cells per side of what is left of a map."""
IMAGE = "rec.image"
"""Tap of what an encoder's generator makes of its latents, in [-1, 1]."""
PUBLISHED = 10
"""Parts that an Inception Score is published over (count)."""
SHOWN = 32
"""Images of a reconstruction sheet (count)."""
Open = Callable[[Mode, Sequence[str] | None], Teacher]
"""(mode, levels; None for the usual ones) -> the teacher, for passes of `BATCH` images."""


@dataclass
class Measured:
    """What was found; empty where the teacher cannot do it or images do not tell.

    Args:
        probes: level -> pooling -> % of images found by a linear probe fitted to the others.
        relative_l1: of reconstructions, 0 for perfect ones, about 1 where they tell nothing.
        sheet: images, each with what came back of it, PNG.
        distances: of samples from the images.
    """

    images: int = 0
    probes: dict[str, dict[str, float]] = field(default_factory=dict)
    relative_l1: float | None = None
    sheet: bytes = b""
    distances: dict[str, float] = field(default_factory=dict)


def measure(
    open_one: Open,
    images: np.ndarray,
    labels: np.ndarray | None,
    *,
    modes: Sequence[Mode],
    levels: Sequence[str] | None,
    taps: Sequence[str],
    extractor: str,
) -> Measured:
    """Measure what a teacher can do.

    Args:
        open_one: opens it.
        images: uint8 (N, H, W, 3), as large as the teacher's.
        labels: int64 (N,), or None.
        modes: that it has.
        levels: to probe; None for the usual ones.
        taps: that it has.
        extractor: as `quality.open_extractor` takes it, of the distances.

    Raises:
        ConfigError: too few images, no such extractor, or nothing to measure.
    """
    if len(images) < FEWEST:
        raise ConfigError(Problem("samples", str(len(images)), f"{FEWEST} images or more"))
    # The next image of a reconstruction's is to be any other: sources are often sorted.
    order = generator(0, 0, 0, "measure-order").permutation(len(images))
    images, labels = images[order], None if labels is None else labels[order]
    measured = Measured(images=len(images))
    extract = quality.open_extractor(extractor) if "synthesize" in modes else None
    if "encode" in modes and labels is not None:
        measured.probes = _probes(open_one("encode", levels), images, labels)
    if "encode" in modes and IMAGE in taps:
        measured.relative_l1, measured.sheet = _rebuilt(open_one("encode", [IMAGE]), images)
    if extract is not None:
        measured.distances = _distances(open_one("synthesize", levels), images, extract)
    if not (measured.probes or measured.sheet or measured.distances):
        hint = "Its features are probed with labels: give a source that has them."
        raise ConfigError(Problem("images", "no labels", "labels, for a teacher that looks", hint))
    return measured


def format_measured(measured: Measured, extractor: str) -> str:
    """Lay the figures out as text."""
    lines = [f"measured on {measured.images} images"]
    if measured.probes:
        lines.append(f"linear probe, % of images found by {FOLDS} probes each fitted to the others")
        lines.append(f"{'level':<22}" + "".join(f"{name:>20}" for name in CELLS))
        for level, row in measured.probes.items():
            cells = (f"{row[name]:.1f}" if name in row else "-" for name in CELLS)
            lines.append(f"{level:<22}" + "".join(f"{cell:>20}" for cell in cells))
    if measured.relative_l1 is not None:
        error = measured.relative_l1
        lines.append(f"relative L1 error of reconstructions: {error:.4f} (1: as far as another's)")
    for name, value in measured.distances.items():
        lines.append(f"{name} of as many samples ({extractor}): {value:.4g}")
    return "\n".join(lines)


def _batches(
    teacher: Teacher, images: np.ndarray, what: str
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Let a teacher look at images in whole passes; rows of padding are dropped."""
    with Progress(what, total=len(images)) as progress:
        for start in range(0, len(images), BATCH):
            index = np.minimum(np.arange(start, start + BATCH), len(images) - 1)
            count = min(BATCH, len(images) - start)
            levels = teacher.encode(images[index], index).levels
            yield start, {name: value[:count] for name, value in levels.items()}
            progress.update(count)


def _probes(
    teacher: Teacher, images: np.ndarray, labels: np.ndarray
) -> dict[str, dict[str, float]]:
    import torch
    from torch.nn import functional as F

    kept: dict[str, dict[str, list[Tensor]]] = {}
    for _, levels in _batches(teacher, images, "measure: features"):
        for name, value in levels.items():
            x = torch.from_numpy(np.asarray(value, np.float32))
            for pooling, cells in CELLS.items():
                if x.dim() == 4:
                    pooled = F.adaptive_avg_pool2d(x, cells).flatten(1)
                elif cells == 1:
                    pooled = x.flatten(2).mean(2) if x.dim() == 3 else x
                else:
                    continue
                kept.setdefault(name, {}).setdefault(pooling, []).append(pooled)
    truth, classes = torch.from_numpy(labels), int(labels.max()) + 1
    return {
        name: {
            pooling: probe_together(torch.cat(parts)[None], truth, classes=classes)[0]
            for pooling, parts in of.items()
        }
        for name, of in kept.items()
    }


def _rebuilt(teacher: Teacher, images: np.ndarray) -> tuple[float, bytes]:
    import torch

    from pipeline.learning.pretraining.adversarial.bigbigan.measure import relative_l1
    from pipeline.learning.pretraining.adversarial.bigbigan.networks import side_of
    from pipeline.teachers.pixels import signed, to_uint8

    parts = [levels[IMAGE] for _, levels in _batches(teacher, images, "measure: reconstructions")]
    rebuilt = torch.from_numpy(np.concatenate(parts).astype(np.float32))
    x = side_of(signed(torch.from_numpy(images)), rebuilt.shape[-1])
    pairs = torch.stack([x[:SHOWN], rebuilt[:SHOWN]], 1).flatten(0, 1)
    sheet = image_grid(to_uint8(pairs).numpy(), columns=8, cell_px=64, gap_px=1)
    return relative_l1(x, rebuilt), sheet


def _distances(
    teacher: Teacher, images: np.ndarray, extract: quality.Extractor
) -> dict[str, float]:
    drawn = []
    with Progress("measure: samples", total=len(images)) as progress:
        for start in range(0, len(images), BATCH):
            image = teacher.synthesize(np.arange(start, start + BATCH)).image
            assert image is not None, "samples are images"
            drawn.append(image)
            progress.update(min(BATCH, len(images) - start))
    theirs, ours = extract(images), extract(np.concatenate(drawn)[: len(images)])
    distances: dict[str, Any] = {
        "Fréchet distance": quality.frechet_distance(theirs, ours),
        "kernel distance": quality.kernel_distance(theirs, ours),
    }
    if (logits := getattr(extract, "logits", None)) is not None:
        mean, spread = quality.inception_score(logits(ours), parts=PUBLISHED)
        distances |= {"Inception Score": mean, "deviation of the Inception Score": spread}
    return distances
