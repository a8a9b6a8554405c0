"""What tests of streams compare with: datasets made offline, and what a training run left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.numpy import load_file

from pipeline.offline.actor import Job, ShardActor
from pipeline.request.lookup import create
from pipeline.request.resolve import resolve
from pipeline.streaming.config import StreamConfig
from storage.dataset import Dataset

TIMES = ("time", "img_per_s", "wait_percent")


def make_offline(config: StreamConfig) -> Dataset:
    """Make the dataset of a stream's recipe as the offline pipeline does, without its driver."""
    request = resolve(config.request())
    dataset = create(request)
    dataset.grow(request.plan.num_samples)
    job = Job(
        url=dataset.url, run_id="test", teacher=config.teacher, seed=config.seed, fsync=False,
        image_size=request.spec.image_size,
    )  # fmt: skip
    actor = ShardActor(job, request.input)
    actor.load()
    for unit in range(request.plan.num_units):
        actor.make(unit, request.plan.count(unit))
    dataset.roll_up(final=True)
    return dataset


def results(run_dir: Path, *, but: Sequence[str] = TIMES) -> tuple[list[dict], dict[str, bytes]]:
    """Return a run's metrics but for some, and the student's weights."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    figures = [{k: v for k, v in json.loads(line).items() if k not in but} for line in lines]
    weights = load_file(run_dir / "student" / "model.safetensors")
    return figures, {name: value.tobytes() for name, value in weights.items()}
