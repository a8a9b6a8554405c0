"""Part of benchmarks/gpu.py: ResNet-50 distilled at 224 px from shards, live, and by a bare loop.

The bare loop has its batches on the device already. Shards hold maps of strides 4 to 32 with ADM's
widths, as int8 and at a sixteenth of float16; the live teacher is a narrow UNet in this process.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import io
import json
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.gpu_encode import wait_for
from benchmarks.train import trainer_round
from distill.configs.train import DataConfig, StudentConfig, TrainConfig
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.streaming.config import StreamConfig
from pipeline.teachers.base import TeacherConfig
from storage.dataset import Dataset
from storage.schema import FeatureBatch, Level, Pins, Recipe

WIDTHS = {4: 256, 8: 512, 16: 1024, 32: 1024}
CODECS = {"int8": "int8", "1/16": "dct16"}


class Sizes:
    """Of everything; `tiny` ones take seconds on a CPU."""

    def __init__(self, tiny: bool) -> None:
        self.side = 64 if tiny else 224
        self.widths = {s: w // 64 if tiny else w for s, w in WIDTHS.items()}
        self.samples, self.unit = (32, 16) if tiny else (512, 64)
        self.batch = 8 if tiny else 256
        self.steps, self.live_steps = (6, 4) if tiny else (40, 12)
        self.log_every = 1 if tiny else 4
        self.student = "test_resnet" if tiny else "resnet50"


def smooth(count: int, shape: tuple[int, ...], rng: torch.Generator) -> torch.Tensor:
    """Return smooth random maps, float16 (count, *shape): like features, they compress."""
    coarse = torch.randn(count, shape[0], 4, 4, generator=rng)
    fine = F.interpolate(coarse, size=shape[1:], mode="bilinear")
    return (fine + 0.1 * torch.randn(fine.shape, generator=rng)).half()


def make_dataset(root: Path, sizes: Sizes, codec: str) -> tuple[Dataset, float]:
    """Write smooth random maps; return the dataset and the float16 MB/s of writing it."""
    side = sizes.side
    levels = [
        Level(
            name=f"s{s}", kind="feature", tap=f"s{s}", timestep=0, draw=0, pool="none", stride=s,
            shape=(w, side // s, side // s), dtype="float16",
        )
        for s, w in sizes.widths.items()
    ]  # fmt: skip
    recipe = Recipe(
        name=f"random-{codec}",
        content={"image": {"range": "0..255"}},
        layout={
            "format": "zarr",
            "samples_per_unit": sizes.unit,
            "codecs": {level.name: codec for level in levels},
        },
    )
    pins = Pins(micro_batch=1, compute_dtype="float32", device="cpu", threads=1)
    dataset = Dataset.create(str(root), recipe, levels=levels, image_size=(side, side), pins=pins)
    dataset.grow(sizes.samples)
    rng, pixels = torch.Generator().manual_seed(0), np.random.default_rng(0)
    unit = sizes.unit
    batch = FeatureBatch(
        index=np.arange(unit),
        key=[str(number) for number in range(unit)],
        valid=np.ones(unit, bool),
        image=pixels.integers(0, 256, (unit, side, side, 3), np.uint8),
        levels={level.name: smooth(unit, level.shape, rng).numpy() for level in levels},
    )
    if dataset.unfitted():
        dataset.fit(batch)
    started = time.perf_counter()
    for number in range(sizes.samples // unit):
        index = np.arange(number * unit, (number + 1) * unit)
        shown = FeatureBatch(
            index=index, key=[str(i) for i in index], valid=batch.valid, image=batch.image,
            levels=batch.levels,
        )  # fmt: skip
        with dataset.unit_writer(number, count=unit, run_id="bench") as writer:
            writer.write(0, shown)
            writer.commit()
    spent = time.perf_counter() - started
    size = sum(value.nbytes for value in batch.levels.values()) / unit * sizes.samples
    return dataset, size / spent / 1e6


def make_live(root: Path, sizes: Sizes, device: str) -> DataConfig:
    """Save a narrow UNet and some images; return what trains on them live."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from diffusers import DDPMScheduler, UNet2DModel
    from PIL import Image

    plain = ("DownBlock2D",) * 6, ("UpBlock2D",) * 6
    UNet2DModel(
        sample_size=sizes.side, block_out_channels=(32, 32, 64, 64, 128, 128), layers_per_block=1,
        down_block_types=plain[0], up_block_types=plain[1],
    ).save_pretrained(root / "teacher")  # fmt: skip
    DDPMScheduler().save_pretrained(root / "teacher" / "scheduler")
    rng, rows = np.random.default_rng(0), []
    for number in range(sizes.samples):
        stream = io.BytesIO()
        coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
        image = Image.fromarray(coarse).resize((sizes.side, sizes.side), Image.Resampling.BICUBIC)
        image.save(stream, "JPEG", quality=90)
        rows.append({"key": str(number), "image": stream.getvalue()})
    pq.write_table(pa.Table.from_pylist(rows), root / "images.parquet")
    return DataConfig(
        kind="live",
        stream=StreamConfig(
            source=SourceConfig(kind="parquet", path=str(root / "images.parquet")),
            image=ImageConfig(size=sizes.side),
            teacher=TeacherConfig(
                path=str(root / "teacher"), levels=["s4", "s8", "s16", "s32"], timesteps=[50],
                compute_dtype="bfloat16" if device == "cuda" else "float32",
            ),
            micro_batch=min(64, sizes.batch),
            device=device,  # type: ignore[arg-type]
            gpus_per_actor=1 if device == "cuda" else 0,
            codec="float16",
        ),
    )  # fmt: skip


