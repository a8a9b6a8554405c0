"""Play one schedule of a scenario, and say what it broke.

A schedule is a text, `scenario/12s/40c`: at step 12 the process whose turn it is lets another one
go on, at step 40 it dies (see `world`). The same text always plays the same.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np

import storage.catalog
import storage.dataset
import storage.formats.unit_files
import storage.fs.local
import storage.ledger.drops
import storage.ledger.evidence
import storage.ledger.holds
import storage.ledger.leases
import storage.ledger.manifest
import storage.ledger.publish
import storage.verbs.collect
from dreamshard.errors import DreamshardError
from storage.dataset import Dataset
from storage.ledger import book
from storage.ledger.book import UnitTable
from storage.ledger.commits import Commit, list_records, read_commit
from storage.ledger.description import Description
from storage.ledger.holds import is_gone
from storage.ledger.manifest import units_key
from storage.schema import FeatureBatch, Level, Pins, Recipe
from tests.protocol.model_files import ModelFiles
from tests.protocol.world import KINDS, Died, Node, Process, World

ROOT = "/model"
UNIT = 2
LEVELS = tuple(
    Level(name, "soft_label", name, 0, 0, "", 0, (1,), "int32") for name in ("one", "two")
)
_world: list[World] = []


class _Serial:
    """Stand for a thread pool: a step is a process's, not a thread's."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> _Serial:
        return self

    def __exit__(self, *_: object) -> None: ...

    def map(self, function: Callable[..., Any], *items: Iterable[Any]) -> Iterator[Any]:
        return map(function, *items)


class _Chance:
    """Stand for chance: each process waits its own time."""

    @staticmethod
    def uniform(low: float, high: float) -> float:
        current = here().current
        return low + (high - low) * (0.3 + 0.2 * (current.number if current else 0))


def here() -> World:
    return _world[-1]


def _open_files(url: object) -> ModelFiles:
    return ModelFiles(here(), str(url))


_rolled: dict[tuple[bytes, ...], UnitTable] = {}


def _read_rolled(files: ModelFiles, parts: int, _real: Any = book.read_rolled) -> UnitTable:
    """Read the manifest as `read_rolled` does, parsing what was parsed before only once."""
    data = tuple(files.read(units_key(part)) for part in range(parts))
    if data not in _rolled:
        world, quiet = here(), here().quiet
        world.quiet = True
        try:
            _rolled[data] = _real(files, parts)
        finally:
            world.quiet = quiet
    return _rolled[data]


_commits: dict[bytes, Commit] = {}


def _read_record(data: bytes, *, where: str, _real: Any = Commit.from_json) -> Commit:
    """Read a record as `Commit.from_json` does, parsing what was parsed before only once."""
    if data not in _commits:
        _commits[data] = _real(data, where=where)
    return _commits[data]


_PATCHES: dict[object, dict[str, object]] = {
    storage.dataset: {"open_files": _open_files},
    storage.catalog: {"open_files": _open_files},
    storage.verbs.collect: {"open_files": _open_files},
    book: {"read_rolled": _read_rolled},
    Commit: {"from_json": _read_record},
    storage.fs.local: {"owner": lambda: here().owner()},
    storage.ledger.leases: {"owner": lambda: here().owner()},
    storage.ledger.manifest: {"ThreadPoolExecutor": _Serial},
    storage.ledger.drops: {"ThreadPoolExecutor": _Serial},
    storage.ledger.holds: {"owner": lambda: here().owner()},
    storage.formats.unit_files: {"own_name": lambda unit: here().own_name(unit)},
    storage.ledger.publish: {
        "own_name": lambda unit: here().own_name(unit),
        "random": _Chance,
    },
    storage.ledger.evidence: {
        "is_dead": lambda text: here().is_dead(text),
        "clock": lambda: here().now(),
        "elapsed": lambda: here().now(),
        "sleep": lambda seconds: here().sleep(seconds),
        "start_beating": lambda beat, **settings: here().start_beating(beat, **settings),
        "beating": lambda beat, **settings: here().beating(beat, **settings),
        "watch_of": lambda files: here().watch_of(files),
    },
}


@contextlib.contextmanager
def model() -> Iterator[None]:
    """Put the world in the place of clocks, disks and processes while the context lasts."""
    with contextlib.ExitStack() as stack:
        for module, replaced in _PATCHES.items():
            for name, stand_in in replaced.items():
                stack.enter_context(mock.patch.object(module, name, stand_in))
        yield


