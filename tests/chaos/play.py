"""Play schedules: disturb a run, run again, and compare with what nobody disturbed.

    python -m tests.chaos.play FOLDER SEED [SEED ...]

Prints one JSON object per schedule. The process that plays stays free of threads and forks drivers,
which fork their actors: the real main path, driver, workers, actors and store, with the cluster and
the store's faults played. Leases and claims lapse after less than a second, so that a pause of one
is a long one.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq

from dreamshard.errors import run_main
from pipeline import run as main_path
from pipeline.cluster.config import RayConfig
from pipeline.cluster.join import Cluster
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.offline import driver
from pipeline.request import resolve
from pipeline.request.config import EncodeConfig, OfflineConfig, SynthesizeConfig
from pipeline.teachers import noise
from pipeline.teachers.base import TeacherConfig
from storage.dataset import Dataset
from storage.fs import objects
from storage.fs.local import LocalFiles
from storage.ledger import leases, publish
from storage.verbs.verify import verify_dataset
from tests.chaos.fake_ray import FakeRay, Spare, fork_spare
from tests.chaos.flaky_store import FlakyStore
from tests.chaos.schedules import DEFAULT, Injector, Schedule, draw, forward_steps

UNITS, PER_UNIT = 5, 8
HANG_S = 150.0
PR_SET_CHILD_SUBREAPER = 36


def config(schedule: Schedule, folder: Path) -> OfflineConfig:
    """Return the config of a schedule's runs; it asks for UNITS small units."""
    teacher = TeacherConfig(kind="noise", levels=["s2", "s4"], settings={"channels": 2})
    settings: dict[str, Any] = {
        "root": "gs://bucket/data" if schedule.remote else str(folder / "data"),
        "run_dir": str(folder / "run"),
        "samples": UNITS * PER_UNIT,
        "samples_per_unit": PER_UNIT,
        "micro_batch": 4,
        "actors": schedule.actors,
        "unit_deadline_s": 1.0 if schedule.kind == "stop" else None,
        "fsync": schedule.step == "fsync",
    }
    if schedule.mode == "encode":
        return EncodeConfig(
            teacher=teacher,
            source=SourceConfig(kind="digits"),
            image=ImageConfig(size=8),
            **settings,
        )
    teacher.settings["image_size"] = 8
    return SynthesizeConfig(teacher=teacher, **settings)


def hurry() -> None:
    """Let time pass fast: what takes half a minute elsewhere takes less than a second here."""
    leases.LEASE_TTL_S = 0.8
    publish.CLAIM_TTL_S = 0.6
    leases.BEAT_S = 0.15
    objects.BACKOFF_S, objects.MAX_BACKOFF_S = 0.002, 0.01
    driver.WAIT_S = 0.1
    from pipeline.offline import workers

    workers.TEND_S, workers.STOP_S = 0.1, 0.3


def spares(schedule: Schedule, folder: Path, *, faulty: bool) -> list[Spare]:
    """Fork the processes that become actors; the first, or all, with the schedule's fault."""

    def prepare(number: int) -> None:
        FlakyStore.rng = random.Random(f"{schedule.seed}/{number}")
        hit = schedule.victim == "all" or (schedule.victim == "actor" and number == 0)
        if faulty and hit and schedule.kind != "store":
            injector = Injector(schedule, folder / f"struck-{number}")
            LocalFiles.fault = staticmethod(injector)  # type: ignore[assignment]
            noise.NoiseTeacher._finish = forward_steps(injector)  # type: ignore[method-assign]

    count = schedule.actors + (10 if schedule.kind == "stop" else 4)
    return [
        fork_spare(lambda n=n: prepare(n), outlives=schedule.outlives and faulty)
        for n in range(count)
    ]


@contextlib.contextmanager
def no_cluster(config: RayConfig, **_: float) -> Iterator[Cluster]:
    """Stand for `pipeline.cluster.join.cluster`."""
    yield Cluster("test", ({"CPU": 64.0},))


def drive(schedule: Schedule, folder: Path, *, faulty: bool, number: int = 0) -> int:
    """Fork a driver that runs the pipeline; return its process number and group."""
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        return pid
    code = 99
    try:
        os.setpgid(0, 0)
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        share = schedule.share if faulty and schedule.kind == "store" else 0.0
        FlakyStore.folder, FlakyStore.share = folder / "store", share
        FlakyStore.rng = random.Random(f"{schedule.seed}/driver {number}")
        ray = FakeRay(spares(schedule, folder, faulty=faulty), not (faulty and schedule.cut_off))
        ray.install()
        hurry()
        main_path.cluster = no_cluster
        main_path.describe = lambda where: Cluster(where, ({"CPU": 64.0},))
        if faulty and schedule.victim == "driver" and schedule.kind in ("kill", "stop", "disk"):
            injector = Injector(schedule, folder / f"struck-driver-{number}")
            LocalFiles.fault = staticmethod(injector)  # type: ignore[assignment]
        wanted = config(schedule, folder)
        code = run_main(lambda _: main_path.run(wanted, command=["dreamshard", "test"])[0], [])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def join(pids: list[int]) -> list[int]:
    """Wait for drivers; return their exit codes, negative for signals, -1000 for a hang."""
    codes = dict.fromkeys(pids, -1000)
    ends = time.monotonic() + HANG_S
    waiting = set(pids)
    while waiting and time.monotonic() < ends:
        for pid in list(waiting):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
                waiting.discard(pid)
        time.sleep(0.01)
    for pid in waiting:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return list(codes.values())


