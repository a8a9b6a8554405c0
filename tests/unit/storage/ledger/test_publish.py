import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dreamshard.errors import DataError
from dreamshard.owner.processes import host_id
from storage.dataset import Dataset
from storage.ledger import evidence, publish
from storage.ledger.commits import latest_version, withdraw
from tests.feature_store import (
    all_keys,
    data_files,
    expected_keys,
    make_batch,
    make_dataset,
    no_space,
    stop_clocks,
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
    clock = stop_clocks(monkeypatch)
    leave_claim(dataset, 0, ELSEWHERE)
    leave_claim(dataset, 1, ELSEWHERE)  # another unit's: no matter
    write_unit(dataset, 0, num_samples=20)
    assert publish.CLAIM_TTL_S <= clock.seconds - 1000 < publish.CLAIM_TTL_S + 1
    assert dataset.committed().keys() == {0}


@pytest.mark.parametrize("file_time", [1.0, 4e9])
def test_a_claim_that_is_renewed_stays_alive(
    dataset: Dataset, monkeypatch, file_time: float
) -> None:
    """Whatever the clock says that its times come from."""
    clock = stop_clocks(monkeypatch)
    key = leave_claim(dataset, 0, ELSEWHERE)
    for beat in range(5):
        os.utime(dataset.files.path(key), (file_time - beat, file_time - beat))
        assert publish.rivals(dataset.files, 0, "other") == [key]
        clock.seconds += 0.9 * publish.CLAIM_TTL_S
    assert publish.rivals(dataset.files, 0, "other") == [key]
    clock.seconds += 0.2 * publish.CLAIM_TTL_S
    assert publish.rivals(dataset.files, 0, "other") == []


def test_two_claims_in_one_process_exclude_each_other(dataset: Dataset) -> None:
    with publish.claim(dataset.files, 0):
        assert publish.rivals(dataset.files, 0, "other")
        with publish.claim(dataset.files, 1):
            pass
    assert not publish.rivals(dataset.files, 0, "other")


def test_claims_of_other_hosts_are_dead_when_watched_for_long(
    dataset: Dataset, monkeypatch
) -> None:
    clock = stop_clocks(monkeypatch)
    old, new = leave_claim(dataset, 3, ELSEWHERE), leave_claim(dataset, 4, ELSEWHERE)
    os.utime(dataset.files.path(old), (1, 1))
    assert publish.dead_claims(dataset.files) == [] and publish.unknown_claims(dataset.files)
    clock.seconds += publish.CLAIM_TTL_S
    dataset.files.touch(new)
    assert publish.dead_claims(dataset.files) == [(old, 3)]
    assert not publish.unknown_claims(dataset.files)
    dataset.sweep()
    write_unit(dataset, 3, num_samples=20)
    assert all_keys(dataset) - expected_keys(dataset) == {new}
    assert clock.seconds == 1000 + publish.CLAIM_TTL_S


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


def paused_while_moving(dataset: Dataset, monkeypatch, pause: Callable[[], None]) -> None:
    """Stop a process, its heart beat too, when all its files are moved."""
    rename, moved = dataset.files.rename, []

    def stop(source: str, target: str) -> None:
        rename(source, target)
        if target.startswith("data.zarr"):
            moved.append(target)
            if len(moved) == len(dataset.arrays):
                pause()

    monkeypatch.setattr(dataset.files, "rename", stop)


@pytest.mark.parametrize("slept_s", [0.4, 0.6, 20.0])
def test_a_run_alone_keeps_its_claim_however_long_it_slept(
    dataset: Dataset, monkeypatch, slept_s: float
) -> None:
    clock = stop_clocks(monkeypatch)
    paused_while_moving(dataset, monkeypatch, lambda: clock.sleep(slept_s * publish.CLAIM_TTL_S))
    assert write_unit(dataset, 0, num_samples=20) == dataset.committed()[0]
    assert all_keys(dataset) == expected_keys(dataset)


@pytest.mark.parametrize("stays", [True, False])
def test_a_run_that_slept_looks_for_others(dataset: Dataset, monkeypatch, stays: bool) -> None:
    """Another one that came meanwhile and is still at work has the unit; one that left has not."""
    clock, left = stop_clocks(monkeypatch), []

    def pause() -> None:
        clock.seconds += publish.CLAIM_TTL_S
        left.append(leave_claim(dataset, 0, ELSEWHERE))

    def sleep(seconds: float) -> None:
        clock.seconds += seconds
        if not stays:
            dataset.files.remove(left[0])

    paused_while_moving(dataset, monkeypatch, pause)
    monkeypatch.setattr(evidence, "sleep", sleep)
    if not stays:
        assert write_unit(dataset, 0, num_samples=20) == dataset.committed()[0]
        return
    with pytest.raises(DataError, match="took the unit over"):
        write_unit(dataset, 0, num_samples=20)
    assert dataset.committed() == {} and data_files(dataset) == {}


@pytest.mark.parametrize("when", ["at once", "at the end"])
def test_a_run_that_slept_and_was_swept_gives_up(dataset: Dataset, monkeypatch, when) -> None:
    clock = stop_clocks(monkeypatch)

    def pause() -> None:
        clock.seconds += publish.CLAIM_TTL_S if when == "at once" else 0
        for name in dataset.files.names(publish.CLAIMS):
            dataset.files.remove(f"{publish.CLAIMS}/{name}")

    paused_while_moving(dataset, monkeypatch, pause)
    with pytest.raises(DataError, match="took the unit over"):
        write_unit(dataset, 0, num_samples=20)
    assert dataset.committed() == {} and data_files(dataset) == {}


def test_claims_are_renewed_while_a_slow_disk_is_waited_for(dataset: Dataset, monkeypatch) -> None:
    monkeypatch.setattr(publish, "CLAIM_TTL_S", 0.3)
    seen: list[list[str]] = []

    def wait() -> None:
        for _ in range(8):
            time.sleep(0.1)
            seen.append(publish.rivals(dataset.files, 0, "other"))

    paused_while_moving(dataset, monkeypatch, wait)
    assert write_unit(dataset, 0, num_samples=20) == dataset.committed()[0]
    assert all(len(claims) == 1 for claims in seen)


def test_a_store_that_cannot_be_reached_for_long_ends_the_claim(
    dataset: Dataset, monkeypatch
) -> None:
    clock = stop_clocks(monkeypatch)

    def fail(_key: str) -> None:
        raise OSError("gone")

    with publish.claim(dataset.files, 0) as held:
        monkeypatch.setattr(dataset.files, "touch", fail)
        held.beat()
        assert held.holds()
        clock.seconds += publish.CLAIM_TTL_S
        assert not held.holds()


def test_an_overwritten_winner_is_withdrawn_by_a_run_that_gives_up(
    dataset: Dataset, monkeypatch
) -> None:
    """The loser found out before it came to its own record: the winner's must not stay."""
    paused_while_moving(dataset, monkeypatch, lambda: None)
    link, files = dataset.files.link, dataset.files

    def lose(source: str, target: str) -> bool:
        other = make_dataset(Path(dataset.url).parent)
        staged = dict(data_files(dataset))
        for key in staged:  # the winner's files were there, and are overwritten
            files.remove(key)
        for name in files.names(publish.CLAIMS):
            files.remove(f"{publish.CLAIMS}/{name}")
        monkeypatch.undo()
        write_unit(other, 0, num_samples=20, run_id="winner", noise=1)
        for key, path in ours.items():
            os.replace(path, files.path(key))
        raise FileNotFoundError

    ours: dict[str, str] = {}
    rename = dataset.files.rename

    def keep(source: str, target: str) -> None:
        rename(source, target)
        if target.startswith("data.zarr"):
            ours[target] = f"{dataset.url}/../{len(ours)}.kept"
            os.link(files.path(target), ours[target])

    monkeypatch.setattr(dataset.files, "rename", keep)
    monkeypatch.setattr(
        dataset.files, "link", lambda s, t: lose(s, t) if "commits" in t else link(s, t)
    )
    with pytest.raises(DataError, match="took the unit over"):
        write_unit(dataset, 0, num_samples=20)
    assert latest_version(dataset.files, 0) == (0, False)


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
