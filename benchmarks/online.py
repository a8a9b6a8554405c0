"""Measure the online pipeline against min(producer, consumer), and against Ray Data.

    python benchmarks/online.py
    python benchmarks/online.py --rounds 5 --only kill

Producer: the noise teacher, 40 ms per batch of 32 (a GPU that is busy while its CPU is not),
records of 0.36 MB, 525 img/s per actor; its own rate is that of the same class in a bare loop in an
actor process, results dropped. Consumer: takes a batch of 32, reads a value of every row, and is
busy for 80 ms (400 img/s) where it is the slower side, or for no time at all. Ray Data does the
same work: `range -> map_batches(the same class, as many actors) -> iter_torch_batches`, or
`streaming_split` to two ranks, each a process of its own. Rounds are interleaved; each figure is
the median over rounds of ratios taken within one round. The kill: two actors, a consumer of 400
img/s, SIGKILL of one; how long the consumer then waits for a batch, at worst and in all.

Rates are taken over the second half of a pull, after a first half that fills what there is to fill.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import ray

from pipeline.cluster.config import RayConfig
from pipeline.cluster.join import cluster
from pipeline.cluster.worker import worker_env
from pipeline.streaming.actors import (
    RayTransport,
    end_actors,
    find_actors,
    start_actors,
    wait_ready,
)
from pipeline.streaming.client import Share, StreamReader
from pipeline.streaming.config import StreamConfig
from pipeline.streaming.stream import resolve_stream
from pipeline.teachers.base import TeacherConfig
from pipeline.teachers.load import load_teacher
from storage.schema import Pins

BATCH = 32
STEP_S = 0.080
STAND_IN = TeacherConfig(
    kind="noise", levels=["s2", "s4", "s8"], settings={"channels": 528, "delay_s": 0.040}
)
PINS = Pins(micro_batch=BATCH, compute_dtype="float32", device="cpu", threads=1)


class Teacher:
    """The stand-in in a process of its own: a bare loop, or a step of a Ray Data pipeline."""

    def __init__(self) -> None:
        self.teacher = load_teacher(STAND_IN, mode="synthesize", seed=0, pins=PINS)

    def loop(self, batches: int) -> float:
        indices = np.arange(BATCH)
        for _ in range(3):
            self.teacher.synthesize(indices)
        started = time.perf_counter()
        for number in range(batches):
            self.teacher.synthesize(indices + number * BATCH)
        return batches * BATCH / (time.perf_counter() - started)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        batch = self.teacher.synthesize(rows["id"])
        assert batch.image is not None
        return {"index": batch.index, "image": batch.image, **batch.levels}


def consume(batches: Iterable[Any], count: int, step_s: float) -> float:
    """Take batches and be busy with each; return img/s over the second half."""
    source, half = iter(batches), count // 2
    started = time.perf_counter()
    for number in range(count):
        if number == half:
            started = time.perf_counter()
        arrays = next(source)
        for rows in arrays:
            rows.reshape(len(rows), -1)[:, 0].sum()
        if step_s:
            time.sleep(step_s)
    return (count - half) * BATCH / (time.perf_counter() - started)


def read(config: StreamConfig, *, rank: int = 0, ranks: int = 1, start: int = 0) -> StreamReader:
    stream = resolve_stream(config.stream())
    share = Share(
        batch_size=BATCH * ranks, rank=rank, world_size=ranks, window=config.window, start=start
    )
    transport = RayTransport(config.name, stream.identity)
    return StreamReader(stream, transport, levels=[lv.name for lv in stream.levels], share=share)


def online(reader: StreamReader) -> Iterator[list[np.ndarray]]:
    for batch in reader:
        assert batch.image is not None
        yield [batch.image, *batch.levels.values()]


def ray_data(actors: int, batches: int) -> Any:
    blocks = batches + 4 * actors
    return ray.data.range(blocks * BATCH, override_num_blocks=blocks).map_batches(
        Teacher,  # pyright: ignore[reportArgumentType]
        batch_size=BATCH,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        runtime_env={"env_vars": worker_env(1)},
    )


def torch_batches(source: Any) -> Iterator[list[Any]]:
    for batch in source.iter_torch_batches(batch_size=BATCH, prefetch_batches=4):
        yield [batch[name] for name in batch if name != "index"]


@ray.remote(num_cpus=0.1)
class Rank:
    """One of two trainer ranks."""

    def online(self, config: StreamConfig, rank: int, count: int, step_s: float) -> float:
        with read(config, rank=rank, ranks=2) as reader:
            return consume(online(reader), count, step_s)

    def split(self, iterator: Any, count: int, step_s: float) -> float:
        return consume(torch_batches(iterator), count, step_s)


class Bench:
    """Services of one and of two actors, and bare loops beside them."""

    def __init__(self) -> None:
        self.config = StreamConfig(
            name="bench", mode="synthesize", teacher=STAND_IN, micro_batch=BATCH
        )
        self.pair = dataclasses.replace(self.config, name="pair")
        self.handles: dict[str, list[Any]] = {}
        for config, count in ((self.config, 1), (self.pair, 2)):
            asked, size = config.stream(), config.actor_size()
            handles = start_actors(asked, size, count=count, detached=False)
            wait_ready(handles, resolve_stream(asked).identity, service=config.name)
            self.handles[config.name] = handles
        options = {"num_cpus": 0.1, "runtime_env": {"env_vars": worker_env(1)}}
        bare = ray.remote(Teacher).options(**options)
        self.bare = [bare.remote() for _ in range(2)]
        self.ranks = [Rank.options(runtime_env={"env_vars": worker_env(1)}).remote() for _ in "ab"]

    def producer(self, actors: int) -> float:
        return sum(ray.get([actor.loop.remote(40) for actor in self.bare[:actors]]))

    def consumer(self) -> float:
        shapes = [(BATCH, 32, 32, 3), *((BATCH, 528, side, side) for side in (16, 8, 4))]
        ready = [np.zeros(shape, np.float16) for shape in shapes]
        return consume(iter(lambda: ready, None), 20, STEP_S)

    def one(self, actors: int, step_s: float, count: int) -> float:
        with read(self.config if actors == 1 else self.pair) as reader:
            return consume(online(reader), count, step_s)

    def two_ranks(self, step_s: float, count: int) -> float:
        return sum(
            ray.get(
                [
                    rank.online.remote(self.pair, number, count, step_s)
                    for number, rank in enumerate(self.ranks)
                ]
            )
        )

    def split(self, step_s: float, count: int) -> float:
        iterators = ray_data(2, 2 * count).streaming_split(2, equal=True)
        return sum(
            ray.get(
                [
                    rank.split.remote(iterator, count, step_s)
                    for rank, iterator in zip(self.ranks, iterators, strict=True)
                ]
            )
        )

    def kill(self) -> dict[str, float]:
        """Kill one of two actors under a consumer; return its waits, worst and total (seconds)."""
        with read(self.pair) as reader:
            source, waits = online(reader), []
            pid = ray.get(self.handles["pair"][0].status.remote())["pid"]
            for number in range(100):
                if number == 30:
                    os.kill(pid, signal.SIGKILL)
                started = time.perf_counter()
                next(source)
                waits.append(time.perf_counter() - started)
                time.sleep(STEP_S)
            before = statistics.median(waits[5:30])
        wait_ready(
            self.handles["pair"], resolve_stream(self.pair.stream()).identity, service="pair"
        )
        after = [max(0.0, wait - before) for wait in waits[30:]]
        return {"worst": max(after), "total": sum(after)}

    def close(self) -> None:
        for handles in self.handles.values():
            end_actors(handles)
        assert not find_actors("bench") and not find_actors("pair")
        for actor in [*self.bare, *self.ranks]:
            ray.kill(actor)


def measure_round(bench: Bench, only: str) -> dict[str, float]:
    """Measure everything once, neighbours in a ratio side by side."""
    found: dict[str, float] = {}

    def ratio(name: str, ours: Callable[[], float], limit: Callable[[], float]) -> None:
        if only in name:
            before = limit()
            rate = ours()
            found[f"{name}_img_per_s"] = rate
            found[name] = rate / ((before + limit()) / 2)

    def versus(name: str, of: str, theirs: Callable[[], float]) -> None:
        if only in name or only in of:
            found[f"{name}_img_per_s"] = rate = theirs()
            if f"{of}_img_per_s" in found:
                found[name] = found[f"{of}_img_per_s"] / rate

    ratio(
        "online_consumer_bound",
        lambda: bench.one(1, STEP_S, 100),
        lambda: min(bench.producer(1), bench.consumer()),
    )
    versus(
        "vs_ray_data_consumer_bound",
        "online_consumer_bound",
        lambda: consume(torch_batches(ray_data(1, 100)), 100, STEP_S),
    )
    ratio("online_producer_bound", lambda: bench.one(1, 0.0, 160), lambda: bench.producer(1))
    versus(
        "vs_ray_data_producer_bound",
        "online_producer_bound",
        lambda: consume(torch_batches(ray_data(1, 160)), 160, 0.0),
    )
    ratio("online_producer_bound_2", lambda: bench.one(2, 0.0, 240), lambda: bench.producer(2))
    ratio(
        "online_two_ranks",
        lambda: bench.two_ranks(STEP_S, 80),
        lambda: min(bench.producer(2), 2 * bench.consumer()),
    )
    versus("vs_streaming_split", "online_two_ranks", lambda: bench.split(STEP_S, 80))
    if only in "kill_idle_s":
        killed = bench.kill()
        found["kill_idle_s"], found["kill_idle_total_s"] = killed["worst"], killed["total"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds (count)")
    parser.add_argument("--only", default="", help="measures whose name contains this")
    parser.add_argument("--out", default="", help="file for the result, besides the last line")
    options = parser.parse_args()
    rounds: list[dict[str, float]] = []
    loads = []
    with cluster(RayConfig(), num_cpus=7, num_gpus=0, object_store_bytes=2 << 30):
        ray.data.DataContext.get_current().enable_progress_bars = False
        bench = Bench()
        for number in range(options.rounds):
            loads.append(round(os.getloadavg()[0], 2))
            rounds.append(measure_round(bench, options.only))
            print(f"round {number}: {json.dumps(_rounded(rounds[-1]))}", flush=True)
        bench.close()
    names = list(rounds[0])
    summary: dict[str, object] = {
        name: round(statistics.median(found[name] for found in rounds), 3) for name in names
    }
    if "kill_idle_s" in summary:
        summary["kill_idle_s"] = round(max(found["kill_idle_s"] for found in rounds), 3)
    summary |= {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "ray": ray.__version__,
        "load_1min": loads,
        "rounds": [_rounded(found) for found in rounds],
    }
    if options.out:
        Path(options.out).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary))


def _rounded(found: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in found.items()}


if __name__ == "__main__":
    main()
