"""A trainer without a student: `torchrun ... -m tests.chaos.online_trainer FOLDER SEED ...`.

Each rank pulls its share of STEPS batches per seed, all ranks in step as in data-parallel training,
and writes down a digest of each. The step is saved every SAVE_EVERY steps; a rank that is killed
takes the others with it, and whoever starts them again has them go on from the step saved.
"""

from __future__ import annotations

import hashlib
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipeline.cluster.config import RayConfig
from pipeline.cluster.join import cluster
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.streaming.client import Share, StreamReader
from pipeline.streaming.config import StreamConfig
from pipeline.streaming.stream import Stream, resolve_stream
from pipeline.teachers.base import TeacherConfig

STEPS, SAVE_EVERY, RANKS, BATCH = 60, 5, 2, 16


def configure(root: Path, *, delay_s: float = 0.02) -> StreamConfig:
    """Return the stream that is disturbed; its values do not depend on the delay."""
    teacher = TeacherConfig(
        kind="noise", levels=["s2"], settings={"channels": 4, "delay_s": delay_s}
    )
    return StreamConfig(
        name="chaos",
        root=str(root),
        teacher=teacher,
        source=SourceConfig(kind="digits"),
        image=ImageConfig(size=16),
        samples=200,
        samples_per_unit=40,
        micro_batch=8,
        window=6,
        patience_s=120.0,
    )


def open_reader(stream: Stream, transport: Any, *, seed: int, rank: int, step: int) -> StreamReader:
    """Open a rank's share at a step; seeds differ in the order, too."""
    share = Share(
        batch_size=BATCH,
        rank=rank,
        world_size=RANKS,
        start=step * BATCH,
        seed=seed,
        shuffle="runs" if seed % 3 == 0 else "full",
        window=6,
        patience_s=120.0,
    )
    return StreamReader(stream, transport, levels=[lv.name for lv in stream.levels], share=share)


def digest(batch: Any) -> str:
    """Digest everything a batch holds."""
    parts = (batch.index, batch.image, *batch.levels.values())
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def saved_step(folder: Path, seed: int) -> int:
    """Return how many steps of a seed are done and saved."""
    path = folder / f"{seed}.step"
    return int(path.read_text()) if path.exists() else 0


def save_step(folder: Path, seed: int, step: int) -> None:
    """Save how many steps of a seed are done, whole or not at all."""
    part = folder / f".{seed}.step"
    part.write_text(str(step))
    part.replace(folder / f"{seed}.step")


def play(folder: Path, stream: Stream, *, seed: int, rank: int) -> None:
    """Pull what is left of one seed's batches."""
    from pipeline.streaming.actors import RayTransport

    agreed: list[Any] = [saved_step(folder, seed) if rank == 0 else None]
    dist.broadcast_object_list(agreed)
    done = int(agreed[0])
    if done >= STEPS:
        return
    transport = RayTransport(stream.name, stream.identity)
    with (
        open_reader(stream, transport, seed=seed, rank=rank, step=done) as reader,
        (folder / f"{seed}-{rank}.txt").open("a") as log,
    ):
        for step in range(done, STEPS):
            log.write(f"{step} {digest(reader.next())}\n")
            log.flush()
            dist.barrier()
            if rank == 0 and ((step + 1) % SAVE_EVERY == 0 or step + 1 == STEPS):
                save_step(folder, seed, step + 1)
    dist.barrier()


def main(folder: Path, seeds: list[int]) -> None:
    """Play the seeds in turn."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=180))
    rank = dist.get_rank()
    (folder / f"rank-{rank}.pid").write_text(str(os.getpid()))
    stream = resolve_stream(configure(folder / "data").stream())
    with cluster(RayConfig(), num_cpus=1, num_gpus=0):
        for seed in seeds:
            play(folder, stream, seed=seed, rank=rank)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]])