@functools.cache
def about(layout_format: str = "zarr") -> Description:
    content = {"source": {"kind": "test", "count": 4, "digest": ""}, "levels": []}
    layout = {"format": layout_format, "samples_per_unit": UNIT, "codecs": {}}
    return Description(
        recipe=Recipe("model", content, layout),
        levels=LEVELS,
        image_size=(1, 1),
        pins=Pins(1, "float32", "cpu", 1),
        images=False,
    )


@functools.cache
def url(layout_format: str = "zarr") -> str:
    return f"{ROOT}/{about(layout_format).recipe.folder}"


def dataset() -> Dataset:
    return Dataset(url(), about(), fsync=False)


def batch(unit: int, count: int, noise: int) -> FeatureBatch:
    index = np.arange(unit * UNIT, unit * UNIT + count)
    values = (index[:, None] + 1000 * noise).astype(np.int32)
    keys = [f"k{i}" for i in index]
    levels = {"one": values, "two": -values}
    return FeatureBatch(index, keys, np.ones(count, bool), None, levels)


def drive(num_samples: int, *, noise: int = 0, roll_up: bool = False) -> list[Commit]:
    """Do what a run does; return what it was told is done."""
    current = here().current
    ds, run_id, told = dataset(), f"run{current.number if current else 9}", []
    ds.grow(num_samples)
    with ds.lease(run_id):
        for unit in ds.missing(num_samples).tolist():
            count = min(UNIT, num_samples - unit * UNIT)
            with ds.unit_writer(unit, count=count, run_id=run_id) as writer:
                writer.write(0, batch(unit, count, noise))
                told.append(writer.commit())
        if roll_up:
            ds.roll_up(final=True)
    return told


@dataclass
class Scenario:
    """Processes that share a dataset.

    Args:
        actions: what each process does.
        hosts: where each of them runs.
        before: makes the dataset they find.
        num_samples: what must be there when all is done.
        check: says what is wrong at the end, given the processes.
        removable: the dataset itself may be gone at the end.
        withdraws: units may be withdrawn though nobody died or slept.
        roll_up: manifest parts are made.
        alone: nobody else is there, so that nothing may fail however long it takes.
        again: the command that is run again at the end, `drive` if not given.
    """

    actions: list[Callable[[], object]]
    hosts: list[int]
    num_samples: int = 4
    before: Callable[[], object] = lambda: None
    check: Callable[[World, list[Process]], Iterable[str]] = lambda _world, _processes: ()
    removable: bool = False
    withdraws: bool = False
    roll_up: bool = False
    alone: bool = False
    again: Callable[[], object] | None = None
    disk: dict[str, Node] = field(default_factory=dict)

    def prepare(self) -> dict[str, Node]:
        """Return the files that the processes find, made once."""
        if not self.disk:
            world = World({}, {}, hosts=[50])
            _world.append(world)
            try:
                ds = dataset()
                ds.files.write("dataset.json", about().to_json(), fsync=False)
                ds._resize()
                self.before()
            finally:
                _world.pop()
            self.disk = world.disk
        return self.disk


def play(scenario: Scenario, plan: dict[int, str], *, log: bool = False) -> World:
    """Play a schedule, run the command again, and note in the world what is broken."""
    world = World(scenario.prepare(), plan, hosts=scenario.hosts)
    world.log = [] if log else None
    _world.append(world)
    try:
        processes = world.run(scenario.actions)
        calm = not set("cf") & {what for at, what in plan.items() if at <= world.steps}
        died = "c" in {what for at, what in plan.items() if at <= world.steps}
        strict = not died if scenario.alone else calm and not scenario.removable
        world.violations += [f"p{p.number}: {t}" for p in processes for t in _wrong(p, strict)]
        world.violations += _told(processes)
        world.violations += scenario.check(world, processes)
        world.plan = {}
        if not scenario.removable or not is_gone(dataset().files):
            world.violations += _finish(world, scenario, calm)
    finally:
        _world.pop()
    return world


def _wrong(process: Process, strict: bool) -> Iterator[str]:
    error = process.error
    if error is None or isinstance(error, Died):
        return
    if not isinstance(error, DreamshardError) or strict:
        yield f"{type(error).__name__}: {error!s:.200}"


