"""Turn arrays into pictures: feature maps as colours, and strips of images as PNG bytes.

Needs numpy alone until a PNG is made, which needs Pillow. Charts of numbers are in `charts.py`.
"""

from __future__ import annotations

import io
import math

import numpy as np


def feature_rgb(features: np.ndarray, *, percentile: float = 1.0) -> np.ndarray:
    """Show feature maps as colours: their first three principal components as red, green and blue.

    One basis is fitted over all cells of all images given, so equal colours mean equal features
    within one call. Each component is stretched between its percentiles; its sign is chosen so that
    the longer tail is bright, which makes the picture the same on every machine.

    Args:
        features: floating (N, C, H, W). Cells with a value that is not finite become mid grey.
        percentile: 0 to 49, the share in percent cut off at both ends of each component.

    Returns: uint8 (N, H, W, 3).
    Raises: ValueError if `features` is not (N, C, H, W) with at least one cell.
    """
    if features.ndim != 4 or 0 in features.shape:
        raise ValueError(
            f"features: got shape {features.shape}, allowed (N, C, H, W) without empty axes"
        )
    count, channels, height, width = features.shape
    cells = np.moveaxis(features, 1, -1).reshape(-1, channels).astype(np.float64)
    finite = np.isfinite(cells).all(axis=1)
    colours = np.full((len(cells), 3), 128, np.uint8)
    if finite.any():
        colours[finite] = _stretch(_principal_scores(cells[finite]), percentile)
    return colours.reshape(count, height, width, 3)


def _principal_scores(cells: np.ndarray) -> np.ndarray:
    """Return the first three principal scores of (M, C) cells as float64 (M, 3), signs fixed."""
    centred = cells - cells.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    basis = vectors[:, ::-1][:, :3]
    scores = np.zeros((len(cells), 3))
    scores[:, : basis.shape[1]] = centred @ basis
    skew = (scores**3).sum(axis=0)
    return scores * np.where(skew < 0, -1.0, 1.0)


def _stretch(scores: np.ndarray, percentile: float) -> np.ndarray:
    """Map each column from between its percentiles to uint8 0..255; a flat column to 128."""
    low, high = np.percentile(scores, [percentile, 100 - percentile], axis=0)
    span = high - low
    flat = span <= 1e-12 * max(1.0, float(np.abs(scores).max()))
    unit = (scores - low) / np.where(flat, 1.0, span)
    unit[:, flat] = 128 / 255
    return np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)


def image_grid(
    images: np.ndarray, *, columns: int = 10, cell_px: int = 64, gap_px: int = 4
) -> bytes:
    """Lay images out in rows on a transparent ground, enlarged without blurring.

    Args:
        images: uint8 (N, H, W, 3) or (N, H, W).
        columns: images per row.
        cell_px: width of one image in the picture; at least the image's own width is a good choice.
        gap_px: distance between images.

    Returns: PNG bytes.
    """
    from PIL import Image

    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    count, height, width, _ = images.shape
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    cell_height = max(1, round(cell_px * height / width))
    size = (columns * (cell_px + gap_px) - gap_px, rows * (cell_height + gap_px) - gap_px)
    sheet = Image.new("RGBA", size, (0, 0, 0, 0))
    shrinks = cell_px < width
    for position, pixels in enumerate(images):
        cell = Image.fromarray(np.ascontiguousarray(pixels)).resize(
            (cell_px, cell_height), Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST
        )
        row, column = divmod(position, columns)
        sheet.paste(cell, (column * (cell_px + gap_px), row * (cell_height + gap_px)))
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()
