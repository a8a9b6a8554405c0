"""Who shares a dataset with whom."""

from __future__ import annotations

from collections.abc import Iterable

from dreamshard.errors import ConfigError
from storage.ledger import holds
from storage.ledger.drops import count_drops, read_drops
from storage.verbs import collect
from tests.protocol.play import ROOT, UNIT, Scenario, batch, dataset, drive, here, mend, read_all
from tests.protocol.world import Process, World


def _damage() -> None:
    ds = dataset()
    drive(4)
    ds.files.write(ds.store.unit_keys(1)[0], b"\0" * 8)


def _repair() -> None:
    mend()
    drive(4)


def _stray() -> None:
    """Leave what a run of another host left that died between moving and committing."""
    drive(2)
    ds = dataset()
    ds.grow(4)
    for key in ds.store.unit_keys(1):
        ds.files.write(key, b"half a unit")


def _gc(*, remove: bool) -> int:
    try:
        garbage = collect.plan(ROOT, remove=["model"] if remove else [])
    except ConfigError:  # it is held
        return 0
    return collect.collect(garbage)


def _pin() -> bool:
    return holds.pin(dataset().files, name="kept", reason="")


def _hold() -> str:
    """Read as a trainer does: open, hold, read, let go."""
    ds = dataset()
    snapshot = ds.snapshot()
    reading = holds.Reading(ds.files)
    for unit, commit in ds.committed().items():
        here().sleep(8.0)
        if unit in snapshot.units and ds.store.problems(commit, quick=False):
            return f"unit {unit} went while it was read"
    reading.end()
    return ""


def _drive_held() -> str:
    """Run, and look before the lease ends whether the dataset is still one."""
    ds = dataset()
    ds.grow(4)
    with ds.lease("held"):
        for unit in ds.missing(4).tolist():
            with ds.unit_writer(unit, count=UNIT, run_id="held") as writer:
                writer.write(0, batch(unit, UNIT, 1))
                writer.commit()
        return "it was removed under a run" if holds.is_gone(ds.files) else ""


def _kept(_world: World, processes: list[Process]) -> Iterable[str]:
    """Who was told that his is there finds it there, but for who was stopped for long."""
    gone = holds.is_gone(dataset().files)
    for process in processes[1:]:
        if process.result is True and gone:
            yield f"p{process.number}: the dataset was removed under a pin"
        if isinstance(process.result, str) and process.result and not process.was_stopped:
            yield f"p{process.number}: {process.result}"


def _drop(key: str) -> int:
    return dataset().drop([key], reason=key)


def _dropped(_world: World, processes: list[Process]) -> Iterable[str]:
    files = dataset().files
    have = {key for drop in read_drops(files, count_drops(files)) for key in drop.samples.values()}
    for process, key in zip(processes, ("k0", "k3"), strict=False):
        if process.result == 1 and key not in have:
            yield f"{key} was dropped, and is back"


SCENARIOS = {
    "alone": Scenario([lambda: drive(4)], [0], before=lambda: dataset().grow(4), alone=True),
    "two": Scenario(
        [lambda: drive(4, noise=1), lambda: drive(4, noise=2)],
        [0, 1],
        before=lambda: dataset().grow(4),
    ),
    "near": Scenario(
        [lambda: drive(4, noise=1), lambda: drive(4, noise=2)],
        [0, 0],
        before=lambda: dataset().grow(4),
    ),
    "read": Scenario([lambda: drive(4, noise=1), lambda: drive(2, noise=2), read_all], [0, 1, 2]),
    "extend": Scenario(
        [lambda: drive(4), lambda: drive(4), read_all], [0, 1, 2], before=lambda: drive(3)
    ),
    "grow": Scenario([lambda: drive(3), lambda: drive(4, roll_up=True)], [0, 1], roll_up=True),
    "repair": Scenario(
        [_repair, lambda: drive(4), _repair],
        [0, 1, 2],
        before=_damage,
        withdraws=True,
        again=_repair,
    ),
    "drop": Scenario(
        [lambda: _drop("k0"), lambda: _drop("k3"), lambda: drive(4)],
        [0, 1, 1],
        before=lambda: drive(4),
        check=_dropped,
    ),
    "stray": Scenario(
        [lambda: _gc(remove=False), lambda: drive(4, noise=1)], [0, 1], before=_stray
    ),
    "remove": Scenario(
        [lambda: _gc(remove=True), _pin, _hold],
        [0, 1, 2],
        before=lambda: drive(4),
        check=_kept,
        removable=True,
    ),
    "removerun": Scenario(
        [lambda: _gc(remove=True), _drive_held],
        [0, 1],
        before=lambda: drive(2),
        check=_kept,
        removable=True,
    ),
}
