"""What is seen of an adversarial run: curves, samples, distances, and an alarm for collapse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dreamshard.foreign.text import parse_json
from pipeline.images.quality import pixel_features

COLLAPSED = 0.3
"""Samples nearer to one another than this share of what training images are (median nearest
neighbours) are few pictures over and over."""
PATIENCE = 50_000
"""Images in which a generator may still be finding out that there is more than one picture."""
COMPARED = 256
CURVES = {
    "Losses": ("loss_d", "loss_g", "loss_r", "loss_e"),
    "Errors": ("l1", "perceptual", "latent", "l1_real", "perceptual_real"),
    "Scores": ("real", "fake"),
    "Distance": ("proxy_fd",),
}
Draw = Callable[[range], np.ndarray]


def variety(samples: np.ndarray, images: np.ndarray) -> float:
    """Return how far samples are from one another, as a share of how far images are.

    Args:
        samples: uint8 (N, H, W, 3).
        images: uint8 (M, H, W, 3), real; as many of both are compared.

    Returns:
        Ratio of median distances to the nearest neighbour, in 8 x 8 means of pixels: 0 for one
        picture over and over, about 1 for as much variety.
    """
    count = min(len(samples), len(images), COMPARED)
    ours, theirs = (_nearest(pixel_features(each[:count])) for each in (samples, images))
    return ours / max(theirs, 1e-9)


def alarm(share: float, *, seen: int, best: float) -> str:
    """Word the alarm for a variety; "" where there is none.

    Args:
        share: the variety.
        seen: images shown so far (count).
        best: the largest variety before.
    """
    if share >= COLLAPSED or (seen < PATIENCE and best < COLLAPSED):
        return ""
    return (
        f"COLLAPSE: samples are {share:.0%} as far from one another as images are (alarm below "
        f"{COLLAPSED:.0%}). The best teacher so far stays; go back to it, with lower rates or more "
        "regularisation"
    )


def draw_curves(folder: Path) -> None:
    """Write `curves.png` from a run's metrics.jsonl; nothing where matplotlib is not installed."""
    file = folder / "metrics.jsonl"
    points: dict[str, list[tuple[float, float]]] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        entry = parse_json(line, where=str(file), infinite=True)
        for name, value in entry.items():
            if isinstance(value, int | float):
                points.setdefault(name, []).append((entry["step"], value))
    try:
        from dreamshard.charts import LIGHT, loss_curves
    except ImportError:
        return
    panels = {
        title: {name: points[name] for name in names if name in points}
        for title, names in CURVES.items()
    }
    panels = {title: lines for title, lines in panels.items() if lines}
    if panels:
        (folder / "curves.png").write_bytes(loss_curves(panels, LIGHT))


def _nearest(features: np.ndarray) -> float:
    squares = (features**2).sum(1)
    distances = squares[:, None] + squares - 2 * features @ features.T
    np.fill_diagonal(distances, np.inf)
    return float(np.median(np.sqrt(distances.min(1).clip(0))))
