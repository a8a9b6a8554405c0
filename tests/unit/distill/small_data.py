"""A small dataset made by the storage API alone: colours and gradients, and maps of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from storage.dataset import Dataset
from storage.schema import FeatureBatch, Level, Pins, Recipe

IMAGE_SIZE = (16, 16)
LEVELS = tuple(
    Level(
        name=f"up.{tap}.t100",
        kind="feature",
        tap=f"up.{tap}",
        timestep=100,
        draw=0,
        pool="none",
        stride=stride,
        shape=(channels, 16 // stride, 16 // stride),
        dtype="float16",
    )
    for tap, stride, channels in ((0, 4, 12), (1, 2, 8))
)

VECTOR = Level(
    name="w", kind="embedding", tap="w", timestep=-1, draw=0, pool="none", stride=0, shape=(6,),
    dtype="float16",
)  # fmt: skip
"""A teacher's embedding: mixtures of an image's mean colours."""


def make_batch(index: np.ndarray) -> FeatureBatch:
    """Return images of random boxes, and maps that a convolution can find from them."""
    rng = np.random.default_rng(1000 + index[0])
    image = np.zeros((len(index), *IMAGE_SIZE, 3), np.uint8)
    for row in image:
        top, left, high, wide = rng.integers(1, 9, 4)
        row[top : top + high, left : left + wide] = rng.integers(60, 256, 3)
    mixing = np.random.default_rng(7)
    levels = {}
    for level in LEVELS:
        channels, size, _ = level.shape
        cells = image.reshape(len(index), size, level.stride, size, level.stride, 3) / 255
        small = cells.mean(axis=(2, 4)) @ mixing.standard_normal((3, channels))
        levels[level.name] = small.transpose(0, 3, 1, 2).astype(np.float16)
    colours = (image / 255).mean(axis=(1, 2)) @ mixing.standard_normal((3, 6))
    levels[VECTOR.name] = colours.astype(np.float16)
    return FeatureBatch(
        index=index.astype(np.int64),
        key=[f"box-{number}" for number in index],
        valid=np.ones(len(index), bool),
        image=image,
        levels=levels,
        label=index % 3,
    )


def make_dataset(
    root: Path,
    *,
    num_samples: int = 64,
    samples_per_unit: int = 16,
    name: str = "boxes",
    labels: bool = True,
    levels: tuple[Level, ...] = LEVELS,
    teacher: str = "boxes",
) -> Dataset:
    """Commit a dataset of boxes under a root."""
    recipe = Recipe(
        name=name,
        content={
            "teacher": {"kind": teacher},
            "levels": [level.to_dict() for level in levels],
            "image": {"size": list(IMAGE_SIZE), "range": "0..255"},
            "source": {"kind": "boxes", "count": num_samples, "digest": "0"},
        },
        layout={"format": "zarr", "samples_per_unit": samples_per_unit, "codecs": {}},
    )
    pins = Pins(micro_batch=16, compute_dtype="float32", device="cpu", threads=1)
    dataset = Dataset.create(
        str(root),
        recipe,
        levels=levels,
        image_size=IMAGE_SIZE,
        pins=pins,
        labels=labels,
        fsync=False,
    )
    add_units(dataset, num_samples=num_samples)
    return dataset


def add_units(dataset: Dataset, *, num_samples: int) -> None:
    """Commit what is missing of the first `num_samples` samples."""
    dataset.grow(num_samples)
    size = dataset.samples_per_unit
    with dataset.lease("test"):
        for unit in dataset.missing(num_samples).tolist():
            count = min(size, num_samples - unit * size)
            with dataset.unit_writer(unit, count=count, run_id="test") as writer:
                batch = make_batch(np.arange(unit * size, unit * size + count))
                batch.levels = {level.name: batch.levels[level.name] for level in dataset.levels}
                writer.write(0, batch)
                writer.commit()
    dataset.roll_up(final=True)
