"""What every store must give its readers, through the writer's own files."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from dreamshard.errors import DataError
from storage.batches.reader import BatchReader
from storage.dataset import Dataset
from storage.formats.stores import STORES
from storage.rows.chunk_files import Access
from storage.rows.pick import read_rows
from storage.snapshot import Snapshot
from tests.feature_store import fill, make_batch, make_dataset, make_recipe, write_unit

N = 20  # three whole units of six, one of two
NAMES = ["up.1.t100", "emb", "top", "mask"]


@pytest.fixture(params=sorted(STORES))
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path, recipe=make_recipe(layout_format=request.param, count=N))


def written(count: int = N) -> dict[str, np.ndarray]:
    batch = make_batch(0, count)
    assert batch.image is not None and batch.label is not None and batch.mask is not None
    whole = {"image": batch.image, "label": batch.label, "mask": batch.mask, **batch.levels}
    return {
        name: rows.astype(np.float16) if rows.dtype.kind == "f" else rows
        for name, rows in whole.items()
    }


def read(snapshot: Snapshot, count: int, **settings) -> list[np.ndarray]:
    """Return the samples of the first batches, each row compared with what was written."""
    wanted, samples = written(30), []
    with BatchReader(snapshot, labels=True, **settings) as reader:
        for batch in islice(reader, count):
            assert batch.image is not None and batch.label is not None
            rows = {"image": batch.image, "label": batch.label, **batch.levels}
            for name, found in rows.items():
                assert found.dtype == wanted[name].dtype
                assert found.tobytes() == wanted[name][batch.index].tobytes()
            samples.append(batch.index.copy())
    return samples


@pytest.mark.parametrize("access", ["map", "pread"])
def test_two_ranks_read_every_valid_sample_once(dataset: Dataset, access: Access) -> None:
    fill(dataset, N, invalid=(7, 19))
    snapshot = dataset.snapshot()
    ranks = [
        read(snapshot, 9, levels=NAMES, batch_size=4, rank=rank, world_size=2, access=access)
        for rank in range(2)
    ]
    stream = np.concatenate([np.concatenate(pair) for pair in zip(*ranks, strict=True)])
    valid = [sample for sample in range(N) if sample not in (7, 19)]
    assert sorted(stream[:18].tolist()) == valid
    assert sorted(stream[18:].tolist()) == valid


def test_any_rows_can_be_read(dataset: Dataset) -> None:
    fill(dataset, N)
    snapshot, wanted = dataset.snapshot(), written()
    for name in snapshot.array_names:
        rows = read_rows(snapshot, name, [19, 3, 3, 12])
        assert rows.tobytes() == wanted[name][[19, 3, 3, 12]].tobytes()
    with pytest.raises(DataError, match=r"allowed 0\.\.19"):
        read_rows(snapshot, "emb", [20])


def test_holes_are_refused_or_skipped(dataset: Dataset) -> None:
    dataset.grow(N)
    for unit in (0, 2, 3):
        write_unit(dataset, unit, num_samples=N)
    snapshot = dataset.snapshot()
    with pytest.raises(DataError, match=r"1 missing units \(1\)"):
        BatchReader(snapshot, levels=NAMES, batch_size=2)
    samples = read(snapshot, 7, levels=NAMES, batch_size=2, allow_holes=True)
    assert sorted(np.concatenate(samples).tolist()) == [*range(6), *range(12, N)]


def test_a_reader_does_not_notice_that_the_dataset_grows(dataset: Dataset) -> None:
    fill(dataset, N)
    before = dataset.snapshot()
    with BatchReader(before, levels=NAMES, batch_size=5) as reader:
        first = [reader.next().index.copy() for _ in range(2)]
        fill(dataset, 30)  # the last unit, of two samples, is replaced by a whole one
        later = [reader.next().index.copy() for _ in range(2)]
    assert sorted(np.concatenate([*first, *later]).tolist()) == list(range(N))
    again = read(dataset.snapshot(before.version), 4, levels=NAMES, batch_size=5)
    assert np.array_equal(np.concatenate(again), np.concatenate([*first, *later]))
    assert dataset.snapshot().num_samples == 30


def test_a_shortened_file_is_named(dataset: Dataset) -> None:
    fill(dataset, N)
    snapshot = dataset.snapshot()
    path = Path(snapshot.chunk_path("emb", 1))
    path.write_bytes(path.read_bytes()[:-1])
    with (
        BatchReader(snapshot, levels=["emb"], batch_size=N) as reader,
        pytest.raises(DataError, match=r"got \d+ bytes, allowed") as caught,
    ):
        reader.next()
    assert str(path) in str(caught.value)
    assert f"dreamshard verify --repair {dataset.url}" in str(caught.value)
    if snapshot.chunk_path("top", 1) != str(path):  # other levels' files are not opened
        assert len(read(snapshot, 3, levels=["top"], batch_size=N)) == 3
