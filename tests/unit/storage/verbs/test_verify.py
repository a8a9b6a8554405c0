from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.dataset import Dataset
from storage.ledger import manifest
from storage.ledger.commits import record_key
from storage.verbs.verify import repair, verify_dataset
from tests.feature_store import all_keys, data_files, expected_keys, fill, make_dataset, write_unit


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = make_dataset(tmp_path)
    fill(dataset, 20, invalid=(7,))
    return dataset


def flip(dataset: Dataset, key: str, at: int = 0) -> None:
    path = Path(dataset.files.path(key))
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_whole_dataset(dataset: Dataset) -> None:
    seen: list[int] = []
    report = verify_dataset(dataset, on_unit=seen.append)
    assert report.findings == [] and report.notes == [] and report.missing == []
    assert (report.units, report.samples, report.invalid) == (4, 20, 1)
    assert sum(seen) == report.bytes and len(seen) == 4


def test_a_flipped_bit_is_named_and_its_unit_made_again(dataset: Dataset) -> None:
    before = data_files(dataset)
    key = dataset.store.array_key("up.1.t100", 2)
    flip(dataset, key)
    report = verify_dataset(dataset)
    assert [finding.path for finding in report.findings] == [dataset.files.path(key)]
    assert report.damaged_units == [2] and "digest" in str(report.findings[0])
    assert verify_dataset(dataset, quick=True).findings == []
    assert repair(dataset, report) == [2]
    assert verify_dataset(dataset).findings == []
    assert verify_dataset(dataset).missing == [2]
    assert fill(dataset, 20, invalid=(7,)) == [2]
    assert data_files(dataset) == before
    assert verify_dataset(dataset).findings == []
    assert all_keys(dataset) == expected_keys(dataset)


def test_several_kinds_of_damage_at_once(dataset: Dataset) -> None:
    Path(dataset.files.path(dataset.store.array_key("image", 0))).unlink()
    path = Path(dataset.files.path(dataset.store.array_key("emb", 1)))
    path.write_bytes(path.read_bytes()[:-2])
    flip(dataset, dataset.store.array_key("label", 3))
    report = verify_dataset(dataset)
    assert report.damaged_units == [0, 1, 3]
    assert verify_dataset(dataset, quick=True).damaged_units == [0, 1]
    repair(dataset, report)
    assert fill(dataset, 20, invalid=(7,)) == [0, 1, 3]
    assert verify_dataset(dataset).findings == []


@pytest.mark.parametrize("rolled", [True, False])
@pytest.mark.parametrize("text", ["", "{}", "not json"])
def test_a_damaged_commit_record(tmp_path: Path, rolled: bool, text: str) -> None:
    dataset = make_dataset(tmp_path)
    dataset.grow(20)
    for unit in range(4):
        write_unit(dataset, unit, num_samples=20)
    if rolled:
        dataset.roll_up(final=True)
    for unit in (1, 3):
        Path(dataset.files.path(record_key(unit, 0))).write_text(text)
    report = verify_dataset(dataset)
    assert report.damaged_units == [1, 3]
    assert repair(dataset, report) == [1, 3]
    assert fill(dataset, 20) == [1, 3]
    assert verify_dataset(dataset).findings == []
    assert dataset.snapshot().keys == [f"key/{i}" for i in range(20)]


def test_a_swapped_commit_record(dataset: Dataset) -> None:
    one, two = (Path(dataset.files.path(record_key(unit, 0))) for unit in (1, 2))
    one.write_bytes(two.read_bytes())
    assert verify_dataset(dataset).damaged_units == [1]


@pytest.mark.parametrize("key", [manifest.units_key(0), manifest.samples_key(0)])
@pytest.mark.parametrize("how", ["cut", "gone", "other"])
def test_a_damaged_manifest_is_made_again(dataset: Dataset, key: str, how: str) -> None:
    fill(dataset, 30, invalid=(7,))
    rows = (dataset.snapshot().keys, dataset.snapshot().valid.tolist())
    path = Path(dataset.files.path(key))
    if how == "gone":
        path.unlink()
    else:
        other = path.with_name(path.name.replace("000000", "000001"))
        path.write_bytes(path.read_bytes()[:99] if how == "cut" else other.read_bytes())
    report = verify_dataset(dataset)
    assert report.damaged_units == [] and len(report.findings) == 1
    assert "manifest" in report.findings[0].path
    assert repair(dataset, report) == []
    assert verify_dataset(dataset).findings == []
    assert (dataset.snapshot().keys, dataset.snapshot().valid.tolist()) == rows
    assert all_keys(dataset) == expected_keys(dataset)


def test_damaged_zarr_metadata_is_written_again(dataset: Dataset) -> None:
    Path(dataset.files.path("data.zarr/emb/zarr.json")).write_text("{}")
    report = verify_dataset(dataset)
    assert len(report.findings) == 1 and "zarr.json" in report.findings[0].path
    assert repair(dataset, report) == []
    assert verify_dataset(dataset).findings == []


def test_what_does_no_harm_is_a_note(dataset: Dataset) -> None:
    dataset.files.write("README.md", b"mine")
    dataset.files.write("data.zarr/emb/c/9/0", b"x")
    dataset.files.write("staging/r/x", b"x")
    report = verify_dataset(dataset)
    assert report.findings == []
    assert [note.partition(": ")[2] for note in report.notes] == [
        "not part of a dataset",
        "not committed",
        "1 temporary files; the next run sweeps them",
    ]


def test_units_not_made_yet_are_no_damage(dataset: Dataset) -> None:
    dataset.grow(40)
    report = verify_dataset(dataset)
    assert report.findings == [] and report.missing == [3, 4, 5, 6]


def test_a_manifest_with_nothing_where_a_number_belongs_is_damaged(dataset: Dataset) -> None:
    path = Path(dataset.url) / "manifest" / "_units" / "units-000000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0]["unit"] = None
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    report = verify_dataset(Dataset.open(dataset.url))
    assert any("units-000000.parquet" in str(finding) for finding in report.findings)