def bare_round(config: TrainConfig, dataset: Dataset, device: str) -> float:
    """Run the loop anyone would write first, data on the device; return seconds per step."""
    from distill.data.open import open_training_set
    from distill.methods.build import build_method, method_class
    from storage.rows.pick import read_rows

    training_set = open_training_set(config.data)
    last = torch.channels_last
    method = build_method(
        method_class(config.method),
        config.method_settings(),
        student=config.student,
        training_set=training_set,
        seed=config.seed,
    )
    method = method.to(device, memory_format=last)  # pyright: ignore[reportCallIssue]
    settings = config.optimizer
    groups = [
        {"params": [p for p in method.parameters() if p.ndim > 1]},
        {"params": [p for p in method.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=True
    )
    rows, snapshot = np.arange(config.batch_size), dataset.snapshot()
    pixels = torch.from_numpy(read_rows(snapshot, "image", rows)).to(device).permute(0, 3, 1, 2)
    images = (pixels.float() / 127.5 - 1).contiguous(memory_format=last)
    maps = {
        level.name: torch.from_numpy(read_rows(snapshot, level.name, rows))
        .to(device)
        .float()
        .contiguous(memory_format=last)
        for level in training_set.levels
    }
    bf16 = config.precision == "bf16"
    first, wait = 2 * config.log_every, _wait(device)
    start = time.perf_counter()
    for step in range(config.steps):
        if step == first:
            wait()
            start = time.perf_counter()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            loss = method(images, maps)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), settings.clip)
        optimizer.step()
    wait()
    return (time.perf_counter() - start) / (config.steps - first)


def _wait(device: str) -> Any:
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--go", type=Path, help="wait for this file before the clock starts")
    parser.add_argument("--out", type=Path, required=True, help="file for the JSON")
    options = parser.parse_args()
    sizes, device = Sizes(options.tiny), options.device
    with tempfile.TemporaryDirectory() as name:
        root, result = Path(name), {}

        def configure(data: DataConfig, steps: int) -> TrainConfig:
            return TrainConfig(
                run_dir=f"{name}/run", steps=steps, batch_size=sizes.batch, device=device,
                precision="bf16" if device == "cuda" else "fp32", data=data,
                student=StudentConfig(name=sizes.student), log_every=sizes.log_every,
                save_every=steps * sizes.log_every,
            )  # fmt: skip

        data, write = {}, {}
        for label, codec in CODECS.items():
            dataset, write[label] = make_dataset(root / codec, sizes, codec)
            data[label] = (
                dataset,
                DataConfig(dataset=dataset.url, threads=2 if options.tiny else 8),
            )
            print(f"{label}: written at {write[label]:.0f} MB/s of float16", flush=True)
        live = make_live(root, sizes, device)
        wait_for(options.go)
        times: dict[str, list[float]] = {name: [] for name in ("bare", *CODECS, "live")}
        waits: dict[str, list[float]] = {name: [] for name in (*CODECS, "live")}
        for number in range(options.rounds + 1):
            steps = sizes.steps if number else 3 * sizes.log_every  # the first warms up
            for label, (dataset, shards) in data.items():
                config = configure(shards, steps)
                if label == "int8":
                    times["bare"].append(bare_round(config, dataset, device))
                spent, waited = trainer_round(config)
                times[label].append(spent)
                waits[label].append(waited)
            print({label: values[-1:] for label, values in times.items()}, flush=True)
            rate = {k: sizes.batch / statistics.median(v[1:] or v) for k, v in times.items() if v}
            result = {
                "batch": sizes.batch, "student": sizes.student, "seconds_per_step": times,
                "img_per_s": rate, "wait_percent": {k: v[1:] for k, v in waits.items()},
                "over_bare": {k: rate[k] / rate["bare"] for k in rate if k != "bare"},
                "shard_write_mb_per_s_of_float16": write,
            }  # fmt: skip
            options.out.write_text(json.dumps(result, indent=2) + "\n")
        spent, waited = trainer_round(configure(live, max(sizes.live_steps, 4 * sizes.log_every)))
        result["img_per_s"]["live"] = sizes.batch / spent
        result["wait_percent"]["live"] = [waited]
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
