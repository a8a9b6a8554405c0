"""Dropped samples."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamshard.errors import DataError
from storage.batches.reader import BatchReader
from storage.dataset import Dataset
from storage.ledger import drops
from storage.verbs.verify import verify_dataset
from tests.feature_store import fill, make_dataset

N = 20


@pytest.fixture(params=["disk", "memory"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    dataset = make_dataset(tmp_path if request.param == "disk" else f"memory:/{tmp_path}")
    fill(dataset, N, invalid=(7,))
    return dataset


def test_dropped_samples_are_not_read_again(dataset: Dataset) -> None:
    before = dataset.snapshot()
    assert dataset.drop(["key/3", "key/7", "key/19"], reason="licence") == 3
    after = Dataset.open(dataset.url).snapshot()
    assert np.flatnonzero(~after.valid).tolist() == [3, 7, 19]
    assert (before.num_invalid, after.num_invalid) == (1, 3)
    assert after.errors == dict.fromkeys((3, 7, 19), "dropped: licence")
    assert after.keys == before.keys  # rows are fixed
    assert after.version == f"{before.version}-1"
    assert verify_dataset(dataset).findings == [] and verify_dataset(dataset).notes == []


def test_a_pinned_version_still_shows_them(dataset: Dataset) -> None:
    dataset.drop(["key/1"], reason="one")
    pinned = dataset.snapshot().version
    dataset.drop(["key/2"], reason="two")
    fill(dataset, 30)
    assert np.flatnonzero(~dataset.snapshot(pinned).valid).tolist() == [1, 7]
    assert dataset.snapshot(pinned).version == pinned
    assert np.flatnonzero(~dataset.snapshot().valid).tolist() == [1, 2, 7]
    assert len(dataset.snapshot().drops) == 2
    with pytest.raises(DataError, match="got no such record"):
        dataset.snapshot(pinned.rpartition("-")[0] + "-9")


def test_dropping_again_changes_nothing(dataset: Dataset) -> None:
    dataset.drop(["key/1"], reason="one")
    assert dataset.drop(["key/1"], reason="two") == 0
    assert dataset.drop([], reason="none") == 0
    assert drops.count_drops(dataset.files) == 1


def test_a_key_of_no_sample_is_refused_and_nothing_dropped(dataset: Dataset) -> None:
    with pytest.raises(DataError, match=r"2 keys of no sample \('', 'nothing'\).*Nothing was"):
        dataset.drop(["key/1", "nothing", ""], reason="x")
    assert drops.count_drops(dataset.files) == 0


def test_damaged_records_are_named(dataset: Dataset) -> None:
    dataset.drop(["key/1"], reason="one")
    for text in (b"", b"[]", b'{"samples": {"-4": "a"}, "reason": "", "time": 0}', b"{" * 2000):
        dataset.files.write(drops.record_key(0), text)
        with pytest.raises(DataError, match=r"drops/000000.json: got a damaged record"):
            dataset.snapshot()
    dataset.files.write(drops.record_key(2), b"{}")
    with pytest.raises(DataError, match="gaps"):
        dataset.snapshot()


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sets(st.integers(0, N - 1), max_size=6), max_size=4))
def test_every_other_sample_comes_once_per_epoch(groups: list[set[int]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        dataset = make_dataset(root)
        fill(dataset, N)
        for group in groups:
            dataset.drop([f"key/{n}" for n in group], reason="test")
        gone = set().union(*groups)
        snapshot = dataset.snapshot()
        if len(gone) == N:
            return
        with BatchReader(snapshot, levels=[], images=False, batch_size=1) as reader:
            seen = [int(reader.next().index[0]) for _ in range(reader.epoch_size)]
        assert sorted(seen) == sorted(set(range(N)) - gone)
