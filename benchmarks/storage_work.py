"""The workloads of `benchmarks/storage.py`, and how our own stores are filled with them."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np

from storage.dataset import Dataset
from storage.schema import FeatureBatch, Level, Pins, Recipe

SHAPES = {
    "A": ((32, 32, 3), {"l16": (256, 16, 16), "l8": (256, 8, 8), "l4": (256, 4, 4)}),
    "B": (
        (256, 256, 3),
        {"l64": (256, 64, 64), "l32": (512, 32, 32), "l16": (1024, 16, 16), "l8": (1024, 8, 8)},
    ),
}
BATCH = {"A": 64, "B": 8}
COUNT = {"A": 2048, "B": 96}
UNITS = 4
OURS = {
    "zarr": {"layout_format": "zarr", "codec": "float16"},
    "tar": {"layout_format": "tar", "codec": "float16"},
    "int8": {"layout_format": "zarr", "codec": "int8"},
}


def make_arrays(work: str, count: int) -> dict[str, np.ndarray]:
    """Make images and features: values do not matter to readers but are finite and varied."""
    image, levels = SHAPES[work]
    rng = np.random.default_rng(0)
    arrays = {"image": rng.integers(0, 256, (count, *image), dtype=np.uint8)}
    for name, shape in levels.items():
        noise = rng.standard_normal((64, math.prod(shape))).astype(np.float16)
        rows = noise[rng.integers(0, 64, count)] * rng.uniform(0.5, 2, (count, 1))
        arrays[name] = rows.astype(np.float16).reshape(count, *shape)
    return arrays


def write_ours(
    root: Path, work: str, arrays: dict[str, np.ndarray], *, fsync: bool = False, **layout: str
) -> Dataset:
    """Make a dataset and fill it; see `create_ours` for `layout`."""
    dataset = create_ours(root, work, len(arrays["image"]), fsync=fsync, **layout)
    fill_ours(dataset, work, arrays)
    return dataset


def create_ours(
    root: Path, work: str, count: int, *, layout_format: str, codec: str, fsync: bool
) -> Dataset:
    """Make an empty dataset for a workload's samples."""
    image, shapes = SHAPES[work]
    levels = [
        Level(name, "feature", name, 0, 0, "", image[0] // shape[1], shape, "float16")
        for name, shape in shapes.items()
    ]
    layout: dict[str, object] = {
        "format": layout_format,
        "images": "npy",
        "samples_per_unit": count // UNITS,
        "codecs": dict.fromkeys(shapes, codec),
    }
    dataset = Dataset.create(
        str(root),
        Recipe("bench", {}, layout),
        levels=levels,
        image_size=(image[0], image[1]),
        pins=Pins(micro_batch=1, compute_dtype="float32", device="cpu", threads=1),
        fsync=fsync,
    )
    dataset.grow(count)
    return dataset


def fill_ours(dataset: Dataset, work: str, arrays: dict[str, np.ndarray]) -> float:
    """Write all units through the pipeline's own writer, in micro-batches; return the seconds."""
    count, unit, step = len(arrays["image"]), dataset.samples_per_unit, BATCH[work]
    started = time.perf_counter()
    for number in dataset.missing(count).tolist():
        with dataset.unit_writer(number, count=unit, run_id="bench") as writer:
            for offset in range(0, unit, step):
                rows = slice(number * unit + offset, number * unit + min(offset + step, unit))
                writer.write(offset, batch_of(arrays, rows))
            writer.commit()
    return time.perf_counter() - started


def batch_of(arrays: dict[str, np.ndarray], rows: slice) -> FeatureBatch:
    """Return some of the samples as a teacher hands them over."""
    index = np.arange(rows.start, rows.stop)
    return FeatureBatch(
        index=index,
        key=[f"{number:09d}" for number in index],
        valid=np.ones(len(index), bool),
        image=arrays["image"][rows],
        levels={name: values[rows] for name, values in arrays.items() if name != "image"},
    )
