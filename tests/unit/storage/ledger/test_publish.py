import os
import time
from pathlib import Path

import pytest

from dreamshard.errors import DataError
from storage.dataset import Dataset
from storage.fs.owners import host_id
from storage.ledger import publish
from storage.ledger.commits import latest_version, withdraw
from tests.feature_store import (
    all_keys,
    data_files,
    expected_keys,
    make_batch,
    make_dataset,
    no_space,
    write_unit,
)

DEAD = f"{host_id()}-999999999-1"
ELSEWHERE = "000000000000-1-1"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = make_dataset(tmp_path)
    dataset.grow(20)
    return dataset


def leave_claim(dataset: Dataset, unit: int, owner: str) -> str:
    key = f"{publish.CLAIMS}/{unit:09d}~{owner}~0"
    dataset.files.write(key, b"{}")
    return key


def test_a_dead_runs_claim_is_passed_over(dataset: Dataset) -> None:
    key = leave_claim(dataset, 0, DEAD)
    started = time.monotonic()
    write_unit(dataset, 0, num_samples=20)
    assert time.monotonic() - started < 5
    assert publish.dead_claims(dataset.files) == [(key, 0)]


def test_another_hosts_claim_is_waited_for(dataset: Dataset, monkeypatch) -> None:
    monkeypatch.setattr(publish, "CLAIM_TTL_S", 0.3)
    started = time.monotonic()  # a claim's age counts from when it was made
    leave_claim(dataset, 0, ELSEWHERE)
    leave_claim(dataset, 1, ELSEWHERE)  # another unit's: no matter
    write_unit(dataset, 0, num_samples=20)
    assert time.monotonic() - started >= 0.2  # it waited; file times are coarser than clocks
    assert dataset.committed().keys() == {0}


def test_a_claim_that_is_renewed_stays_alive(dataset: Dataset, monkeypatch) -> None:
    monkeypatch.setattr(publish, "CLAIM_TTL_S", 0.2)
    key = leave_claim(dataset, 0, ELSEWHERE)
    watch = publish._Watch(dataset.files, 0, "other")
    for _ in range(5):
        os.utime(dataset.files.path(key))
        time.sleep(0.1)
        assert len(watch.rivals()) == 1
    time.sleep(0.25)
    assert watch.rivals() == []


def test_two_claims_in_one_process_exclude_each_other(dataset: Dataset) -> None:
    with publish.claim(dataset.files, 0):
        assert publish._Watch(dataset.files, 0, "other").rivals()
        with publish.claim(dataset.files, 1):
            pass
    assert not publish._Watch(dataset.files, 0, "other").rivals()


def test_old_claims_of_other_hosts_are_dead(dataset: Dataset) -> None:
    old, new = leave_claim(dataset, 3, ELSEWHERE), leave_claim(dataset, 4, ELSEWHERE)
    os.utime(dataset.files.path(old), (1, 1))
    assert publish.dead_claims(dataset.files) == [(old, 3)]
    started = time.monotonic()
    dataset.sweep()
    write_unit(dataset, 3, num_samples=20)
    assert time.monotonic() - started < 5
    assert all_keys(dataset) - expected_keys(dataset) == {new}


def test_a_failure_between_moves_takes_back_what_was_moved(dataset: Dataset, monkeypatch) -> None:
    rename, moved = dataset.files.rename, []

    def fail_later(source: str, target: str) -> None:
        if target.startswith("data.zarr"):
            moved.append(target)
            if len(moved) == 3:
                raise DataError("full") from no_space()
        rename(source, target)

    monkeypatch.setattr(dataset.files, "rename", fail_later)
    with pytest.raises(DataError, match="full"):
        write_unit(dataset, 0, num_samples=20)
    dataset.sweep()
    assert all_keys(dataset) == expected_keys(dataset) and data_files(dataset) == {}


def test_a_failure_while_a_unit_is_replaced_keeps_it(dataset: Dataset, monkeypatch) -> None:
    dataset.grow(8)
    write_unit(dataset, 1, num_samples=8)
    link = dataset.files.link

    def fail(source: str, target: str) -> bool:
        if target.startswith("commits/revised"):
            raise DataError("full")
        return link(source, target)

    monkeypatch.setattr(dataset.files, "link", fail)
    with pytest.raises(DataError, match="full"):
        write_unit(dataset, 1, num_samples=12)
    commit = dataset.committed()[1]
    assert commit.count == 2
    # The moved files hold the same first rows, so the older record still tells the truth.
    assert dataset.store.problems(commit, quick=False) == []


def test_a_run_that_died_while_it_replaced_a_unit_with_other_bytes(dataset: Dataset) -> None:
    dataset.grow(8)
    write_unit(dataset, 1, num_samples=8)
    key = dataset.store.unit_keys(1)[0]
    dataset.files.write(key, bytes(dataset.files.size(key) or 0))
    claim = leave_claim(dataset, 1, DEAD)
    dataset.sweep()
    assert dataset.committed() == {} and dataset.files.size(claim) is None
    assert dataset.missing(8).tolist() == [0, 1]


