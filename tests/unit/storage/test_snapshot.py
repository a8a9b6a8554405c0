import pickle
from pathlib import Path

import numpy as np
import pytest

from dreamshard.errors import DataError
from storage.dataset import Dataset
from tests.feature_store import fill, make_dataset, make_recipe, write_unit


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path)


def test_an_empty_dataset(dataset: Dataset) -> None:
    snapshot = dataset.snapshot()
    assert (snapshot.num_samples, len(snapshot), snapshot.holes) == (0, 0, ())
    assert snapshot.valid.shape == snapshot.labels.shape == (0,)
    assert snapshot.keys == [] and snapshot.errors == {} and snapshot.num_valid == 0
    assert dataset.snapshot(snapshot.version).version == snapshot.version


def test_specs_and_paths(dataset: Dataset) -> None:
    fill(dataset, 12)
    snapshot = dataset.snapshot()
    assert snapshot.array_names == ("image", "label", "mask", "up.1.t100", "emb", "top")
    assert snapshot.array_spec("up.1.t100") == (np.dtype("<f2"), (3, 2, 2))
    assert snapshot.array_spec("label") == (np.dtype("<i8"), ())
    assert snapshot.chunk_path("emb", 1) == f"{dataset.url}/data.zarr/emb/c/1/0"
    for call in (snapshot.array_spec, lambda name: snapshot.chunk_path(name, 0)):
        with pytest.raises(DataError, match="got array 'nope', allowed image"):
            call("nope")


def test_masks_and_labels_cannot_be_changed_by_accident(dataset: Dataset) -> None:
    fill(dataset, 12)
    with pytest.raises(ValueError, match="read-only"):
        dataset.snapshot().valid[0] = False
    with pytest.raises(ValueError, match="read-only"):
        dataset.snapshot().labels[0] = 1


def test_snapshots_before_and_after_a_roll_up_show_the_same(dataset: Dataset) -> None:
    dataset.grow(20)
    for unit in range(4):
        write_unit(dataset, unit, num_samples=20, invalid=(3, 19))
    before = dataset.snapshot()
    values = (before.valid.tolist(), before.labels.tolist(), before.keys, before.errors)
    dataset.roll_up(final=True)
    for after in (dataset.snapshot(), dataset.snapshot(before.version)):
        assert values == (after.valid.tolist(), after.labels.tolist(), after.keys, after.errors)
    assert before.num_valid == 18 and before.num_invalid == 2


@pytest.mark.parametrize("rolled", [False, True])
def test_a_version_outlives_growth_holes_and_repairs(dataset: Dataset, rolled: bool) -> None:
    dataset.grow(20)
    for unit in (0, 1, 3):
        write_unit(dataset, unit, num_samples=20)
    if rolled:
        dataset.roll_up(final=True)
    old = dataset.snapshot()
    assert old.holes == (2,)
    dataset.grow(40)
    write_unit(dataset, 2, num_samples=40)
    if not rolled:  # it cannot be told what was there, and that is said
        with pytest.raises(DataError, match="cannot show any more"):
            dataset.snapshot(old.version)
        return
    fill(dataset, 40)
    dataset.invalidate(1)
    fill(dataset, 40)
    again = dataset.snapshot(old.version)
    assert (again.num_samples, again.holes) == (20, (2,))
    assert again.valid.tolist() == old.valid.tolist()
    assert again.keys == old.keys
    assert dataset.snapshot().num_samples == 40 and dataset.snapshot().holes == ()


def test_a_withdrawn_unit_was_a_hole_then_and_stays_one(dataset: Dataset) -> None:
    fill(dataset, 12)
    dataset.invalidate(0)
    old = dataset.snapshot()
    assert old.holes == (0,)
    fill(dataset, 12)
    with pytest.raises(DataError, match="cannot show any more"):
        dataset.snapshot("12-9-0123456789abcdef")
    assert dataset.snapshot().holes == ()


def test_other_content_is_another_version(tmp_path: Path) -> None:
    versions = []
    for noise in (0, 0, 1):
        dataset = make_dataset(tmp_path / str(len(versions)), recipe=make_recipe(seed=noise))
        dataset.grow(6)
        write_unit(dataset, 0, num_samples=6, noise=noise)
        dataset.roll_up(final=True)
        versions.append(dataset.snapshot().version)
    assert versions[0] == versions[1] != versions[2]


def test_a_unit_made_again_with_other_bytes_ends_old_versions(dataset: Dataset) -> None:
    fill(dataset, 12)
    version = dataset.snapshot().version
    dataset.invalidate(1)
    write_unit(dataset, 1, num_samples=12, noise=1)
    with pytest.raises(DataError, match="withdrawn since"):
        dataset.snapshot(version)


@pytest.mark.parametrize("text", ["", "latest", "12", "../12-1-0123456789abcdef", "1-1-xyz"])
def test_texts_that_are_no_versions(dataset: Dataset, text: str) -> None:
    with pytest.raises(DataError, match="version: got"):
        dataset.snapshot(text)


def test_a_snapshot_travels_to_other_processes(dataset: Dataset) -> None:
    fill(dataset, 20, invalid=(2,))
    snapshot = dataset.snapshot()
    again = pickle.loads(pickle.dumps(snapshot))
    assert again.version == snapshot.version
    assert again.valid.tolist() == snapshot.valid.tolist()
    assert again.chunk_path("emb", 0) == snapshot.chunk_path("emb", 0)
    assert snapshot.version in repr(snapshot)
