"""Measure the offline pipeline against the same teacher in a bare loop without storage.

    python benchmarks/pipeline.py                      # stand-in teacher, 1 and 2 actors
    python benchmarks/pipeline.py --unet teachers/digits   # and a real diffusion UNet
    python benchmarks/pipeline.py --only ray_data          # against Ray Data alone

Stand-in: the noise teacher, 40 ms per batch of 32 (a GPU that is busy while its CPU is not),
records of 0.36 MB. Bare loop: the same class in an actor process with the same threads, fed
prepared images from memory (or none: the stand-in synthesizes), its results dropped. Rounds are
interleaved (bare, pipeline, bare, ...); a ratio is that of a round to the mean of the bare rounds
around it, and the median over rounds is given. Time counts from the first unit handed out, teachers
loaded, to the last commit. `ray_data` is the wall time of Ray Data (`map_batches` with as many
actors of the same teacher, then `write_webdataset`) over ours for the same samples, each from
nothing but a running cluster to the last file. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cluster import join as cluster_module
from pipeline.cluster.config import RayConfig
from pipeline.cluster.join import cluster
from pipeline.cluster.worker import ActorSize, worker_env
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.offline.actor import Job
from pipeline.offline.driver import Driver, Task
from pipeline.request.config import EncodeConfig, OfflineConfig, SynthesizeConfig
from pipeline.request.lookup import create
from pipeline.request.resolve import ResolvedRequest, resolve
from pipeline.teachers.base import TeacherConfig
from pipeline.teachers.load import load_teacher
from storage.dataset import Dataset

STAND_IN = TeacherConfig(
    kind="noise", levels=["s2", "s4", "s8"], settings={"channels": 528, "delay_s": 0.040}
)


@dataclass(frozen=True)
class Case:
    """One comparison."""

    name: str
    config: OfflineConfig
    actors: int
    units: int


class Bare:
    """The teacher in a loop, in an actor of its own: no reading, no writing."""

    def __init__(self, config: OfflineConfig, request: ResolvedRequest) -> None:
        import torch

        torch.set_num_threads(request.pins.threads)
        self.teacher = load_teacher(
            config.teacher,
            mode=request.input.mode,
            seed=config.seed,
            pins=request.pins,
            image_size=request.spec.image_size,
        )
        size = request.pins.micro_batch
        self.input = request.input
        self.works = list(request.input.works(0, 4 * size, micro_batch=size))

    def loop(self, batches: int) -> float:
        started = time.perf_counter()
        for number in range(batches):
            self.input.forward(self.teacher, self.works[number % len(self.works)])
        return time.perf_counter() - started


class DataTeacher:
    """The teacher as Ray Data calls it: a batch of numbers in, one row per sample out."""

    def __init__(self, config: OfflineConfig, request: ResolvedRequest) -> None:
        self.bare = Bare(config, request)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        indices = batch["id"]
        made = self.bare.teacher.synthesize(indices)
        assert made.image is not None
        rows = {f"{name.replace('.', '_')}.npy": values for name, values in made.levels.items()}
        keys = [f"{index:08d}" for index in indices.tolist()]
        return {"__key__": keys, "image.npy": made.image, **rows}


class Bench:
    """The actors of one case, kept warm between rounds."""

    def __init__(self, case: Case, folder: Path) -> None:
        import ray

        from pipeline.offline.workers import RayWorkers

        self.case, self.folder, self._runs = case, folder, 0
        self.request = resolve(case.config.request())
        self.dataset = self._dataset()
        pins = self.request.pins
        self.samples = case.units * self.request.plan.samples_per_unit
        self.job = job = Job(
            url=self.dataset.url,
            run_id=f"bench-{case.name}",
            teacher=case.config.teacher,
            image_size=self.request.spec.image_size,
            seed=0,
            fsync=case.config.fsync,
        )
        self.options = {**ActorSize(pins.threads).options(), "num_cpus": 0.1}
        self.workers = RayWorkers(
            job,
            self.request.input,
            target=lambda: case.actors,
            options=self.options,
        )
        bare = ray.remote(Bare).options(**self.options)
        self.bare = [bare.remote(case.config, self.request) for _ in range(case.actors)]
        while self.workers.num_ready < case.actors:
            self.workers.wait(1.0)
        self.bare_rate(4 * case.actors)

    def _dataset(self) -> Dataset:
        dataset = create(self.request)
        dataset.grow(self.request.plan.num_samples)
        return dataset

    def bare_rate(self, batches: int | None = None) -> float:
        import ray

        micro_batch = self.request.pins.micro_batch
        each = (batches or self.samples // micro_batch) // self.case.actors
        seconds = max(ray.get([actor.loop.remote(each) for actor in self.bare]))
        return each * self.case.actors * micro_batch / seconds

    def pipeline_rate(self) -> tuple[float, dict[str, float]]:
        shutil.rmtree(self.dataset.url)
        self.dataset = self._dataset()
        totals = {"teacher_s": 0.0, "write_wait_s": 0.0}

        def count(event: Any) -> None:
            for name in totals:
                totals[name] += event.value[name]

        per_unit = self.request.plan.samples_per_unit
        driver = Driver(self.workers, max_attempts=1, on_done=count)
        with self.dataset.lease("bench"):
            started = time.perf_counter()
            driver.run(Task(unit, per_unit) for unit in range(self.case.units))
            seconds = time.perf_counter() - started
        return self.samples / seconds, totals

    def cold_seconds(self) -> float:
        """Make the samples with actors that start now."""
        from pipeline.offline.workers import RayWorkers

        shutil.rmtree(self.dataset.url)
        self.dataset = self._dataset()
        self._runs += 1
        per_unit = self.request.plan.samples_per_unit
        started = time.perf_counter()
        with (
            self.dataset.lease(f"cold-{self._runs}"),
            RayWorkers(
                dataclasses.replace(self.job, run_id=f"cold-{self._runs}-{self.case.name}"),
                self.request.input,
                target=lambda: self.case.actors,
                options=ActorSize().options(),
            ) as workers,
        ):
            driver = Driver(workers, max_attempts=1, on_done=lambda event: None)
            driver.run(Task(unit, per_unit) for unit in range(self.case.units))
            self.dataset.roll_up(final=True)
        return time.perf_counter() - started

    def ray_data_seconds(self) -> float:
        """Make the same samples with Ray Data, written as WebDataset shards."""
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False
        folder = self.folder / "ray-data"
        shutil.rmtree(folder, ignore_errors=True)
        started = time.perf_counter()
        ray.data.range(self.samples).map_batches(
            DataTeacher,
            fn_constructor_args=(self.case.config, self.request),
            batch_size=self.request.pins.micro_batch,
            compute=ray.data.ActorPoolStrategy(size=self.case.actors),
            num_cpus=1,
            runtime_env={"env_vars": worker_env(1)},
        ).write_webdataset(str(folder))
        seconds = time.perf_counter() - started
        assert any(folder.iterdir())
        shutil.rmtree(folder)
        return seconds

    def close(self) -> None:
        self.close_actors()
        shutil.rmtree(self.dataset.url, ignore_errors=True)

    def close_actors(self) -> None:
        import ray

        self.workers.__exit__()
        for actor in self.bare:
            ray.kill(actor)


def measure(case: Case, folder: Path, rounds: int) -> dict[str, object]:
    bench = Bench(case, folder)
    bare, made, busy = [bench.bare_rate()], [], []
    for _ in range(rounds):
        rate, totals = bench.pipeline_rate()
        made.append(rate)
        busy.append(totals["teacher_s"] * rate / bench.samples / case.actors)
        bare.append(bench.bare_rate())
    bench.close()
    ratios = [rate / ((bare[i] + bare[i + 1]) / 2) for i, rate in enumerate(made)]
    row = sum(bench.request.plan.bytes_per_sample.values())
    result: dict[str, object] = {
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "pipeline_img_per_s": round(statistics.median(made), 1),
        "bare_img_per_s": round(statistics.median(bare), 1),
        "teacher_busy_share": round(statistics.median(busy), 3),
        "samples_per_round": bench.samples,
        "bytes_per_sample": row,
        "actors": case.actors,
        "threads_per_actor": case.config.threads_per_actor,
        "fsync": case.config.fsync,
    }
    print(f"{case.name}: {json.dumps(result)}", flush=True)
    return result


def against_ray_data(case: Case, folder: Path, rounds: int) -> dict[str, object]:
    """Compare the wall times, ours and Ray Data's in turn."""
    bench = Bench(case, folder)
    bench.close_actors()  # the cores are for those that start in each round
    ours, theirs = list[float](), list[float]()
    for _ in range(rounds):
        ours.append(bench.cold_seconds())
        theirs.append(bench.ray_data_seconds())
    shutil.rmtree(bench.dataset.url, ignore_errors=True)
    ratios = [after / before for before, after in zip(ours, theirs, strict=True)]
    result: dict[str, object] = {
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "pipeline_s": [round(seconds, 2) for seconds in ours],
        "ray_data_s": [round(seconds, 2) for seconds in theirs],
        "samples_per_round": bench.samples,
        "actors": case.actors,
    }
    print(f"{case.name}: {json.dumps(result)}", flush=True)
    return result


