"""Compare the trainer's steps with a bare PyTorch loop: same model, losses, optimiser, batch.

    python benchmarks/train.py [--rounds 6] [--steps 60] [--out benchmarks/results]

Rounds alternate between the two, so that a drifting machine shifts both; the figure is the ratio.
The bare loop has its data in memory as float32 tensors, ready to use; the trainer reads shards.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
import logging
import platform
import shutil
import statistics
import tempfile
import time
from typing import Any

import numpy as np

from distill.configs.train import DataConfig, DreamTeacherConfig, StudentConfig, TrainConfig
from storage.dataset import Dataset
from storage.schema import FeatureBatch, Level, Pins, Recipe

SIZE = (16, 16)
SHAPES = {1: 32, 2: 64, 4: 64}  # channels by stride: the levels of the digits' teacher
SKIP = 2  # first lines of a run's log: caches fill, threads start


def make_dataset(root: Path, *, count: int) -> Dataset:
    """Write random images and maps of the digits' shapes."""
    levels = [
        Level(
            name=f"s{stride}",
            kind="feature",
            tap=f"s{stride}",
            timestep=0,
            draw=0,
            pool="none",
            stride=stride,
            shape=(channels, SIZE[0] // stride, SIZE[1] // stride),
            dtype="float16",
        )
        for stride, channels in SHAPES.items()
    ]
    recipe = Recipe(
        name="random",
        content={"image": {"range": "0..255"}},
        layout={"format": "zarr", "samples_per_unit": 256, "codecs": {}},
    )
    pins = Pins(micro_batch=1, compute_dtype="float32", device="cpu", threads=1)
    dataset = Dataset.create(str(root), recipe, levels=levels, image_size=SIZE, pins=pins)
    dataset.grow(count)
    rng = np.random.default_rng(0)
    for unit in range(count // 256):
        index = np.arange(unit * 256, unit * 256 + 256)
        batch = FeatureBatch(
            index=index,
            key=[str(number) for number in index],
            valid=np.ones(256, bool),
            image=rng.integers(0, 256, (256, *SIZE, 3), np.uint8),
            levels={
                level.name: rng.standard_normal((256, *level.shape), np.float32).astype(np.float16)
                for level in levels
            },
        )
        with dataset.unit_writer(unit, count=256, run_id="bench") as writer:
            writer.write(0, batch)
            writer.commit()
    return dataset


def trainer_round(config: TrainConfig) -> tuple[float, float]:
    """Run the trainer; return seconds per step and the percentage of time it waited for data."""
    from distill.train import train

    shutil.rmtree(config.run_dir, ignore_errors=True)
    train(config)
    text = (Path(config.run_dir) / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()][SKIP:]
    rate = len(lines) / sum(1 / line["img_per_s"] for line in lines)
    waited = statistics.fmean(line["wait_percent"] for line in lines)
    return config.batch_size / rate, waited


def bare_round(config: TrainConfig, dataset: Dataset) -> float:
    """Run the loop anyone would write first; return seconds per step."""
    import torch

    from distill.data.open import open_training_set
    from distill.methods.build import build_method, method_class
    from storage.rows.pick import read_rows

    training_set = open_training_set(config.data)
    method = build_method(
        method_class(config.method),
        config.method_settings(),
        student=config.student,
        training_set=training_set,
        seed=config.seed,
    )
    last = torch.channels_last
    method = method.to(memory_format=last)  # pyright: ignore[reportCallIssue]
    settings = config.optimizer
    groups = [
        {"params": [p for p in method.parameters() if p.ndim > 1]},
        {"params": [p for p in method.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        betas=(settings.betas[0], settings.betas[1]),
        fused=True,
    )
    everything = np.arange(config.batch_size * 4)
    snapshot = dataset.snapshot()
    pixels = torch.from_numpy(read_rows(snapshot, "image", everything)).permute(0, 3, 1, 2)
    images = (pixels.float() / 127.5 - 1).contiguous(memory_format=last).split(config.batch_size)
    maps = {
        level.name: torch.from_numpy(read_rows(snapshot, level.name, everything))
        .float()
        .contiguous(memory_format=last)
        .split(config.batch_size)
        for level in training_set.levels
    }
    first = SKIP * config.log_every
    for step in range(config.steps):
        if step == first:
            start = time.perf_counter()
        turn = step % 4
        loss = method(images[turn], {name: parts[turn] for name, parts in maps.items()})["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), settings.clip)
        optimizer.step()
    return (time.perf_counter() - start) / (config.steps - first)


def main() -> None:
    """Run the comparison and keep its result."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6, help="rounds of each (count)")
    parser.add_argument("--steps", type=int, default=60, help="steps of a round (count)")
    parser.add_argument("--batch_size", type=int, default=64, help="samples of a step (count)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder) / "data", count=2048)
        config = TrainConfig(
            run_dir=f"{folder}/run",
            steps=options.steps,
            batch_size=options.batch_size,
            save_every=10 * options.steps,
            device="cpu",
            data=DataConfig(dataset=dataset.url),
            student=StudentConfig(
                name="cifar_resnet", settings={"depths": [1, 1, 1], "widths": [32, 64, 128]}
            ),
            dreamteacher=DreamTeacherConfig(width=64),
        )
        rounds: list[dict[str, float]] = []
        for number in range(options.rounds):
            bare = bare_round(config, dataset)
            ours, waited = trainer_round(config)
            rounds.append({"bare_s": bare, "trainer_s": ours, "wait_percent": waited})
            print(f"round {number + 1}: bare {1e3 * bare:.1f} ms, trainer {1e3 * ours:.1f} ms")
    ratios = [entry["trainer_s"] / entry["bare_s"] for entry in rounds]
    result: dict[str, Any] = {
        "what": "seconds per training step, trainer / bare loop, interleaved",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "command": " ".join(sys.argv),
        "ratio_median": statistics.median(ratios),
        "ratios": ratios,
        "wait_percent_median": statistics.median(entry["wait_percent"] for entry in rounds),
        "rounds": rounds,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "train.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    waited = result["wait_percent_median"]
    print(f"trainer / bare = {result['ratio_median']:.3f} (median), waiting {waited:.2f} %: {path}")


if __name__ == "__main__":
    main()