def test_a_run_that_died_after_its_commit_leaves_a_good_unit(dataset: Dataset) -> None:
    write_unit(dataset, 0, num_samples=20)
    leave_claim(dataset, 0, DEAD)
    assert dataset.sweep() == 1
    assert dataset.committed().keys() == {0}


def test_a_run_that_slept_too_long_gives_up(dataset: Dataset, monkeypatch) -> None:
    monkeypatch.setattr(publish.Claim, "fresh", lambda self: False)
    with pytest.raises(DataError, match="took the unit over"):
        write_unit(dataset, 0, num_samples=20)
    assert dataset.committed() == {} and data_files(dataset) == {}


@pytest.mark.parametrize(("slept_s", "gives_up"), [(0.4, False), (0.6, True)])
def test_a_claim_is_fresh_for_half_its_time(
    dataset: Dataset, monkeypatch, slept_s: float, gives_up: bool
) -> None:
    """By then no other run can have taken it for dead, whatever the clocks' differences."""
    rename, slept = dataset.files.rename, [0.0]

    def sleep_while_moving(source: str, target: str) -> None:
        rename(source, target)
        slept[0] = slept_s * publish.CLAIM_TTL_S

    real = time.time
    monkeypatch.setattr(publish.time, "time", lambda: real() + slept[0])
    monkeypatch.setattr(dataset.files, "rename", sleep_while_moving)
    if not gives_up:
        assert write_unit(dataset, 0, num_samples=20) == dataset.committed()[0]
        return
    with pytest.raises(DataError, match="took the unit over"):
        write_unit(dataset, 0, num_samples=20)
    assert dataset.committed() == {} and data_files(dataset) == {}
    slept_s = 0
    slept[0] = 0
    assert write_unit(dataset, 0, num_samples=20).run_id == "run"


@pytest.mark.parametrize("same_bytes", [True, False])
def test_a_sleeper_that_overwrites_a_winner(dataset: Dataset, monkeypatch, same_bytes) -> None:
    rename = dataset.files.rename

    def sleep_first(source: str, target: str) -> None:
        """Before the first move, another run takes this one for dead and commits the unit."""
        if target.startswith("data.zarr"):
            monkeypatch.setattr(dataset.files, "rename", rename)
            claims = dataset.files.names(publish.CLAIMS)
            for claim in claims:
                rename(f"{publish.CLAIMS}/{claim}", f"aside/{claim}")
            noise = 0 if same_bytes else 1
            write_unit(dataset, 0, num_samples=20, run_id="winner", noise=noise)
            for claim in claims:
                rename(f"aside/{claim}", f"{publish.CLAIMS}/{claim}")
        rename(source, target)

    monkeypatch.setattr(dataset.files, "rename", sleep_first)
    if same_bytes:
        assert write_unit(dataset, 0, num_samples=20).run_id == "winner"
        assert dataset.store.problems(dataset.committed()[0], quick=False) == []
        return
    with pytest.raises(DataError, match="took the unit over"):
        write_unit(dataset, 0, num_samples=20)
    assert dataset.committed() == {} and dataset.missing(6).tolist() == [0]


def test_the_winner_checks_that_the_files_are_still_its_own(dataset: Dataset, monkeypatch) -> None:
    link = dataset.files.link

    def clobber(source: str, target: str) -> bool:
        if target.startswith("commits/000000"):
            key = dataset.store.unit_keys(0)[1]
            dataset.files.write(key, bytes(dataset.files.size(key) or 0))
        return link(source, target)

    monkeypatch.setattr(dataset.files, "link", clobber)
    with pytest.raises(DataError, match="took the unit over"):
        write_unit(dataset, 0, num_samples=20)
    assert latest_version(dataset.files, 0) == (0, False)
    monkeypatch.setattr(dataset.files, "link", link)
    assert write_unit(dataset, 0, num_samples=20).version == 1
    assert dataset.missing(6).tolist() == []


def test_swept_files_are_an_error_that_says_so(dataset: Dataset) -> None:
    writer = dataset.unit_writer(0, count=6, run_id="unleased")
    writer.write(0, make_batch(0, 6))
    dataset.sweep()
    with pytest.raises(DataError, match="swept"):
        writer.commit()


def test_versions_go_on_after_a_withdrawal(dataset: Dataset) -> None:
    assert write_unit(dataset, 0, num_samples=20).version == 0
    assert write_unit(dataset, 0, num_samples=20, run_id="late").run_id == "run"
    withdraw(dataset.files, 0, 0, reason="test")
    assert write_unit(dataset, 0, num_samples=20, run_id="second").version == 1
    withdraw(dataset.files, 0, 1, reason="test")
    assert write_unit(dataset, 0, num_samples=20, run_id="third").version == 2
    assert dataset.committed()[0].run_id == "third"
