"""Turn arrays into pictures: feature maps as colours, and strips of images as PNG bytes.

Needs numpy alone until a PNG is made, which needs Pillow. Charts of numbers are in `charts.py`.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from dreamshard.errors import ConfigError, Problem
from dreamshard.permissions import apply_umask


@dataclass(frozen=True)
class ColourBasis:
    """Map feature vectors to colours, the same for the same vector.

    Args:
        mean: float64 (C,), of the cells it was fitted to.
        vectors: float64 (C, 3), their first three principal axes; 0 for those there are none of.
        low, high: float64 (3,), scores that become 0 and 255.
        flat: bool (3,), components that do not vary; they become 128.
    """

    mean: np.ndarray
    vectors: np.ndarray
    low: np.ndarray
    high: np.ndarray
    flat: np.ndarray

    def colours(self, features: np.ndarray) -> np.ndarray:
        """Colour maps (N, C, H, W): uint8 (N, H, W, 3), mid grey where a value is not finite."""
        count, _, height, width = features.shape
        cells, finite = _cells(features)
        colours = np.full((len(cells), 3), 128, np.uint8)
        scores = (cells[finite] - self.mean) @ self.vectors
        unit = (scores - self.low) / np.where(self.flat, 1.0, self.high - self.low)
        unit[:, self.flat] = 128 / 255
        colours[finite] = np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)
        return colours.reshape(count, height, width, 3)


def fit_colours(features: np.ndarray, *, percentile: float = 1.0) -> ColourBasis:
    """Fit a basis of colours to all cells of some maps.

    Each component is stretched between its percentiles; its sign is chosen so that the longer tail
    is bright, which makes the picture the same on every machine.

    Args:
        features: floating (N, C, H, W); cells with a value that is not finite are left out.
        percentile: 0 to 49, the share in percent cut off at both ends of each component.

    Raises: ValueError if `features` is not (N, C, H, W) with at least one cell.
    """
    if features.ndim != 4 or 0 in features.shape:
        raise ValueError(
            f"features: got shape {features.shape}, allowed (N, C, H, W) without empty axes"
        )
    cells, finite = _cells(features)
    cells = cells[finite] if finite.any() else np.zeros((1, cells.shape[1]))
    mean = cells.mean(axis=0)
    centred = cells - mean
    _, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    vectors = np.zeros((cells.shape[1], 3))
    vectors[:, : min(3, axes.shape[1])] = axes[:, ::-1][:, :3]
    scores = centred @ vectors
    sign = np.where((scores**3).sum(axis=0) < 0, -1.0, 1.0)
    scores *= sign
    low, high = np.percentile(scores, [percentile, 100 - percentile], axis=0)
    flat = high - low <= 1e-12 * max(1.0, float(np.abs(scores).max()))
    return ColourBasis(mean, vectors * sign, low, high, flat)


def feature_rgb(features: np.ndarray) -> np.ndarray:
    """Show feature maps as colours: their first three principal components as red, green and blue.

    One basis is fitted over all cells of all images given, so equal colours mean equal features
    within one call; see `fit_colours`.

    Args:
        features: floating (N, C, H, W). Cells with a value that is not finite become mid grey.
        percentile: 0 to 49, the share in percent cut off at both ends of each component.

    Returns: uint8 (N, H, W, 3).
    Raises: ValueError if `features` is not (N, C, H, W) with at least one cell.
    """
    return fit_colours(features).colours(features)


def _cells(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells of maps, float64 (M, C), and which of them are finite, bool (M,)."""
    cells = np.moveaxis(features, 1, -1).reshape(-1, features.shape[1]).astype(np.float64)
    return cells, cast(np.ndarray, np.isfinite(cells).all(axis=1))


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


def picture_path(path: str, *, key: str) -> Path:
    """Return the path of a picture that is to be written, looked at before the work that it shows.

    Raises: ConfigError if it is no name of a PNG file, or a folder.
    """
    if Path(path).suffix.lower() != ".png":
        hint = "It is a PNG file." if Path(path).suffix else f"Such as {path or 'sheet'}.png."
        raise ConfigError(Problem(key, path or "nothing", "a file name that ends in .png", hint))
    if Path(path).is_dir():
        raise ConfigError(Problem(key, f"{path}, a folder", "a file that can be written"))
    return Path(path)


def write_picture(picture: bytes, path: Path, *, key: str) -> None:
    """Write a PNG file, and the folders that it stands in.

    Raises: ConfigError if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
    except OSError as error:
        got = f"{path} ({error.strerror or error})"
        raise ConfigError(Problem(key, got, "a file that can be written")) from error
    apply_umask(path)
