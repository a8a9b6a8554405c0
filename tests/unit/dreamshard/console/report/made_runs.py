"""Runs and datasets to report on, made up."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dreamshard.pictures import image_grid
from dreamshard.runfolder import RunFolder
from storage.dataset import Dataset
from storage.schema import FeatureBatch, Level, Pins, Recipe

LEVELS = (
    Level("up.1.t50", "feature", "up.1", 50, 0, "none", 4, (6, 4, 4), "float16"),
    Level("up.2.t50", "feature", "up.2", 50, 0, "none", 2, (5, 8, 8), "float16"),
    Level("up.1.t50.gap", "feature", "up.1", 50, 0, "gap", 0, (6,), "float16"),
)


@dataclass(kw_only=True)
class DataPart:
    dataset: str = ""


@dataclass(kw_only=True)
class Config:
    steps: int = 40
    note: str = "plain"
    data: DataPart = field(default_factory=DataPart)


def make_dataset(root: Path, *, count: int = 24) -> Dataset:
    rng = np.random.default_rng(0)
    content: dict[str, object] = {
        "levels": [{"name": level.name} for level in LEVELS],
        "source": {"kind": "digits", "count": count, "digest": "d"},
        "seed": 0,
    }
    layout: dict[str, object] = {
        "format": "zarr",
        "codecs": {level.name: "float16" for level in LEVELS},
        "samples_per_unit": 16,
        "format_version": 1,
    }
    dataset = Dataset.create(
        str(root),
        Recipe("digits", content, layout),
        levels=LEVELS,
        image_size=(16, 16),
        pins=Pins(micro_batch=8, compute_dtype="float32", device="cpu", threads=1),
        labels=True,
        fsync=False,
    )
    dataset.grow(count)
    for unit, first in enumerate(range(0, count, 16)):
        size = min(16, count - first)
        batch = FeatureBatch(
            index=np.arange(first, first + size),
            key=[f"digit-{number}" for number in range(first, first + size)],
            valid=np.arange(first, first + size) != 3,
            image=rng.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8),
            levels={lv.name: rng.normal(size=(size, *lv.shape)).astype(lv.dtype) for lv in LEVELS},
            label=np.arange(first, first + size) % 10,
            error={3 - first: "not an image"} if first <= 3 < first + size else {},
        )
        with dataset.unit_writer(unit, count=size, run_id="test") as writer:
            writer.write(0, batch)
            writer.commit()
    dataset.roll_up(final=True)
    return dataset


def make_run(folder: Path, verb: str, *, config: Config | None = None, **metrics: float) -> Path:
    command = ["dreamshard", verb, "--config", f"recipes/digits/{verb}.yaml"]
    run = RunFolder(folder, config=config or Config(), command=command)
    for step in range(10, 50, 10) if metrics else ():
        run.log(step=step, **{name: value / step for name, value in metrics.items()})
    return folder


def make_results() -> dict[str, object]:
    accuracy = {
        "pixels": {"1": [50.0, 54.0], "5": [80.0, 82.0]},
        "teacher": {"1": [52.0, 56.0], "5": [81.0, 85.0]},
        "distilled student": {"1": [60.0, 54.0], "5": [80.0, 82.5]},
    }
    rows = {
        name: {
            n: {"mean": float(np.mean(a)), "std": float(np.std(a, ddof=1)), "accuracy": a}
            for n, a in row.items()
        }
        for name, row in accuracy.items()
    }
    paired = {
        name: {
            n: {
                "mean": float(np.mean(gain)),
                "std": float(np.std(gain, ddof=1)),
                "wins": int((gain > 0).sum()),
                "ties": int((gain == 0).sum()),
                "losses": int((gain < 0).sum()),
            }
            for n, a in row.items()
            for gain in [np.subtract(accuracy["distilled student"][n], a)]
        }
        for name, row in accuracy.items()
        if name != "distilled student"
    }
    return {"few_label": {"subject": "distilled student", "rows": rows, "paired": paired}}


def make_demo(folder: Path) -> Path:
    """Make what a demo leaves behind, in miniature."""
    make_run(folder / "teacher" / "run", "pretrain", loss=3.0, lr=1.0, img_per_s=4000.0)
    grid = image_grid(np.zeros((4, 16, 16, 3), np.uint8), columns=2)
    (folder / "teacher" / "samples.png").write_bytes(grid)
    dataset = make_dataset(folder / "datasets")
    encode = RunFolder(
        make_run(folder / "encode", "encode"),
        config=Config(),
        command=["dreamshard", "encode", "--api_key", "hunter2"],
    )
    encode.stats(dataset=dataset.url, seconds=12.0, img_per_s=345.0)
    make_run(folder / "train-001", "train", loss=5.0, mse=2.0, grad_norm=9.0, img_per_s=9000.0)
    evaluate = make_run(folder / "train-001" / "evaluate", "evaluate")
    (evaluate / "results.json").write_text(json.dumps(make_results()), encoding="utf-8")
    return folder
