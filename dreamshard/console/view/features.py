"""What a level says of samples: maps as colours, cells that are alike, statistics, neighbours."""

from __future__ import annotations

import base64
import functools
import io
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dreamshard.console.view.samples import Shelf, is_map
from dreamshard.errors import DataError
from dreamshard.pictures import ColourBasis, fit_colours
from storage.codecs.arrays import IMAGE
from storage.rows.pick import read_rows
from storage.schema import Level
from storage.verbs.statistics import spread

BASIS_SAMPLES, STATISTICS_SAMPLES = 16, 32
MAX_NEIGHBOURS_AMONG = 4096
"""Samples that neighbours are looked for among, at most; evenly spread."""
MAX_READ = 256 << 20
"""Bytes of a level that one answer may be made from."""
MAX_KEPT = 32 << 20
"""Bytes of a level's rows that are kept from one answer to the next."""
BINS = 48
_RAMP = np.array(
    [(13, 8, 60), (60, 40, 160), (40, 130, 170), (80, 200, 110), (245, 235, 80)], np.float64
)
"""Colours of likeness, from least to most, evenly spaced."""

Read = Callable[[np.ndarray], np.ndarray]
"""Reads rows of a level: int64 (N,) -> (N, *level.shape)."""


class Features:
    """Show one level of a dataset: a recorded one, or what a student makes of the images.

    Args:
        shelf: the dataset.
        level: what is shown.
        read: reads its rows.
    """

    def __init__(self, shelf: Shelf, level: Level, read: Read | None = None) -> None:
        self.shelf, self.level = shelf, level
        self._kept: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()
        self._read = read or (
            lambda rows: read_rows(shelf.snapshot, level.name, rows, access="range")
        )

    @property
    def row_bytes(self) -> int:
        """Bytes of a sample's values as float32."""
        return 4 * math.prod(self.level.shape)

    @functools.cached_property
    def basis(self) -> ColourBasis:
        """The one basis of all of the dataset's maps, fitted to samples spread over it."""
        return fit_colours(self.maps(self._some(BASIS_SAMPLES)))

    def maps(self, samples: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return maps, float32 (N, C, H, W).

        Raises:
            DataError: a level that has no cells, or more samples than one answer may read.
        """
        if not is_map(self.level):
            raise DataError(f"{self.level.name}: got a level without cells, allowed a map.")
        return self._values(samples)

    def colours(self, samples: Sequence[int], *, own: bool) -> list[str]:
        """Return maps as colours, PNG data URLs; `own` fits a basis to each map alone."""
        maps = self.maps(samples)
        if own:
            return [picture(fit_colours(one[None]).colours(one[None])[0]) for one in maps]
        return [picture(colours) for colours in self.basis.colours(maps)]

    def likeness(
        self, sample: int, *, y: float, x: float, among: Sequence[int]
    ) -> tuple[list[str], list[list[float]]]:
        """Compare one cell with every cell of some samples, by the cosine of their vectors.

        Args:
            sample: whose cell it is.
            y, x: where in its map, 0..1 from its upper left corner.
            among: samples to compare with.

        Returns:
            A picture of each, bright where alike, and per sample its most alike cell: y and x in
            0..1 (the cell's middle) and the cosine. Colours reach from the least to the most alike.
        """
        values = self.maps([sample, *among])
        _, _, height, width = values.shape
        row, column = min(height - 1, int(y * height)), min(width - 1, int(x * width))
        unit = _unit(values, axis=1)
        alike = np.einsum("c,nchw->nhw", unit[0, :, row, column], unit[1:])
        low, high = float(alike.min()), float(alike.max())
        span = high - low if high > low else 1.0
        shades = (alike - low) / span * (len(_RAMP) - 1)
        steps = np.arange(len(_RAMP))
        colours = np.stack([np.interp(shades, steps, _RAMP[:, c]) for c in range(3)], axis=-1)
        best = []
        for one in alike:
            place = divmod(int(one.argmax()), width)
            best.append([(place[0] + 0.5) / height, (place[1] + 0.5) / width, float(one.max())])
        return [picture(one.astype(np.uint8)) for one in colours], best

    @functools.cached_property
    def statistics(self) -> dict[str, Any]:
        """Numbers and a histogram of the values, over samples spread over the dataset."""
        samples = self._some(STATISTICS_SAMPLES)
        values = self._values(samples).astype(np.float64).reshape(len(samples), -1)
        finite = values[np.isfinite(values)]
        told: dict[str, Any] = {"samples": len(samples), "not_finite": values.size - finite.size}
        if not finite.size:
            return told
        counts, edges = np.histogram(finite, BINS, tuple(np.percentile(finite, [0.1, 99.9])))
        channels = self.level.shape[0] if self.level.shape else 1
        by_channel = np.moveaxis(values.reshape(len(samples), channels, -1), 1, 0)
        flat = by_channel.reshape(channels, -1)
        return told | {
            "mean": float(finite.mean()),
            "std": float(finite.std()),
            "low": float(finite.min()),
            "high": float(finite.max()),
            "zeros": float((finite == 0).mean()),
            "dead": int((flat.min(axis=1) == flat.max(axis=1)).sum()),
            "counts": counts.tolist(),
            "edges": edges.tolist(),
        }

    def neighbours(self, sample: int, *, count: int) -> dict[str, Any]:
        """Find the samples whose vectors, maps averaged over their cells, are most alike.

        Returns:
            "among" how many it was looked, "samples" and their cosines "likeness", nearest first.
        """
        samples, vectors = self._pooled
        one = _unit(_pool(self._values([sample])), axis=1)[0]
        alike = vectors @ one
        order = [n for n in np.argsort(-alike, kind="stable") if samples[n] != sample][:count]
        return {
            "among": len(samples),
            "samples": samples[order].tolist(),
            "likeness": [float(alike[n]) for n in order],
        }

    @functools.cached_property
    def _pooled(self) -> tuple[np.ndarray, np.ndarray]:
        """Samples spread over the dataset, int64 (N,), and their unit vectors, float32 (N, C)."""
        samples = self._some(MAX_NEIGHBOURS_AMONG)
        step = max(1, (MAX_READ // 8) // self.row_bytes)
        parts = [samples[first : first + step] for first in range(0, len(samples), step)]
        return samples, np.concatenate([_unit(_pool(self._values(p)), axis=1) for p in parts])

    def _some(self, count: int) -> np.ndarray:
        most = max(1, MAX_READ // max(1, self.row_bytes))
        return spread(self.shelf.snapshot, min(count, most))

    def _values(self, samples: Sequence[int] | np.ndarray) -> np.ndarray:
        if len(samples) * self.row_bytes > MAX_READ:
            raise DataError(
                f"{self.level.name}: got {len(samples)} samples of {self.row_bytes:,} bytes at "
                f"once, allowed {MAX_READ:,} bytes. Show fewer on a page."
            )
        numbers = np.asarray(samples, np.int64)
        if not len(numbers) or len(numbers) * self.row_bytes > MAX_KEPT:
            return self._read(numbers).astype(np.float32)
        with self._lock:  # a page's rows are asked for again with every click on it
            lacking = [n for n in dict.fromkeys(numbers.tolist()) if n not in self._kept]
            if lacking:
                rows = self._read(np.array(lacking)).astype(np.float32)
                self._kept |= {n: row.copy() for n, row in zip(lacking, rows, strict=True)}
            values = np.stack([self._kept[n] for n in numbers.tolist()])
            for n in list(self._kept)[: -max(1, MAX_KEPT // max(1, self.row_bytes))]:
                del self._kept[n]
        return values


def images(shelf: Shelf, samples: Sequence[int]) -> list[str]:
    """Return samples' images, PNG data URLs.

    Raises:
        DataError: the dataset keeps none.
    """
    if IMAGE not in shelf.snapshot.array_names:
        raise DataError(f"{shelf.name}: got no images, allowed a dataset that keeps them.")
    return [picture(one) for one in read_rows(shelf.snapshot, IMAGE, samples, access="range")]


def picture(pixels: np.ndarray) -> str:
    """Return uint8 (H, W, 3) as the data URL of a PNG."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _unit(values: np.ndarray, *, axis: int) -> np.ndarray:
    """Bring vectors to length 1; those with a value that is not finite become 0."""
    length = np.sqrt(np.square(values, dtype=np.float64).sum(axis=axis, keepdims=True))
    whole = np.isfinite(length) & (length > 0)
    kept = np.where(whole, values, 0.0)
    return (kept / np.where(whole, length, 1.0)).astype(np.float32)


def _pool(values: np.ndarray) -> np.ndarray:
    """Average maps over their cells: (N, C)."""
    return values.reshape(len(values), values.shape[1] if values.ndim > 1 else 1, -1).mean(axis=2)