def _told(processes: list[Process]) -> Iterator[str]:
    """Compare what writers were told is committed with the records: void ones are made again."""
    files = dataset().files
    void = set(list_records(files, "commits/withdrawn"))
    for process in processes:
        told = process.result if isinstance(process.result, list) else []
        for commit in told:
            if (commit.unit, commit.version) in void or is_gone(files):
                continue
            if read_commit(files, commit.unit, commit.version).digests != commit.digests:
                yield f"p{process.number} was told that its unit {commit.unit} is the committed one"


def _finish(world: World, scenario: Scenario, calm: bool) -> Iterator[str]:
    """Run the command again, as the messages say; then everything must be there, and no more."""
    ds = dataset()
    if calm and not scenario.withdraws and list_records(ds.files, "commits/withdrawn"):
        yield "a unit was withdrawn though nobody died or was stopped"
    if any(p.was_stopped and p.state == "dead" for p in world.processes):
        mend()  # the one thing that a run does not mend by itself, see the module
    world.run([scenario.again or (lambda: drive(scenario.num_samples))])
    error = world.processes[-1].error
    if error is not None:
        yield f"the command cannot be run again: {type(error).__name__}: {error!s:.200}"
        return
    world.current = None
    world.sleep(100.0)
    ds.sweep()
    world.sleep(100.0)
    ds.sweep()
    if scenario.roll_up:
        ds.roll_up(final=True)
    yield from _check_end(world, ds, scenario)


def _check_end(world: World, ds: Dataset, scenario: Scenario) -> Iterator[str]:
    missing = ds.missing(scenario.num_samples).tolist()
    if missing or ds.requested() < scenario.num_samples:
        yield f"units {missing} of {ds.requested()} samples are missing after another run"
    done = ds.committed()
    for unit, commit in done.items():
        for path, problem in ds.store.problems(commit, quick=False):
            yield f"unit {unit} version {commit.version} is committed, but {path}: {problem}"
    left = [path for path in world.disk if "/staging/" in path]
    left += list(ds.store.strays(set(done)))
    if left:
        yield f"left behind: {left}"
    snapshot = ds.snapshot()
    if snapshot.units.tolist() != sorted(done) or len(set(snapshot.units.tolist())) != len(done):
        yield f"a snapshot shows units {snapshot.units.tolist()}, committed are {sorted(done)}"
    if ds.store.num_samples() != ds.requested():
        yield "the metadata is of another size than the requests"
    for path in sorted(world.disk):
        if "/read-torn/" in path:
            unit, version = map(int, path.rpartition("/")[2].split("."))
            if (unit, version) not in set(list_records(ds.files, "commits/withdrawn")):
                yield f"unit {unit} version {version} was read torn, and was never withdrawn"


def mend() -> None:
    """Do what `verify --repair` does: withdraw the units that are not what their records say."""
    ds = dataset()
    for unit, commit in ds.committed().items():
        if not ds.store.holds(commit):
            ds.invalidate(unit)


def read_all(times: int = 3) -> None:
    """Open snapshots and read all of their bytes; note down units that are not what they should be.

    A torn unit is allowed where it is withdrawn in the end: a run that was stopped between looking
    and moving overwrote it.
    """
    ds = dataset()
    for _ in range(times):
        snapshot = ds.snapshot()
        versions = dict(zip(snapshot.units.tolist(), snapshot._table.version.tolist(), strict=True))
        for unit, version in versions.items():
            commit = read_commit(ds.files, unit, version)
            if ds.store.problems(commit, quick=False):
                here().disk[f"/read-torn/{unit}.{version}"] = here().new_node(b"")
        here().sleep(8.0)


def parse(text: str) -> tuple[str, dict[int, str]]:
    """Read a schedule."""
    name, *parts = text.split("/")
    return name, {int(part[:-1]): part[-1] for part in parts}


def schedules(name: str, steps: int, *, count: int, seed: int) -> Iterator[str]:
    """Yield schedules: every single event, then so many drawn ones of two to four events."""
    for step in range(1, steps + 1):
        for kind in KINDS:
            yield f"{name}/{step}{kind}"
    rng = random.Random(f"{name} {seed}")
    for _ in range(count):
        events = rng.choice((2, 2, 3, 4))
        at = sorted(rng.sample(range(1, int(1.5 * steps)), events))
        yield "/".join([name, *(f"{step}{rng.choice('sssccffdw')}" for step in at)])
