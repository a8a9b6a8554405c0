import json
import os
import time
from pathlib import Path

import pytest

from dreamshard.errors import DataError
from storage.dataset import Dataset
from storage.fs.owners import host_id, owner
from storage.ledger import leases, publish
from tests.feature_store import all_keys, expected_keys, make_batch, make_dataset

DEAD = f"{host_id()}-999999999-1"
ELSEWHERE = "000000000000-1-1"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path)


def leave_run(dataset: Dataset, run_id: str, by: str | None, *, age: float = 0) -> str:
    key = f"staging/{run_id}/000000000~x.image"
    dataset.files.write(key, b"leftover")
    if by is not None:
        dataset.files.write(f"staging/{run_id}.lease", json.dumps({"owner": by}).encode())
        then = time.time() - age
        os.utime(dataset.files.path(f"staging/{run_id}.lease"), (then, then))
    return key


@pytest.mark.parametrize(
    ("by", "age", "stays"),
    [
        (None, 0, False),
        (DEAD, 0, False),
        (ELSEWHERE, 0, True),
        (ELSEWHERE, 100, False),
        ("nonsense", 0, True),
    ],
)
def test_only_dead_runs_are_swept(
    dataset: Dataset, by: str | None, age: float, stays: bool
) -> None:
    key = leave_run(dataset, "r", by, age=age)
    removed = dataset.sweep()
    assert (dataset.files.size(key) is not None) == stays
    assert (removed == 0) == stays
    if not stays:
        assert all_keys(dataset) == expected_keys(dataset)
        assert not os.path.exists(dataset.files.path("staging"))


def test_a_damaged_lease_counts_as_alive_until_it_is_old(dataset: Dataset) -> None:
    key = leave_run(dataset, "r", ELSEWHERE)
    dataset.files.write("staging/r.lease", b"[]")
    assert dataset.sweep() == 0 and dataset.files.size(key)
    os.utime(dataset.files.path("staging/r.lease"), (1, 1))
    assert dataset.sweep() == 2


def test_temporary_records_of_the_dead_are_swept(dataset: Dataset) -> None:
    for by in (DEAD, ELSEWHERE, owner()):
        dataset.files.write(f"staging/put/{by}.7", b"x")
    old = dataset.files.path(f"staging/put/{ELSEWHERE}.8")
    Path(old).write_bytes(b"x")
    os.utime(old, (1, 1))
    assert dataset.sweep() == 2
    assert sorted(dataset.files.names("staging/put")) == sorted([f"{ELSEWHERE}.7", f"{owner()}.7"])


def test_a_lease_beats_and_is_given_back(dataset: Dataset, monkeypatch) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.02)
    with dataset.lease("r"):
        key = "staging/r.lease"
        os.utime(dataset.files.path(key), (1, 1))
        deadline = time.monotonic() + 5
        while dataset.files.modified(key) == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - (dataset.files.modified(key) or 0) < 5
        dataset.files.remove(key)  # swept while this run was paused: it comes back
        while dataset.files.size(key) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert dataset.files.size(key) is not None
    assert all_keys(dataset) == expected_keys(dataset)


def test_one_run_of_a_name_at_a_time(dataset: Dataset) -> None:
    with dataset.lease("r"), pytest.raises(DataError, match="live run of this name"):
        dataset.lease("r").__enter__()
    leave_run(dataset, "r", DEAD)
    with dataset.lease("r"):  # the dead one of that name is swept first
        assert not dataset.files.names("staging/r")


def test_leaving_by_an_error_removes_the_runs_files(dataset: Dataset) -> None:
    with pytest.raises(KeyboardInterrupt), dataset.lease("r"):
        writer = dataset.unit_writer(0, count=6, run_id="r")
        writer.write(0, make_batch(0, 6))
        raise KeyboardInterrupt
    assert all_keys(dataset) == expected_keys(dataset)


def test_live_leases_and_live_claims_are_signs_of_life(dataset: Dataset) -> None:
    """A process that moves files without a lease, as `verify --repair` may, is at work, too."""
    files = dataset.files
    files.write(f"{publish.CLAIMS}/000000003~{DEAD}~0", b"{}")
    leave_run(dataset, "dead", DEAD)
    assert not leases.has_live_run(files)
    with publish.claim(files, 0):
        assert leases.has_live_run(files)
    assert not leases.has_live_run(files)
    leave_run(dataset, "elsewhere", ELSEWHERE)
    assert leases.has_live_run(files)
    leave_run(dataset, "elsewhere", ELSEWHERE, age=100)
    assert not leases.has_live_run(files)


@pytest.mark.parametrize("run_id", ["claims", "put", "../x", ".r", "a/b", ""])
def test_run_ids_that_could_do_harm_are_refused(dataset: Dataset, run_id: str) -> None:
    with pytest.raises(DataError, match="run_id"):
        dataset.lease(run_id)
