"""Labels change without new features: versions beside the dataset, pinned by snapshots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dreamshard.errors import DataError
from storage.batches.reader import BatchReader
from storage.dataset import Dataset
from storage.ledger.labels import FOLDER, version_key
from storage.relabel import relabel
from storage.rows.pick import read_rows
from storage.verbs.export import create_copy, plan_copy
from storage.verbs.inspect import describe
from tests.feature_store import fill, make_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    made = make_dataset(tmp_path)
    fill(made, 48)
    return made


def test_later_labels_are_read_everywhere_and_features_stay(dataset: Dataset) -> None:
    before = dataset.snapshot()
    others = np.arange(48) + 100
    assert relabel(dataset, others, [f"c{n}" for n in range(148)]) == 48
    after = dataset.snapshot()
    assert after.labels.tolist() == others.tolist() and after.classes[3] == "c3"
    assert read_rows(after, "label", [5, 47, 0]).tolist() == [105, 147, 100]
    reader = BatchReader(after, levels=[after.levels[0].name], batch_size=8, labels=True, copy=True)
    with reader:
        batch = next(iter(reader))
        assert batch.label is not None
        assert batch.label.tolist() == (batch.index + 100).tolist()
    name = after.levels[0].name
    assert np.array_equal(read_rows(after, name, [7]), read_rows(before, name, [7]))


def test_names_of_classes_are_known_before_and_after(tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "d", extra={"classes": ["a", "b"]})
    fill(made, 48)
    assert made.snapshot().classes == ("a", "b")
    relabel(made, np.full(48, 1), ["b", "c"])
    assert made.snapshot().classes == ("b", "c") == plan_copy(made).snapshot.classes
    assert dict(describe(made))["classes"] == "b, c"
    assert create_copy(plan_copy(made), str(tmp_path / "copy")).about.classes == ("b", "c")


def test_a_snapshot_keeps_the_labels_it_was_opened_with(dataset: Dataset) -> None:
    first = dataset.snapshot()
    relabel(dataset, np.full(48, 1))
    second = dataset.snapshot()
    relabel(dataset, np.full(48, 2))
    assert dataset.snapshot(first.version).labels.tolist() == first.labels.tolist()
    assert set(dataset.snapshot(second.version).labels) == {1}
    assert set(dataset.snapshot().labels) == {2}


def test_the_same_labels_write_nothing(dataset: Dataset) -> None:
    assert relabel(dataset, dataset.snapshot().labels.copy()) == 0
    assert dataset.files.names(FOLDER) == []


def test_damaged_or_missing_versions_are_named(dataset: Dataset) -> None:
    relabel(dataset, np.full(48, 1))
    relabel(dataset, np.full(48, 2))
    path = Path(dataset.files.path(version_key(2)))
    whole = path.read_bytes()
    for damage in (b"", whole[:-9], whole.replace(b"PAR1", b"PAR2")):
        path.write_bytes(damage)
        with pytest.raises(DataError, match=r"labels/000002.parquet: got damaged labels"):
            dataset.snapshot()
    path.write_bytes(whole)
    Path(dataset.files.path(version_key(1))).unlink()
    with pytest.raises(DataError, match="gaps"):
        dataset.snapshot()
