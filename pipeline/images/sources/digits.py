"""The handwritten digits that ship inside scikit-learn: real scans, no download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dreamshard.errors import ConfigError, Problem
from dreamshard.rng import uniform
from pipeline.images.evidence import sample_bytes
from pipeline.images.labels import Labels
from pipeline.images.source import Record, SourceConfig, labelled

SIZE = 16
NUM_HELDOUT = 500
SPLITS = ("train", "heldout", "all")


class DigitsSource:
    """1,797 digits as 16x16 RGB: 1,297 to train on and a fixed held-out 500.

    The 8x8 scans (grey levels 0..16) become `round(255 / 16 * level)` and are enlarged to 16x16
    with Pillow's bicubic filter. Keys carry scikit-learn's own row number: `digits-00012`.
    """

    kind = "digits"
    has_labels = True
    has_masks = False

    def __init__(self, config: SourceConfig) -> None:
        if config.split not in SPLITS:
            raise ConfigError(Problem("source.split", config.split, " | ".join(SPLITS)))
        self.rule = f"{config.split}, 8x8 to {SIZE}x{SIZE} bicubic"
        self._rows = split_rows(config.split)
        images, labels = _load()
        self._images = images[self._rows]
        self.labels = Labels(labels[self._rows], tuple("0123456789"))
        self.evidence = np.array([sample_bytes(image) for image in self._images], np.uint64)

    def __len__(self) -> int:
        return len(self._rows)

    def entry(self, index: int) -> tuple[str, int]:
        """Name sample `index` and give its size in bytes."""
        return f"digits-{self._rows[index]:05d}", SIZE * SIZE * 3

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Hand out arrays; nothing is read from disk."""
        records = [Record(self.entry(index)[0], self._images[index]) for index in indices]
        return labelled(self, indices, records)


def split_rows(split: str) -> np.ndarray:
    """Return scikit-learn's row numbers of a split, ascending, int64."""
    # Held out: the 500 rows with the smallest of 1,797 fixed random numbers.
    order = np.argsort(uniform(0, range(1797), 0, "digits-split", ()), kind="stable")
    parts = {"heldout": order[:NUM_HELDOUT], "train": order[NUM_HELDOUT:], "all": order}
    return np.sort(parts[split]).astype(np.int64)


def _load() -> tuple[np.ndarray, np.ndarray]:
    """Return all images uint8 (1797, 16, 16, 3) and classes int64 (1797,)."""
    from PIL import Image

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        hint = "pip install dreamshard."
        problem = Problem("source.kind", f"digits ({error})", "scikit-learn installed", hint)
        raise ConfigError(problem) from error
    data: Any = load_digits()
    scans = np.round(data.images * (255 / 16)).astype(np.uint8)
    large = [Image.fromarray(scan).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for scan in scans]
    grey = np.stack([np.asarray(image) for image in large])
    return np.repeat(grey[..., None], 3, axis=3), data.target.astype(np.int64)
