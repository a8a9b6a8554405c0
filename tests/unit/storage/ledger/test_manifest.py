import multiprocessing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dreamshard.errors import DataError
from storage.dataset import Dataset
from storage.ledger import book as ledger
from storage.ledger import manifest
from storage.ledger.book import read_ledger
from storage.verbs.verify import verify_dataset
from tests.feature_store import (
    Crash,
    all_keys,
    expected_keys,
    fault,
    fill,
    make_dataset,
    write_unit,
)

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path)


def test_plain_pyarrow_reads_one_row_per_sample(dataset: Dataset) -> None:
    fill(dataset, 20, invalid=(7,))
    table = pq.read_table(f"{dataset.url}/manifest")
    assert table["index"].to_pylist() == list(range(20))
    assert table["key"].to_pylist() == [f"key/{i}" for i in range(20)]
    assert table["unit"].to_pylist() == [i // 6 for i in range(20)]
    assert table["label"].to_pylist() == [i % 7 for i in range(20)]
    assert table["valid"].to_pylist() == [i != 7 for i in range(20)]
    assert table["error"][7].as_py() == "truncated" and table["error"].null_count == 19
    units = pq.read_table(f"{dataset.url}/manifest/_units").to_pylist()
    commits = dataset.committed()
    assert [row["unit"] for row in units] == [0, 1, 2, 3]
    for row in units:
        commit = commits[row["unit"]]
        assert (row["count"], row["digest"], row["run_id"], row["invalid"]) == (
            commit.count,
            commit.digest,
            "run",
            len(commit.invalid),
        )


def test_rows_of_replaced_units_are_not_repeated(dataset: Dataset) -> None:
    fill(dataset, 20)
    fill(dataset, 30)
    dataset.invalidate(1)
    fill(dataset, 30)
    table = pq.read_table(f"{dataset.url}/manifest")
    assert sorted(table["index"].to_pylist()) == list(range(30))
    assert manifest.num_parts(dataset.files) == 3
    assert len(pq.read_table(f"{dataset.url}/manifest/_units")) == 4 + 2 + 1


def test_a_row_that_changed_is_listed_again(dataset: Dataset) -> None:
    fill(dataset, 12, invalid=(7,))
    assert dataset.snapshot().valid.tolist() == [i != 7 for i in range(12)]
    dataset.invalidate(1)
    fill(dataset, 12, invalid=(8,))
    table = pq.read_table(f"{dataset.url}/manifest")
    assert table["index"].to_pylist() == [*range(12), 7, 8]
    snapshot = dataset.snapshot()
    assert snapshot.valid.tolist() == [i != 8 for i in range(12)]
    assert snapshot.errors == {8: "truncated"}


def test_parts_are_rolled_while_the_run_goes_on(dataset: Dataset, monkeypatch) -> None:
    monkeypatch.setattr(ledger, "MAX_PART_UNITS", 3)
    dataset.grow(60)
    for unit in (4, 1, 7, 0, 2, 3, 5):
        write_unit(dataset, unit, num_samples=60)
        dataset._next_check = 0.0
        dataset.roll_up()
    assert manifest.num_parts(dataset.files) == 2
    assert [unit for unit, _ in read_ledger(dataset.files).pending] == [5]
    snapshot = dataset.snapshot()
    assert snapshot.units.tolist() == [0, 1, 2, 3, 4, 5, 7] and snapshot.holes == (6, 8, 9)
    dataset.roll_up(final=True)
    assert dataset.snapshot().keys == snapshot.keys


def test_checks_for_roll_ups_are_rare(dataset: Dataset, monkeypatch) -> None:
    dataset.grow(60)
    calls: list[int] = []
    monkeypatch.setattr(ledger, "roll_up", lambda *_, **__: calls.append(1) or 0)
    for _ in range(100):
        dataset.roll_up()
    assert len(calls) == 1


def _roll(url: str, barrier) -> None:
    barrier.wait()
    Dataset.open(url, fsync=False).roll_up(final=True)


def test_roll_ups_at_once_put_every_sample_in_one_part(dataset: Dataset, monkeypatch) -> None:
    monkeypatch.setattr(ledger, "MAX_PART_UNITS", 4)
    dataset.grow(180)
    for unit in range(30):
        write_unit(dataset, unit, num_samples=180)
    barrier = FORK.Barrier(4)
    runs = [FORK.Process(target=_roll, args=(dataset.url, barrier)) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
        assert run.exitcode == 0
    table = pq.read_table(f"{dataset.url}/manifest")
    assert sorted(table["index"].to_pylist()) == list(range(180))
    assert manifest.num_parts(dataset.files) == 8
    dataset.sweep()
    assert all_keys(dataset) == expected_keys(dataset)


def test_a_part_cut_in_two_by_a_crash_is_completed(dataset: Dataset) -> None:
    dataset.grow(20)
    for unit in range(4):
        write_unit(dataset, unit, num_samples=20)
    step = 0
    while not dataset.files.names("manifest/_units"):
        step += 1
        with fault(step, Crash()), pytest.raises(Crash):
            dataset.roll_up(final=True)
    assert dataset.files.names("manifest") == ["_units"]
    assert dataset.snapshot().keys == [f"key/{i}" for i in range(20)]
    dataset.roll_up(final=True)
    assert manifest.check_part(dataset.files, 0) == ""
    assert manifest.num_parts(dataset.files) == 1


def damage(dataset: Dataset, key: str, data: bytes) -> None:
    Path(dataset.files.path(key)).write_bytes(data)


@pytest.mark.parametrize(
    "name", ["units-00000\u0661.parquet", "units-1.parquet", "units-x.parquet"]
)
def test_what_only_looks_like_a_part_is_none_and_verify_says_so(
    dataset: Dataset, name: str
) -> None:
    fill(dataset, 20)
    folder = Path(dataset.url) / manifest.UNITS
    (folder / name).write_bytes((folder / "units-000000.parquet").read_bytes())
    assert manifest.num_parts(dataset.files) == 1 == manifest.num_parts(dataset.files, strict=False)
    report = verify_dataset(dataset)
    assert not report.findings
    assert [note for note in report.notes if note.endswith(f"{name}: not part of a dataset")]


def test_damaged_parts_are_named(dataset: Dataset) -> None:
    fill(dataset, 20)
    key = manifest.units_key(0)
    data = dataset.files.read(key)
    rng = np.random.default_rng(0)
    for _ in range(60):
        mutated = bytearray(data)
        for at in rng.integers(len(data), size=3).tolist():
            mutated[at] ^= int(rng.integers(1, 256))
        damage(dataset, key, bytes(mutated[: int(rng.integers(len(data) // 2, len(data) + 1))]))
        try:
            dataset.snapshot()
        except DataError as error:
            assert "manifest" in str(error)


@pytest.mark.parametrize(
    ("column", "value"),
    [("unit", -1), ("unit", 1 << 50), ("count", 0), ("count", 1 << 50), ("invalid", 99)],
)
def test_absurd_numbers_in_the_manifest_are_refused(dataset, column: str, value: int) -> None:
    fill(dataset, 20)
    path = dataset.files.path(manifest.units_key(0))
    rows = pq.read_table(path).to_pylist()
    rows[1][column] = value
    pq.write_table(pa.Table.from_pylist(rows, schema=manifest.UNIT_SCHEMA), path)
    with pytest.raises(DataError, match="absurd"):
        dataset.snapshot()


def test_missing_columns_and_parts_are_named(dataset: Dataset) -> None:
    fill(dataset, 12)
    fill(dataset, 20)
    path = Path(dataset.files.path(manifest.units_key(0)))
    pq.write_table(pa.table({"unit": [1]}), path)
    with pytest.raises(DataError, match="damaged manifest part"):
        dataset.snapshot()
    path.unlink()
    with pytest.raises(DataError, match="gaps"):
        dataset.snapshot()
