import dataclasses
from pathlib import Path

import numpy as np
import pytest

from storage.dataset import Dataset
from storage.ledger import book as ledger
from storage.ledger import commits
from storage.ledger.book import UNKNOWN, UnitTable, latest_rows, read_ledger
from storage.ledger.commits import Commit, record_key
from tests.feature_store import fill, make_dataset, write_unit


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path)


def test_an_empty_dataset_misses_everything(dataset: Dataset) -> None:
    book = read_ledger(dataset.files)
    assert len(book.current) == 0 and book.pending == [] and book.parts == 0
    assert dataset.missing(13).tolist() == [0, 1, 2]
    assert dataset.missing(0).tolist() == []


def test_latest_rows() -> None:
    unit, version = np.array([3, 1, 3, 2, 1]), np.array([0, 1, 2, 0, 0])
    assert latest_rows(unit, version).tolist() == [1, 3, 2]
    assert latest_rows(unit[:0], version[:0]).tolist() == []


def test_the_manifest_and_the_records_count_alike(dataset: Dataset) -> None:
    fill(dataset, 12)
    dataset.grow(30)
    write_unit(dataset, 3, num_samples=30)
    book = read_ledger(dataset.files)
    assert book.done.tolist() == [0, 1, 3]
    assert book.current.count.tolist() == [6, 6, UNKNOWN]
    assert book.pending == [(3, 0)] and book.parts == 1
    assert dataset.missing(30).tolist() == [2, 4]


def test_a_partial_unit_is_missing_once_the_source_grew(dataset: Dataset) -> None:
    dataset.grow(8)
    write_unit(dataset, 1, num_samples=8)
    assert dataset.missing(8).tolist() == [0]
    assert dataset.missing(7).tolist() == [0]
    assert dataset.missing(9).tolist() == [0, 1]
    fill(dataset, 8)
    assert dataset.missing(9).tolist() == [1]  # from the manifest, too


def test_withdrawn_units_are_missing(dataset: Dataset) -> None:
    fill(dataset, 12)
    dataset.grow(18)
    write_unit(dataset, 2, num_samples=18)
    dataset.invalidate(0)
    dataset.invalidate(2)
    assert dataset.missing(18).tolist() == [0, 2]
    assert read_ledger(dataset.files).pending == []  # a void record is not rolled up
    assert fill(dataset, 18) == [0, 2]
    assert dataset.missing(18).tolist() == []


def test_whole_blocks_in_the_manifest_are_not_listed_again(dataset: Dataset, monkeypatch) -> None:
    for module in (commits, ledger):
        monkeypatch.setattr(module, "BLOCK_UNITS", 2)
    fill(dataset, 20)
    listed: list[str] = []
    names = dataset.files.names

    def watch(prefix: str) -> list[str]:
        listed.append(prefix)
        return names(prefix)

    monkeypatch.setattr(dataset.files, "names", watch)
    assert dataset.missing(30).tolist() == [3, 4]
    assert "commits/000000" not in listed and "commits/000001" not in listed
    dataset.grow(30)
    dataset.invalidate(0)
    write_unit(dataset, 4, num_samples=30)
    listed.clear()
    assert dataset.missing(30).tolist() == [0, 3]
    assert "commits/000002" in listed and "commits/000000" not in listed


def test_tables_of_commits() -> None:
    base = Commit(
        unit=2,
        version=0,
        first=12,
        count=2,
        bytes=10,
        digests={"a": "0" * 32},
        input_digest="",
        seconds=0.0,
        host="",
        run_id="r",
        keys=["x", "y"],
        invalid=[1],
    )
    table = UnitTable.of_commits([base, dataclasses.replace(base, unit=1)])
    assert table.unit.tolist() == [2, 1] and table.invalid.tolist() == [1, 1]
    assert table.digest[0] == base.digest.encode()
    assert table.latest().unit.tolist() == [1, 2]
    assert len(UnitTable.of_commits([])) == 0 and len(UnitTable.listed([])) == 0


def test_a_foreign_file_among_the_records_is_passed_over(dataset: Dataset) -> None:
    fill(dataset, 12)
    for name in ("commits/notes.txt", "commits/000000/README", "commits/revised/x.1.json"):
        dataset.files.write(name, b"x")
    assert dataset.missing(12).tolist() == []
    assert dataset.files.size(record_key(0, 0)) is not None