def leftover(groups: list[int], *, patience_s: float = 60.0) -> list[str]:
    """Wait until no process of these groups is left; name those that do not end."""
    problems = []
    ends = time.monotonic() + patience_s
    for group in groups:
        while True:
            try:
                if os.waitpid(-group, os.WNOHANG)[0] == 0:
                    if time.monotonic() > ends:
                        problems.append("a process of the run lives on")
                        os.killpg(group, signal.SIGKILL)
                        ends += 5.0
                    time.sleep(0.01)
            except ChildProcessError:
                break
    return problems


def data_root(schedule: Schedule, folder: Path) -> Path:
    """Return where datasets lie on the disk, whatever the root is."""
    return folder / "store" / "bucket" / "data" if schedule.remote else folder / "data"


def hashes(root: Path) -> dict[str, str]:
    """Digest every file of the arrays."""
    files = sorted(path for path in root.glob("*/data.zarr/**/*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def check(schedule: Schedule, folder: Path, reference: dict[str, str]) -> list[str]:
    """Say what is wrong with the dataset that came of a schedule."""
    FlakyStore.folder, FlakyStore.share = folder / "store", 0.0
    root = data_root(schedule, folder)
    problems = []
    found = hashes(root)
    if found != reference:
        differ = [key for key in {*found, *reference} if found.get(key) != reference.get(key)]
        problems.append(f"other bytes: {sorted(differ)[:5]}")
    (path,) = [item for item in root.iterdir() if (item / "dataset.json").exists()]
    url = f"gs://bucket/data/{path.name}" if schedule.remote else str(path)
    dataset = Dataset.open(url)
    snapshot = dataset.snapshot()
    if snapshot.num_samples != UNITS * PER_UNIT or len(snapshot.holes):
        problems.append(f"holes: {snapshot.holes} of {snapshot.num_samples}")
    commits = dataset.committed()
    keys = [key for unit in sorted(commits) for key in commits[unit].keys]
    if sorted(commits) != list(range(UNITS)) or len(set(keys)) != len(keys):
        problems.append(f"units {sorted(commits)}, {len(set(keys))} keys of {len(keys)}")
    rows = pq.read_table(path / "manifest", columns=["index", "version"]).to_pylist()
    first = sorted(row["index"] for row in rows if row["version"] == 0)
    if first != list(range(UNITS * PER_UNIT)):
        problems.append(f"the manifest has {len(first)} first rows")
    report = verify_dataset(dataset)
    problems += [str(item) for item in (*report.findings, *report.missing, *report.notes)]
    left = [p for p in (path / "staging").rglob("*") if p.is_file()] if not schedule.remote else []
    left += [p for p in folder.rglob(".part-*") if schedule.kind not in ("kill", "stop")]
    left += list((folder / "tmp").rglob("dreamshard-staging-*/*/*"))
    return problems + [f"left: {p.relative_to(folder)}" for p in left]


def apart(function: Any, *args: Any) -> Any:
    """Call a function in a forked process and return its JSON-able result."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            result: object = function(*args)
        except BaseException:
            result = [traceback.format_exc()]
        os.write(write, json.dumps(result).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    return json.loads(data)


def play(schedule: Schedule, folder: Path, reference: dict[str, str]) -> dict[str, object]:
    """Play one schedule; return what happened and what is wrong."""
    started = time.monotonic()
    (folder / "store").mkdir(parents=True)
    (folder / "tmp").mkdir()
    os.environ["TMPDIR"] = str(folder / "tmp")
    pids = [drive(schedule, folder, faulty=True)]
    if schedule.drivers == 2:
        time.sleep(schedule.pause_s)
        pids.append(drive(replace(schedule, victim="nobody"), folder, faulty=True, number=1))  # type: ignore[arg-type]
    codes = join(pids)
    reruns: list[int] = []
    while (not reruns or reruns[-1]) and len(reruns) < 3:  # while those cut off may still live
        pid = drive(schedule, folder, faulty=False)
        pids.append(pid)
        reruns += join([pid])
    problems = leftover(pids)
    pid = drive(schedule, folder, faulty=False)  # sweeps what those left that woke up late
    reruns += join([pid])
    problems += leftover([pid])
    if reruns[-1] or -1000 in codes + reruns:
        problems.append(f"codes {codes}, then {reruns}")
    text = (folder / "log.txt").read_text(errors="replace")
    if "Traceback" in text:
        problems.append("an unexplained error: " + text[text.rindex("Traceback") :][-1500:])
    problems += apart(check, schedule, folder, reference)
    struck = len(list(folder.glob("struck-*")))
    return {
        "seed": schedule.seed,
        "schedule": str(schedule),
        "struck": struck or int(schedule.kind == "store"),
        "codes": codes,
        "reruns": reruns,
        "seconds": round(time.monotonic() - started, 2),
        "problems": problems,
    }


def main(argv: list[str]) -> None:
    """Play the seeds given; keep the folders of those that went wrong."""
    base = Path(argv[0])
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    fsspec.register_implementation("gs", FlakyStore, clobber=True)
    resolve.open_source(SourceConfig(kind="digits"))  # loads what all of them need, before any fork
    references: dict[tuple[str, bool], dict[str, str]] = {}
    for word in argv[1:]:
        schedule = draw(int(word))
        kind = (schedule.mode, schedule.remote)
        if kind not in references:
            quiet = replace(DEFAULT, mode=kind[0], remote=kind[1], actors=1)
            folder = base / f"reference-{kind[0]}-{kind[1]}"
            (folder / "store").mkdir(parents=True)
            (code,) = join([drive(quiet, folder, faulty=False)])
            assert code == 0, (folder / "log.txt").read_text()
            references[kind] = hashes(data_root(quiet, folder))
        folder = base / f"seed-{word}"
        told = play(schedule, folder, references[kind])
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        if not told["problems"]:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
