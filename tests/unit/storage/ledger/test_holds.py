import asyncio
import gc
import os
import threading
from pathlib import Path

import pytest

from dreamshard.errors import DataError
from dreamshard.owner.processes import host_id
from storage.dataset import Dataset
from storage.ledger import holds
from storage.ledger.leases import watch_until_known
from tests.feature_store import all_keys, expected_keys, fill, make_dataset, stop_clocks

DEAD = f"{host_id()}-999999999-1"
ELSEWHERE = "000000000000-1-1"


class Reader:
    """Whatever reads."""


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = make_dataset(tmp_path)
    fill(dataset, 6)
    return dataset


def leave(dataset: Dataset, folder: str, name: str) -> str:
    dataset.files.write(f"{folder}/{name}", b"{}")
    return f"{folder}/{name}"


def test_a_reader_that_is_collected_in_an_event_loop_leaves_by_another_thread(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the thread of an object store, which refuses to wait for itself."""
    gc.collect()  # readers of before
    remove, reader = dataset.files.remove, Reader()
    ended: list[str] = []

    def of_a_store(key: str) -> None:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        remove(key)
        ended.append(key)

    monkeypatch.setattr(dataset.files, "remove", of_a_store)
    holds.hold_for(reader, dataset.files)
    readers = [reader]
    del reader

    async def collect() -> None:
        readers.clear()
        gc.collect()

    with holds._guard:  # whoever has it may be waiting for that very loop
        asyncio.run(collect())
    for thread in threading.enumerate():
        if thread.name == "reading ends":
            thread.join(60)
    assert ended and not dataset.files.names(holds.READERS)


def test_readers_of_a_process_share_one_hold(dataset: Dataset, monkeypatch) -> None:
    monkeypatch.setattr(holds, "_run", ["reader"])
    holds.name_readers("train-7")
    one, two = Reader(), Reader()
    holds.hold_for(one, dataset.files)
    holds.hold_for(two, Dataset.open(dataset.url).files)
    assert holds.readers(dataset.files) == ["train-7"]
    assert len(dataset.files.names(holds.READERS)) == 1
    del one
    gc.collect()
    assert holds.readers(dataset.files) == ["train-7"]
    del two
    gc.collect()
    assert holds.readers(dataset.files) == []
    assert all_keys(dataset) == expected_keys(dataset) and "pins" not in dataset.files.names("")
    with pytest.raises(DataError, match="name of a reader"):
        holds.name_readers("../x")


def test_a_dead_readers_hold_ends(dataset: Dataset, monkeypatch) -> None:
    clock, files = stop_clocks(monkeypatch), dataset.files
    leave(dataset, holds.READERS, f"a~{DEAD}~0")
    key = leave(dataset, holds.READERS, f"b~{ELSEWHERE}~0")
    assert holds.readers(files) == ["b"] and holds.unknown(files)
    assert dataset.sweep() == 1
    clock.seconds += 0.9 * holds.HOLD_TTL_S
    files.touch(key)
    assert holds.readers(files) == ["b"] and not holds.unknown(files)
    clock.seconds += 0.9 * holds.HOLD_TTL_S
    assert holds.readers(files) == ["b"]
    clock.seconds += 0.2 * holds.HOLD_TTL_S
    assert holds.readers(files) == [] and dataset.sweep() == 1


def test_other_hosts_readers_are_watched(dataset: Dataset, monkeypatch) -> None:
    clock = stop_clocks(monkeypatch)
    leave(dataset, holds.READERS, f"b~{ELSEWHERE}~0")
    watch_until_known([dataset.files])
    assert clock.seconds >= 1000 + holds.HOLD_TTL_S and holds.readers(dataset.files) == []


def test_a_hold_that_was_swept_comes_back_if_the_dataset_is_there(dataset: Dataset) -> None:
    reading = holds.Reading(dataset.files)
    dataset.files.remove(reading.key)
    reading.beat()
    assert holds.readers(dataset.files) == ["reader"]
    dataset.files.remove(reading.key)
    dataset.files.remove("dataset.json")
    reading.beat()
    assert holds.readers(dataset.files) == []
    reading.end()


def test_where_one_may_only_read_reading_goes_on(dataset: Dataset, monkeypatch, caplog) -> None:
    def refuse(*_: object, **__: object) -> bool:
        raise DataError("cannot write: Read-only file system")

    monkeypatch.setattr(dataset.files, "write", refuse)
    reader = Reader()
    holds.hold_for(reader, dataset.files)
    assert "cannot be told that it is read" in caplog.text
    del reader


def test_a_forked_process_leaves_its_parents_hold_alone(dataset: Dataset) -> None:
    reader = Reader()
    holds.hold_for(reader, dataset.files)
    pid = os.fork()
    if pid == 0:
        own = Reader()
        holds.hold_for(own, dataset.files)
        two = len(dataset.files.names(holds.READERS)) == 2
        del reader, own
        gc.collect()
        os._exit(0 if two and len(dataset.files.names(holds.READERS)) == 1 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert holds.readers(dataset.files) == ["reader"]


def test_a_removal_that_died_stops_nobody(dataset: Dataset, monkeypatch) -> None:
    clock, files = stop_clocks(monkeypatch), dataset.files
    leave(dataset, holds.REMOVALS, f"{DEAD}~0")
    assert holds.pin(files, name="a", reason="") and clock.seconds == 1000
    leave(dataset, holds.REMOVALS, f"{ELSEWHERE}~0")
    assert holds.pin(files, name="b", reason="")
    assert holds.HOLD_TTL_S <= clock.seconds - 1000 < holds.HOLD_TTL_S + 1
    assert files.names(holds.REMOVALS) == [] and holds.pins(files) == ["a", "b"]
