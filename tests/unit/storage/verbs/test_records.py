"""Every file that decides what a dataset shows is checked by verify, and mended if that can be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dreamshard.errors import DataError
from storage.dataset import Dataset
from storage.ledger import holds
from storage.ledger.commits import latest_version
from storage.ledger.labels import add_version
from storage.verbs.verify import Report, repair, verify_dataset
from tests.feature_store import LEVELS, fill, make_dataset, make_recipe

FEW = LEVELS[:2]


@pytest.fixture(scope="module", params=["zarr", "tar"])
def whole(request, tmp_path_factory) -> Path:
    recipe = make_recipe(layout_format=request.param, count=10, levels=FEW, codec="int8")
    dataset = make_dataset(tmp_path_factory.mktemp("whole"), recipe=recipe, levels=FEW)
    fill(dataset, 8, invalid=(7,))
    dataset.invalidate(0, reason="test")
    fill(dataset, 10, run_id="again", invalid=(7,))
    dataset.drop(["key/3"], reason="test")
    add_version(dataset.files, np.arange(10), ["zero"], fsync=False)
    holds.pin(dataset.files, name="paper", reason="test")
    dataset.quarantine(2, error="test", attempts=1)
    dataset.grow(18)
    return Path(dataset.url)


@pytest.fixture
def dataset(whole: Path, tmp_path: Path) -> Dataset:
    shutil.copytree(whole, tmp_path / whole.name)
    return Dataset.open(str(tmp_path / whole.name), fsync=False)


def records(dataset: Dataset) -> list[Path]:
    """List all files but those of the samples."""
    files = sorted(path for path in Path(dataset.url).rglob("*") if path.is_file())
    return [path for path in files if path.suffix in (".json", ".parquet")]


def verify(dataset: Dataset) -> Report | None:
    """Verify as the command does; None where the dataset is not even opened."""
    try:
        return verify_dataset(Dataset.open(dataset.url, fsync=False))
    except DataError:
        return None


def test_all_kinds_of_files_are_there(dataset: Dataset) -> None:
    kinds = {str(path.relative_to(dataset.url)).partition("/")[0] for path in records(dataset)}
    data = "data.zarr" if "zarr" in str(dataset.store.metadata_keys()) else "shards"
    assert kinds == {
        *("dataset.json", "commits", "drops", "labels", "manifest", "pins", "requests", data)
    }
    report = verify_dataset(dataset)
    assert report.findings == [] and report.unsealed == 0 and report.notes == []


def test_flipped_bits_are_found_in_every_file(dataset: Dataset) -> None:
    """Some bits of each file; that all bits of a sealed file count is tested with the seal."""
    for number, path in enumerate(records(dataset)):
        good = path.read_bytes()
        for at in {0, len(good) - 1, len(good) // 2, *range(7 + number, len(good), 997)}:
            changed = bytearray(good)
            changed[at] ^= 1 << (at + number) % 8
            path.write_bytes(changed)
            report = verify(dataset)
            assert report is None or report.findings, (path, at)
        path.write_bytes(good)
    assert verify_dataset(dataset).findings == []


def mutable(dataset: Dataset) -> dict[str, str]:
    files = {key: key for key in dataset.store.metadata_keys()}
    return {
        **files,
        "commits/withdrawn/000000000.0.json": "withdrawn",
        "pins/paper.json": "pin",
        "manifest/_quarantine/000000002.json": "note",
    }


def test_what_follows_from_names_and_the_description_is_mended(dataset: Dataset) -> None:
    for key in mutable(dataset):
        Path(dataset.files.path(key)).write_bytes(b"")
    report = verify_dataset(dataset)
    assert {finding.path for finding in report.findings} == set(
        map(dataset.files.path, mutable(dataset))
    )
    assert not any(finding.by_hand for finding in report.findings)
    repair(dataset, report)
    assert verify_dataset(dataset).findings == []
    assert holds.pins(dataset.files) == ["paper"]
    assert latest_version(dataset.files, 0) == (1, True)
    assert dataset.missing(10).tolist() == [] and not dataset.quarantined()


def test_what_has_no_second_copy_is_named_and_left(dataset: Dataset) -> None:
    for key in ("drops/000000.json", "labels/000001.parquet"):
        path = Path(dataset.files.path(key))
        good = path.read_bytes()
        path.write_bytes(good[:-1])
        report = verify_dataset(dataset)
        assert [(f.path, f.by_hand) for f in report.findings] == [(str(path), True)]
        repair(dataset, report)
        assert path.read_bytes() == good[:-1]
        with pytest.raises(DataError, match=key):
            dataset.snapshot()
        path.write_bytes(good)


def test_a_request_is_read_where_its_number_counts(dataset: Dataset) -> None:
    url, files = dataset.url, dataset.files
    for number, text in (
        (10**12, b""),
        (50, b'{"num_samples": 51}'),
        (50, b'{"num_samples": true}'),
    ):
        key = f"requests/{number:015d}.json"
        Path(files.path(key)).write_bytes(text)
        with pytest.raises(DataError, match=f"{key}.*Remove the file"):
            Dataset.open(url).snapshot()
        report = verify_dataset(dataset)
        assert [finding.path for finding in report.findings] == [files.path(key)]
        assert report.missing == [1, 2]  # of the 18 samples that were asked for
        files.remove(key)
    Path(files.path("requests/000000000000019.json")).write_text('{"num_samples": 19, "time": 0}')
    assert Dataset.open(url).requested() == 19  # as earlier versions wrote it


def test_a_drop_that_names_another_sample(dataset: Dataset) -> None:
    """An earlier version's record says nothing of its own bytes: its keys are compared."""
    path = Path(dataset.files.path("drops/000000.json"))
    path.write_text(json.dumps({"samples": {"7": "key/3"}, "reason": "test", "time": 1.0}))
    report = verify_dataset(dataset)
    assert [finding.path for finding in report.findings] == [str(path)]
    path.write_text(json.dumps({"samples": {"3": "key/3"}, "reason": "test", "time": 1.0}))
    report = verify_dataset(dataset)
    assert report.findings == [] and report.unsealed == 1
    assert "written by an earlier version" in report.notes[0]