def cases(folder: Path, unet: str, units: int) -> list[Case]:
    def stand_in(name: str, *, fsync: bool = True) -> SynthesizeConfig:
        return SynthesizeConfig(
            name=name, root=str(folder), teacher=STAND_IN, samples=10**6, fsync=fsync
        )

    def digits(name: str, threads: int) -> EncodeConfig:
        return EncodeConfig(
            name=name,
            root=str(folder),
            teacher=TeacherConfig(path=unet, levels=["s1", "s2", "s4"], timesteps=[50]),
            source=SourceConfig(kind="digits", split="all"),
            image=ImageConfig(views=8),
            samples_per_unit=256,
            threads_per_actor=threads,
        )

    found = [
        Case("standin_1_actor", stand_in("one"), 1, units),
        Case("standin_1_actor_nofsync", stand_in("onex", fsync=False), 1, units),
        Case("standin_2_actors", stand_in("two"), 2, 2 * units),
        Case("standin_2_actors_nofsync", stand_in("twox", fsync=False), 2, 2 * units),
        Case("ray_data_1_actor", stand_in("data", fsync=False), 1, units),
    ]
    if unet:
        found.append(Case("unet_1_actor_2_threads", digits("unet", 2), 1, 4))
        found.append(Case("unet_2_actors_1_thread", digits("unets", 1), 2, 8))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--unet", default="", help="folder of a diffusion teacher to measure, too")
    parser.add_argument("--rounds", type=int, default=3, help="pipeline rounds per case (count)")
    parser.add_argument("--units", type=int, default=24, help="units per round and actor (count)")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--folder", default="", help="where to write; a temporary one by default")
    parser.add_argument("--out", default="", help="file for the result, besides the last line")
    options = parser.parse_args()
    folder = Path(options.folder or tempfile.mkdtemp(prefix="dreamshard-bench-"))
    results: dict[str, Any] = {}
    cluster_module.OBJECT_STORE_BYTES = 2 << 30  # Ray Data sends everything through it
    with cluster(RayConfig(), num_cpus=4, num_gpus=0):
        for case in cases(folder, options.unet, options.units):
            if options.only in case.name:
                compare = against_ray_data if "ray_data" in case.name else measure
                results[case.name] = compare(case, folder, options.rounds)
    if not options.folder:
        shutil.rmtree(folder, ignore_errors=True)
    summary = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "load_1min": round(os.getloadavg()[0], 2),
        **{name: result["ratio"] for name, result in results.items()},
        "cases": results,
    }
    line = json.dumps(summary)
    if options.out:
        Path(options.out).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
