import json
import os
import time
from pathlib import Path

import pytest

from dreamshard.errors import DataError
from dreamshard.owner.processes import host_id, owner
from storage.dataset import Dataset
from storage.ledger import leases, publish
from tests.feature_store import all_keys, expected_keys, make_batch, make_dataset, stop_clocks

DEAD = f"{host_id()}-999999999-1"
ELSEWHERE = "000000000000-1-1"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path)


def leave_run(dataset: Dataset, run_id: str, by: str | None) -> str:
    key = f"staging/{run_id}/000000000~x.image"
    dataset.files.write(key, b"leftover")
    if by is not None:
        dataset.files.write(f"staging/{run_id}.lease", json.dumps({"owner": by}).encode())
    return key


@pytest.mark.parametrize(
    ("by", "stays"),
    [(None, False), (DEAD, False), (ELSEWHERE, True), ("nonsense", True)],
)
def test_only_dead_runs_are_swept(dataset: Dataset, by: str | None, stays: bool) -> None:
    key = leave_run(dataset, "r", by)
    removed = dataset.sweep()
    assert (dataset.files.size(key) is not None) == stays
    assert (removed == 0) == stays
    if not stays:
        assert all_keys(dataset) == expected_keys(dataset)
        assert not os.path.exists(dataset.files.path("staging"))


@pytest.mark.parametrize("file_time", [1.0, 4e9])
@pytest.mark.parametrize("record", [b"[]", json.dumps({"owner": ELSEWHERE}).encode()])
def test_another_hosts_run_is_dead_when_it_was_watched_without_a_change(
    dataset: Dataset, monkeypatch, file_time: float, record: bytes
) -> None:
    """Whatever time its files bear: a clock that is wrong takes nothing from anybody."""
    clock = stop_clocks(monkeypatch)
    key = leave_run(dataset, "r", ELSEWHERE)
    lease = dataset.files.path("staging/r.lease")
    Path(lease).write_bytes(record)
    os.utime(lease, (file_time, file_time))
    for beat in range(4):
        assert dataset.sweep() == 0 and dataset.files.size(key)
        clock.seconds += 0.9 * leases.LEASE_TTL_S
        os.utime(lease, (file_time - beat, file_time - beat))  # it lives: a clock going backwards
    assert dataset.sweep() == 0
    clock.seconds += 0.9 * leases.LEASE_TTL_S
    assert dataset.sweep() == 0
    clock.seconds += 0.2 * leases.LEASE_TTL_S
    assert dataset.sweep() == 2


def test_temporary_records_of_the_dead_are_swept(dataset: Dataset, monkeypatch) -> None:
    clock = stop_clocks(monkeypatch)
    for by in (DEAD, ELSEWHERE, owner()):
        dataset.files.write(f"staging/put/{by}.7", b"x")
    os.utime(dataset.files.path(f"staging/put/{ELSEWHERE}.7"), (1, 1))
    assert dataset.sweep() == 1
    clock.seconds += 2 * leases.LEASE_TTL_S
    assert dataset.sweep() == 2  # this process's own, too: nothing of ours takes half a minute
    assert dataset.files.names("staging/put") == []


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


@pytest.mark.parametrize(
    ("first", "second"), [("proved", "proved"), ("ignored", "proved"), ("proved", "ignored")]
)
def test_one_run_at_a_time_where_a_store_does_not_say_who_was_first(
    dataset: Dataset, monkeypatch, first: str, second: str
) -> None:
    proof = {"is": first}
    monkeypatch.setattr(type(dataset.files), "proof", lambda *_, **__: proof["is"])
    with dataset.lease("one"):
        proof["is"] = second
        if first == second == "proved":
            with dataset.lease("two"):
                return
        with pytest.raises(DataError, match="one at a time"):
            dataset.lease("two").__enter__()
        assert "two.lease" not in dataset.files.names("staging")
    with dataset.lease("three"):
        assert "three.lease" in dataset.files.names("staging")


def test_leaving_by_an_error_removes_the_runs_files(dataset: Dataset) -> None:
    with pytest.raises(KeyboardInterrupt), dataset.lease("r"):
        writer = dataset.unit_writer(0, count=6, run_id="r")
        writer.write(0, make_batch(0, 6))
        raise KeyboardInterrupt
    assert all_keys(dataset) == expected_keys(dataset)


def test_live_leases_and_live_claims_are_signs_of_life(dataset: Dataset, monkeypatch) -> None:
    """A process that moves files without a lease, as `verify --repair` may, is at work, too."""
    files = dataset.files
    files.write(f"{publish.CLAIMS}/000000003~{DEAD}~0", b"{}")
    leave_run(dataset, "dead", DEAD)
    assert not leases.has_live_run(files)
    with publish.claim(files, 0):
        assert leases.has_live_run(files)
    assert not leases.has_live_run(files)
    leave_run(dataset, "elsewhere", ELSEWHERE)
    clock = stop_clocks(monkeypatch)
    assert leases.has_live_run(files)
    leases.watch_until_known([files])
    assert leases.LEASE_TTL_S <= clock.seconds - 1000 < leases.LEASE_TTL_S + 1
    assert not leases.has_live_run(files)


def test_watching_ends_as_soon_as_all_are_known(dataset: Dataset, monkeypatch) -> None:
    clock, files = stop_clocks(monkeypatch), dataset.files
    leases.watch_until_known([files])
    assert clock.seconds == 1000
    leave_run(dataset, "elsewhere", ELSEWHERE)
    files.write(f"{publish.CLAIMS}/000000003~{ELSEWHERE}~0", b"{}")

    def sleep(_seconds: float) -> None:
        clock.seconds += 5
        for key in ("staging/elsewhere.lease", f"{publish.CLAIMS}/000000003~{ELSEWHERE}~0"):
            files.touch(key)

    monkeypatch.setattr(leases.evidence, "sleep", sleep)
    leases.watch_until_known([files])
    assert clock.seconds == 1005 and leases.has_live_run(files)


def test_a_name_left_by_a_dead_run_of_another_host_can_be_used_again(
    dataset: Dataset, monkeypatch
) -> None:
    clock = stop_clocks(monkeypatch)
    leave_run(dataset, "r", ELSEWHERE)
    with dataset.lease("r"):
        assert clock.seconds >= 1000 + leases.LEASE_TTL_S
        assert not dataset.files.names("staging/r")


@pytest.mark.parametrize("run_id", ["claims", "put", "../x", ".r", "a/b", ""])
def test_run_ids_that_could_do_harm_are_refused(dataset: Dataset, run_id: str) -> None:
    with pytest.raises(DataError, match="run_id"):
        dataset.lease(run_id)
