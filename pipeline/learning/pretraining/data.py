"""Training images by position: the endless stream's sample, its random view, its label."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dreamshard.errors import DataError
from dreamshard.progress import stage
from dreamshard.rng import uniform
from pipeline.images.prepare import InvalidImageError, decode, fit, prepare, view_draws
from pipeline.images.reading import read_retrying
from pipeline.images.source import ImageConfig, ImageSource
from pipeline.learning.ranks import this_rank

KEEP_BYTES = 2 << 30
"""Prepared images up to this size are kept in memory; larger sets are read as they are needed."""
CHUNK = 256
"""Images read at once while the set is checked (count)."""


class TrainingImages:
    """Prepare images for training; a small set is decoded once and kept.

    Args:
        source: the images.
        config: size, resampling, crop; `views` above 1 means a fresh jittered view per position.
        window: side of a random window that each position shows (pixels); 0 for all of the view.
        seed: decides views and flips.
    """

    def __init__(
        self, source: ImageSource, *, config: ImageConfig, seed: int, window: int = 0
    ) -> None:
        self._source, self._seed = source, seed
        self._size, self._window = config.shape or (0, 0), window
        # View 0 of prepare() is the plain image: odd indices are always a jittered view.
        self._views = 2 if config.views > 1 else 1
        self._config = dataclasses.replace(config, views=self._views)
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="decode")
        self._kept: np.ndarray | None = None
        self._labels: np.ndarray | None = None
        self._said = False
        self.valid = np.ones(len(source), bool)
        if len(source) * self._size[0] * self._size[1] * 3 <= KEEP_BYTES:
            self._keep()

    def batch(
        self, samples: np.ndarray, positions: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the images and labels of some positions.

        Args:
            samples: int64 (N,), which image each position shows.
            positions: N places in the endless stream; they select view and flip.

        Returns:
            uint8 (N, H, W, 3), and int64 (N,) or None where the source has no labels.
        """
        if self._kept is None:
            images, labels = self._read(samples, positions)
        else:
            images = self._views_of(self._kept[samples], positions)
            labels = None if self._labels is None else self._labels[samples]
        return images, labels

    def plain(self, count: int) -> np.ndarray:
        """Return up to `count` whole images, evenly spread, without views: uint8 (N, H, W, 3)."""
        rows = np.flatnonzero(self.valid)
        rows = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
        if self._kept is not None:
            return self._kept[rows]
        images = []
        for start in range(0, len(rows), CHUNK):
            records = read_retrying(self._source, [int(row) for row in rows[start : start + CHUNK]])
            images += [
                image for image in self._pool.map(self._decode, records) if image is not None
            ]
        if not images:
            raise DataError("source: none of its images can be decoded. Check source.path.")
        return np.stack(images)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _keep(self) -> None:
        """Decode everything once; images that cannot be decoded never come up."""
        count = len(self._source)
        self._kept = np.zeros((count, *self._size, 3), np.uint8)
        self._labels = np.full(count, -1, np.int64) if self._source.has_labels else None
        for start in range(0, count, CHUNK):
            rows = list(range(start, min(start + CHUNK, count)))
            records = read_retrying(self._source, rows)
            for row, image in zip(rows, self._pool.map(self._decode, records), strict=True):
                self.valid[row] = image is not None
                if image is not None:
                    self._kept[row] = image
            if self._labels is not None:
                self._labels[rows] = [record.label for record in records]
        if not self.valid.any():
            raise DataError("source: none of its images can be decoded. Check source.path.")
        if len(damaged := np.flatnonzero(~self.valid)):
            self._say(
                f"{len(damaged)} of {count} images cannot be decoded and never come up, the first "
                f"of them image {damaged[0]} (from 0)"
            )

    def _say(self, what: str) -> None:
        """Say once, and on one process, what is wrong with images that are passed by."""
        if not self._said and this_rank() == 0:
            stage(f"source: {what}")
        self._said = True

    def _decode(self, record: object) -> np.ndarray | None:
        if record.error:  # type: ignore[attr-defined]
            return None
        try:
            image = decode(record.data)  # type: ignore[attr-defined]
            return np.asarray(fit(image, config=self._config, size=self._size), np.uint8)
        except InvalidImageError:
            return None

    def _views_of(self, images: np.ndarray, positions: Sequence[int]) -> np.ndarray:
        if self._views > 1 or self._window:
            return np.stack([self._view(i, p) for i, p in zip(images, positions, strict=True)])
        if self._config.flip == "random":  # all at once: one by one they keep a GPU waiting
            flipped = view_draws(self._seed, positions)[:, 4] < 0.5
            images[flipped] = images[flipped][:, :, ::-1]
        return images

    def _view(self, image: np.ndarray, position: int) -> np.ndarray:
        if self._views > 1 or self._config.flip != "none":
            index = int(position) * self._views + self._views - 1
            image = prepare(
                decode(image), config=self._config, size=self._size, seed=self._seed, index=index
            )
        if not self._window:
            return image
        down, right = uniform(self._seed, [int(position)], 0, "pretrain-window", (2,))[0]
        top = int(down * (image.shape[0] - self._window + 1))
        left = int(right * (image.shape[1] - self._window + 1))
        return image[top : top + self._window, left : left + self._window]

    def _read(
        self, samples: np.ndarray, positions: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        records = read_retrying(self._source, [int(sample) for sample in samples])
        images = list(self._pool.map(self._decode, records))
        good = [row for row, image in enumerate(images) if image is not None]
        if not good:
            raise DataError(
                f"source: none of {len(images)} images can be decoded. Check the source."
            )
        if len(good) < len(images):
            damaged = next(row for row, image in enumerate(images) if image is None)
            self._say(
                f"image {samples[damaged]} (from 0) cannot be decoded; in its place, and in that "
                "of others like it, comes another of the batch"
            )
        chosen = [
            row if images[row] is not None else good[row % len(good)] for row in range(len(images))
        ]
        views = [self._view(images[row], p) for row, p in zip(chosen, positions, strict=True)]  # type: ignore[arg-type]
        labels = np.array([records[row].label for row in chosen], np.int64)
        return np.stack(views), labels if self._source.has_labels else None
