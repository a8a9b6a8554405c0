"""What every store must hold, whatever its files look like."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dreamshard.errors import DataError
from dreamshard.owner.processes import owner
from storage.dataset import Dataset
from storage.formats.stores import STORES
from storage.fs.cache import FOLDER_VARIABLE
from storage.rows.pick import read_rows
from storage.schema import Level
from tests.feature_store import (
    LEVELS,
    Crash,
    all_keys,
    count_steps,
    data_files,
    expected_keys,
    fault,
    fill,
    make_batch,
    make_dataset,
    make_recipe,
    no_permission,
    no_space,
    write_unit,
)

N = 20  # three whole units of six, one of two
FORK = multiprocessing.get_context("fork")


@pytest.fixture(params=[*sorted(STORES), "zarr in memory", "tar in memory"])
def store(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def local_files(store: str) -> None:
    if " in " in store:
        pytest.skip("other processes do not see fsspec's memory")


@pytest.fixture
def make(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dataset]:
    layout, _, remote = store.partition(" in ")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    root = f"memory:/{tmp_path}" if remote else str(tmp_path)

    def build(name: str = "a", levels: tuple[Level, ...] = LEVELS, **settings: bool) -> Dataset:
        recipe = make_recipe(layout_format=layout, count=N, levels=levels)
        return make_dataset(f"{root}/{name}", recipe=recipe, levels=levels, **settings)

    return build


def test_a_finished_run_holds_every_sample_once_and_no_other_file(make) -> None:
    dataset = make()
    assert fill(dataset, N, invalid=(7,)) == [0, 1, 2, 3]
    assert all_keys(dataset) == expected_keys(dataset)
    snapshot = dataset.snapshot()
    assert (snapshot.num_samples, snapshot.holes, snapshot.requested) == (N, (), N)
    assert snapshot.units.tolist() == [0, 1, 2, 3]
    assert snapshot.counts.tolist() == [6, 6, 6, 2]
    assert snapshot.valid.tolist() == [index != 7 for index in range(N)]
    assert snapshot.labels.tolist() == [index % 7 for index in range(N)]
    assert snapshot.keys == [f"key/{index}" for index in range(N)]
    assert snapshot.errors == {7: "truncated"}


def test_the_files_hold_what_was_written(make) -> None:
    dataset = make()
    fill(dataset, N)
    snapshot = dataset.snapshot()
    batch = make_batch(0, N)
    wanted = {"image": batch.image, "label": batch.label, "mask": batch.mask, **batch.levels}
    assert set(snapshot.array_names) == set(wanted)
    for name, values in wanted.items():
        dtype, _ = snapshot.array_spec(name)
        rows = read_rows(snapshot, name, range(N))
        assert np.array_equal(rows, np.asarray(values).astype(dtype))


def test_a_second_run_makes_nothing(make) -> None:
    dataset = make()
    fill(dataset, N)
    before = {key: dataset.files.read(key) for key in all_keys(dataset)}
    assert fill(dataset, N) == []
    assert fill(dataset, N - 5) == []
    assert {key: dataset.files.read(key) for key in all_keys(dataset)} == before


def test_more_samples_extend_by_whole_units(make) -> None:
    dataset = make()
    fill(dataset, 12)
    before = data_files(dataset)
    assert fill(dataset, 18) == [2]
    assert {key: data_files(dataset)[key] for key in before} == before
    assert dataset.snapshot().num_samples == 18


def test_a_request_is_served_in_part_of_a_unit(make) -> None:
    dataset = make()
    dataset.grow(8)
    for unit in dataset.missing(8).tolist():
        write_unit(dataset, unit, num_samples=12)
    snapshot = dataset.snapshot()
    assert (snapshot.num_samples, len(snapshot.valid), snapshot.holes) == (8, 8, ())
    dataset.grow(12)
    assert dataset.missing(12).tolist() == []
    assert dataset.snapshot().num_samples == 12


def test_a_grown_source_replaces_the_partial_unit_alone(make) -> None:
    dataset = make()
    fill(dataset, N)
    old = dataset.snapshot()
    before = data_files(dataset)
    assert fill(dataset, 30) == [3, 4]
    after = data_files(dataset)
    assert all(
        after[key] == before[key] for unit in (0, 1, 2) for key in dataset.store.unit_keys(unit)
    )
    assert all_keys(dataset) == expected_keys(dataset)
    new = dataset.snapshot()
    assert (new.num_samples, new.counts.tolist(), new.holes) == (30, [6] * 5, ())
    assert new.keys == [f"key/{index}" for index in range(30)]
    pinned = dataset.snapshot(old.version)
    assert (pinned.version, pinned.num_samples) == (old.version, N)
    assert pinned.keys == old.keys and pinned.labels.tolist() == old.labels.tolist()


def test_the_end_state_does_not_depend_on_how_it_came_about(make) -> None:
    straight, winding = make("a"), make("b")
    fill(straight, N)
    fill(winding, 6)
    with winding.lease("x"):
        write_unit(winding, 2, num_samples=N, run_id="x")
        winding.roll_up(final=True)
    fill(winding, N, run_id="y")
    assert data_files(winding) == data_files(straight)
    assert winding.snapshot().version.split("-")[2] == straight.snapshot().version.split("-")[2]


def test_a_hole_is_seen(make) -> None:
    dataset = make()
    dataset.grow(N)
    for unit in (0, 2):
        write_unit(dataset, unit, num_samples=N)
    snapshot = dataset.snapshot()
    # Unit 3, at the end, is as much of a hole as unit 1.
    assert (snapshot.num_samples, snapshot.holes, snapshot.requested) == (N, (1, 3), N)
    assert snapshot.valid.tolist() == [True] * 6 + [False] * 6 + [True] * 6 + [False] * 2
    assert snapshot.keys[6:12] == [""] * 6


def test_a_late_duplicate_discards_itself(make) -> None:
    dataset = make()
    dataset.grow(N)
    late = dataset.unit_writer(0, count=6, run_id="late")
    late.write(0, make_batch(0, 6, noise=1))
    first = write_unit(dataset, 0, num_samples=N, run_id="first")
    before = data_files(dataset)
    assert late.commit() == first
    assert data_files(dataset) == before
    dataset.sweep()
    assert all_keys(dataset) == expected_keys(dataset)


def _race(url: str, noise: int, barrier, results) -> None:
    dataset = Dataset.open(url, fsync=False)
    commits = []
    for unit in range(20):
        barrier.wait()
        with dataset.unit_writer(unit, count=6, run_id=f"run-{noise}") as writer:
            writer.write(0, make_batch(unit * 6, 6, noise=noise))
            commits.append((unit, writer.commit().run_id))
    results.put(commits)


@pytest.mark.usefixtures("local_files")
def test_racing_runs_with_other_bytes_leave_what_the_winner_recorded(make) -> None:
    dataset = make()
    dataset.grow(120)
    barrier, results = FORK.Barrier(3), FORK.Queue()
    runs = [FORK.Process(target=_race, args=(dataset.url, i, barrier, results)) for i in range(3)]
    for run in runs:
        run.start()
    told = [results.get(timeout=60) for _ in runs]
    for run in runs:
        run.join()
    assert told[0] == told[1] == told[2]  # all were told of the same winners
    assert len({run_id for _, run_id in told[0]}) > 1 or os.cpu_count() == 1
    for commit in dataset.committed().values():
        assert dataset.store.problems(commit, quick=False) == []
    dataset.sweep()
    assert all_keys(dataset) == expected_keys(dataset)


@pytest.mark.parametrize("kind", ["crash", "disk full", "no permission"])
def test_a_failure_at_any_step_loses_nothing(make, store: str, kind: str) -> None:
    few, small = 8, {"levels": LEVELS[:1], "masks": False, "fsync": kind == "disk full"}
    reference = make("reference", **small)
    steps = count_steps(lambda: fill(reference, few))
    assert steps > 60
    errors = {"crash": Crash, "disk full": no_space, "no permission": no_permission}
    for at in range(1, steps + 1, _stride(store, kind)):
        dataset = make(f"step-{at}", **small)
        with fault(at, errors[kind]()) as injected, contextlib.suppress(Crash, DataError):
            fill(dataset, few, run_id="broken")
            # The others are reported. A reader's mark goes when Python collects what read.
            assert injected.log[at - 1].startswith(("remove staging/", "remove pins/readers/"))
        dataset = Dataset.open(dataset.url, fsync=False)
        for commit in dataset.committed().values():  # what is committed is whole
            assert dataset.store.problems(commit, quick=False) == [], at
        shown = dataset.snapshot()
        assert shown.valid[shown.present].all()
        _forget_owner(dataset)
        fill(dataset, few, run_id="again")
        assert data_files(dataset) == data_files(reference), at
        assert all_keys(dataset) == expected_keys(dataset), at
        assert dataset.snapshot().num_samples == few


def _stride(store: str, kind: str) -> int:
    """Choose how many steps lie between two that fail: formats share the code of most steps."""
    if " in " in store:  # every step there is a request, and slow
        return {"crash": 5, "disk full": 23, "no permission": 29}[kind]
    return 1 if (store, kind) == ("zarr", "crash") else 5


def _forget_owner(dataset: Dataset) -> None:
    """Make what a simulated crash left look as if its process had died: this one still lives."""
    dead = f"{owner().split('-')[0]}-999999999-1"
    for key in list(dataset.files.walk("staging")):
        data = dataset.files.read(key)
        if key.endswith(".lease"):
            dataset.files.write(key, f'{{"owner": "{dead}"}}'.encode())
        elif owner() in key:
            dataset.files.remove(key)
            dataset.files.write(key.replace(owner(), dead), data)


def _run_slowly(url: str, ready) -> None:
    dataset = Dataset.open(url, fsync=False)
    dataset.grow(600)
    with dataset.lease("killed"):
        for unit in dataset.missing(600).tolist():
            write_unit(dataset, unit, num_samples=600, run_id="killed")
            ready.set()
            dataset.roll_up(final=unit % 10 == 0)


@pytest.mark.usefixtures("local_files")
def test_sigkill_and_rerun_give_the_same_bytes_and_no_orphans(make) -> None:
    reference = make("reference")
    fill(reference, 600)
    dataset = make("killed")
    rng = np.random.default_rng(0)
    for attempt in range(6):
        ready = FORK.Event()
        run = FORK.Process(target=_run_slowly, args=(dataset.url, ready))
        run.start()
        ready.wait(30)
        time.sleep(float(rng.uniform(0, 0.15)))
        assert run.pid is not None
        os.kill(run.pid, signal.SIGKILL)
        run.join()
        for commit in dataset.committed().values():
            assert dataset.store.problems(commit, quick=True) == [], attempt
    fill(dataset, 600, run_id="again")
    assert data_files(dataset) == data_files(reference)
    assert all_keys(dataset) == expected_keys(dataset)


def test_a_live_runs_files_are_left_alone(make) -> None:
    dataset = make()
    dataset.grow(N)
    with dataset.lease("alive"):
        writer = dataset.unit_writer(1, count=6, run_id="alive")
        writer.write(0, make_batch(6, 6))
        fill(Dataset.open(dataset.url, fsync=False), 6, run_id="other")
        assert writer.commit().run_id == "alive"
    assert dataset.snapshot().units.tolist() == [0, 1]
    assert all_keys(dataset) == expected_keys(dataset)


def test_a_withdrawn_unit_is_made_again_alone(make) -> None:
    dataset = make()
    fill(dataset, N)
    before, version = data_files(dataset), dataset.snapshot().version
    key = dataset.store.unit_keys(1)[0]
    dataset.files.write(key, b"\xff" * len(dataset.files.read(key)))
    assert dataset.invalidate(1)
    assert not dataset.invalidate(1)
    assert dataset.snapshot().holes == (1,)
    with pytest.raises(DataError, match="withdrawn since"):
        dataset.snapshot(version)
    assert fill(dataset, N, run_id="again") == [1]
    assert data_files(dataset) == before
    assert dataset.snapshot().holes == ()
    assert dataset.snapshot(version).num_samples == N  # the same bytes are the same snapshot
    assert dataset.snapshot().keys == [f"key/{index}" for index in range(N)]


def test_a_reader_keeps_its_snapshot_while_a_writer_extends(make) -> None:
    dataset = make()
    fill(dataset, 12)
    snapshot = dataset.snapshot()
    fill(dataset, N, invalid=(13,))
    assert snapshot.num_samples == 12 and len(snapshot.valid) == 12 and snapshot.valid.all()
    assert len(snapshot.keys) == 12


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda b: b.levels.pop("emb"), "got levels"),
        (lambda b: b.levels.update(emb=b.levels["emb"][:, :4]), "got shape"),
        (lambda b: b.levels.update(top=b.levels["top"].astype("int64")), "got int64"),
        (lambda b: b.levels.update(emb=b.levels["top"][:, [0, 0, 0, 0, 0]]), "floating point"),
        (lambda b: b.index.__setitem__(0, 5), "got indices"),
        (lambda b: b.key.pop(), "keys for"),
        (lambda b: setattr(b, "image", None), "image: got nothing"),
        (lambda b: setattr(b, "image", b.image.astype(np.int16)), "got int16"),
        (lambda b: b.levels["up.1.t100"].__setitem__((2, 0), 1e6), r"row 2: got 1e\+06"),
        (lambda b: b.levels["up.1.t100"].__setitem__((3, 0), np.nan), "row 3: got nan"),
        (lambda b: b.levels["emb"].__setitem__((1, 0), -np.inf), "row 1: got -inf"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_and_leaves_nothing(make, change, text: str) -> None:
    dataset = make()
    dataset.grow(6)
    with dataset.lease("run"):
        writer = dataset.unit_writer(0, count=6, run_id="run")
        batch = make_batch(0, 6)
        change(batch)
        with pytest.raises(DataError, match=text):
            writer.write(0, batch)
        with pytest.raises(DataError, match="closed"):
            writer.commit()
    assert all_keys(dataset) == expected_keys(dataset)
    assert dataset.committed() == {}


def test_values_of_invalid_rows_do_not_matter(make) -> None:
    dataset = make()
    dataset.grow(6)
    batch = make_batch(0, 6, invalid=(2,))
    batch.levels["up.1.t100"][2] = np.nan
    batch.levels["emb"][2] = np.inf
    with dataset.unit_writer(0, count=6, run_id="run") as writer:
        writer.write(0, batch)
        commit = writer.commit()
    rows = read_rows(dataset.snapshot(), "emb", range(6))
    assert np.isnan(rows[2]).all() and np.isfinite(np.delete(rows, 2, axis=0)).all()
    assert dataset.store.problems(commit, quick=False) == []
    assert commit.invalid == [2] and commit.errors == {2: "truncated"}


def test_rows_must_come_in_order_and_all(make) -> None:
    dataset = make()
    writer = dataset.unit_writer(0, count=6, run_id="run")
    writer.write(0, make_batch(0, 4))
    with pytest.raises(DataError, match="5 rows|4 rows"):
        writer.commit()
    writer.abort()
    writer = dataset.unit_writer(0, count=6, run_id="run")
    with pytest.raises(DataError, match=r"allowed from 0 on"):
        writer.write(2, make_batch(2, 4))
    with pytest.raises(DataError, match="allowed 1..6"):
        dataset.unit_writer(0, count=7, run_id="run")
    assert [level.name for level in dataset.levels] == [level.name for level in LEVELS]
