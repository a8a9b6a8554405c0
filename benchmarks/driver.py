"""Measure what the driver itself costs: CPU per 10^5 units, memory, time to resume.

    python benchmarks/driver.py                       # 10^5 units of 64 samples
    python benchmarks/driver.py --units 1000000 --samples_per_unit 16

The real main path (resolve, catalog, lease, driver, workers, books, manifest roll-ups) with
everything costly played: in place of Ray's calls a helper process writes the commit records, as
actors would, and nothing else. The first run is asked to stop (SIGTERM) at half, the second goes on
to the end. CPU is that of the driver's process alone, the simulation's part of it included. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import signal
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline import run as main_path
from pipeline.cluster.config import RayConfig
from pipeline.cluster.join import Cluster
from pipeline.request.config import SynthesizeConfig
from pipeline.teachers.base import TeacherConfig
from storage.ledger.commits import Commit, record_key

ACTORS = 16


class Answer:
    """The answer of a call to an actor that is not there."""

    __slots__ = ("done", "value")

    def __init__(self, value: object = None) -> None:
        self.value, self.done = value, value is not None


class NullRay:
    """In Ray's place: calls become commit records, written by the helper; see `helper`."""

    def __init__(self, pipe: Connection, *, per_unit: int, stop_after: int = 0) -> None:
        self.pipe, self.per_unit, self.stop_after = pipe, per_unit, stop_after
        self.open: dict[int, Answer] = {}
        self.waiting: list[int] = []
        self.made, self.first_call = 0, 0.0
        self.memory: list[int] = []

    def make(self, unit: int, count: int) -> Answer:
        self.first_call = self.first_call or time.perf_counter()
        answer = self.open[unit] = Answer()
        self.waiting.append(unit)
        return answer

    def wait(
        self, answers: list[Answer], *, num_returns: int, timeout: float
    ) -> tuple[list[Answer], list[Answer]]:
        if self.waiting and num_returns == 1 and not any(answer.done for answer in answers):
            self.pipe.send_bytes(np.array(self.waiting, np.int64).tobytes())
            self.waiting.clear()
            for unit in np.frombuffer(self.pipe.recv_bytes(), np.int64).tolist():
                answer = self.open.pop(unit)
                answer.value, answer.done = _record(unit, self.per_unit), True
                self.made += 1
                if self.made % 10_000 == 0:
                    self.memory.append(_memory_mib())
                if self.made == self.stop_after:
                    os.kill(os.getpid(), signal.SIGTERM)
        return [answer for answer in answers if answer.done], []

    def install(self) -> None:
        def start(*_: object) -> Any:
            call = types.SimpleNamespace
            ready = {"host": "here", "pid": 1}
            return call(
                load=call(remote=lambda: Answer(ready)),
                make=call(remote=self.make),
                stop=call(remote=lambda: Answer(True)),
            )

        errors = types.ModuleType("ray.exceptions")
        for name in ("RayError", "RayTaskError", "RayActorError"):
            setattr(errors, name, type(name, (Exception,), {}))
        module: Any = types.ModuleType("ray")
        module.exceptions, module.wait = errors, self.wait
        module.get = lambda answer: answer.value
        module.put = lambda value: value
        module.kill = lambda handle: None
        module.is_initialized = lambda: False
        made = types.SimpleNamespace(remote=start)
        module.remote = lambda cls: types.SimpleNamespace(options=lambda **_: made)
        sys.modules["ray"], sys.modules["ray.exceptions"] = module, errors
        workers = sys.modules.get("pipeline.offline.workers")
        if workers is not None:
            workers.ray, workers.ray_errors = module, errors  # type: ignore[attr-defined]


def _record(unit: int, count: int) -> dict[str, object]:
    return {
        "unit": unit, "count": count, "invalid": 0, "bytes": 1, "seconds": 0.01, "teacher_s": 0.01,
        "write_wait_s": 0.0, "errors": [], "host": "here",
    }  # fmt: skip


def helper(pipe: Connection, root: Path, per_unit: int) -> None:
    """Write the commit records of the units that come in, until the pipe closes."""
    folder = None
    while True:
        try:
            units = np.frombuffer(pipe.recv_bytes(), np.int64).tolist()
        except EOFError:
            return
        folder = folder or next(path.parent for path in root.glob("*/dataset.json"))
        for unit in units:
            first = unit * per_unit
            keys = [f"{index:08d}" for index in range(first, first + per_unit)]
            commit = Commit(
                unit=unit, version=0, first=first, count=per_unit, bytes=per_unit * 64,
                digests={"w": "0" * 32, "image": "1" * 32}, input_digest="", seconds=0.01,
                host="here", run_id="bench", keys=keys,
            )  # fmt: skip
            path = folder / record_key(unit, 0)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(commit.to_json())
        pipe.send_bytes(np.array(units, np.int64).tobytes())


def _memory_mib() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) // 1024
    return 0


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def no_cluster(config: RayConfig, **_: float) -> Iterator[Cluster]:
    yield Cluster("none", ({"CPU": 1e6},))


def measure(units: int, per_unit: int, folder: Path) -> dict[str, object]:
    ours, theirs = Pipe()
    if os.fork() == 0:
        ours.close()
        with contextlib.suppress(KeyboardInterrupt):
            helper(theirs, folder / "data", per_unit)
        os._exit(0)
    theirs.close()
    main_path.cluster = no_cluster
    main_path.describe = lambda where: Cluster(where, ({"CPU": 1e6},))
    config = SynthesizeConfig(
        root=str(folder / "data"), run_dir=str(folder / "run"), samples=units * per_unit,
        samples_per_unit=per_unit, micro_batch=1, actors=ACTORS, fsync=False,
        teacher=TeacherConfig(
            kind="noise", levels=["w"], settings={"channels": 8, "image_size": 4}
        ),
    )  # fmt: skip
    found: dict[str, object] = {"units": units, "samples_per_unit": per_unit, "actors": ACTORS}
    cpu, memory = 0.0, list[int]()
    for name, stop_after in (("first", units // 2), ("resumed", 0)):
        ray = NullRay(ours, per_unit=per_unit, stop_after=stop_after)
        ray.install()
        started, before = time.perf_counter(), _cpu_s()
        code = main_path.run(config, command=["benchmark"])[0]
        assert code == (130 if stop_after else 0), code
        used = _cpu_s() - before
        cpu, memory = cpu + used, memory + ray.memory
        found[f"{name}_wall_s"] = round(time.perf_counter() - started, 1)
        found[f"{name}_to_first_unit_s"] = round(ray.first_call - started, 2)
    ours.close()
    parts = len(list((folder / "data").glob("*/manifest/part-*.parquet")))
    return {
        **found,
        "cpu_s_per_100k_units": round(cpu * 1e5 / units, 1),
        "resume_s": found["resumed_to_first_unit_s"],
        "memory_mib": memory,
        "memory_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "manifest_parts": parts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--samples_per_unit", type=int, default=64)
    parser.add_argument("--out", default="", help="file for the result, besides the last line")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dreamshard-driver-"))
    try:
        result = measure(options.units, options.samples_per_unit, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    summary = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "load_1min": round(os.getloadavg()[0], 2),
        **result,
    }
    if options.out:
        Path(options.out).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
