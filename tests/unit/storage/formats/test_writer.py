import threading
from pathlib import Path

import numpy as np
import pytest
import xxhash

from dreamshard.errors import DataError
from storage.dataset import Dataset
from storage.formats import writer as writer_module
from tests.feature_store import data_files, make_batch, make_dataset, write_unit


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = make_dataset(tmp_path)
    dataset.grow(20)
    return dataset


def test_digests_are_those_of_the_rows_without_padding(dataset: Dataset) -> None:
    commit = write_unit(dataset, 3, num_samples=20)
    batch = make_batch(18, 2)
    level = batch.levels["up.1.t100"].astype("<f2").tobytes()
    assert commit.digests["up.1.t100"] == xxhash.xxh3_128_hexdigest(level)
    assert batch.image is not None
    assert commit.digests["image"] == xxhash.xxh3_128_hexdigest(batch.image.tobytes())
    assert commit.bytes == 2 * sum(spec.row_bytes for spec in dataset.arrays.values())
    assert (commit.count, commit.first, commit.input_digest) == (2, 18, "in-3")
    assert commit.labels == [18 % 7, 19 % 7] and commit.seconds == 0.5


@pytest.mark.parametrize("threaded", [False, True])
def test_batch_sizes_do_not_matter(tmp_path: Path, monkeypatch, threaded: bool) -> None:
    if threaded:
        monkeypatch.setattr(writer_module, "_SMALL_BYTES", 0)
        monkeypatch.setattr(writer_module, "_BLOCK_BYTES", 16)
    seen = []
    for step in (1, 4, 6):
        dataset = make_dataset(tmp_path / str(step))
        dataset.grow(6)
        with dataset.unit_writer(0, count=6, run_id="r") as writer:
            for offset in range(0, 6, step):
                writer.write(offset, make_batch(offset, min(step, 6 - offset)))
            writer.commit()
        seen.append(data_files(dataset))
    assert seen[0] == seen[1] == seen[2]
    names = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith("unit-write") for name in names)


def test_a_batch_may_be_reused_after_write(dataset: Dataset, monkeypatch) -> None:
    monkeypatch.setattr(writer_module, "_SMALL_BYTES", 0)
    batch = make_batch(0, 6)
    wanted = batch.levels["up.1.t100"].astype("<f2")
    with dataset.unit_writer(0, count=6, run_id="r") as writer:
        writer.write(0, batch)
        batch.levels["up.1.t100"][:] = 9
        writer.commit()
    path = dataset.files.path("data.zarr/up.1.t100/c/0/0/0/0")
    assert np.array_equal(np.fromfile(path, "<f2").reshape(wanted.shape), wanted)


def test_a_write_that_fails_in_the_thread_is_reported(dataset: Dataset, monkeypatch) -> None:
    monkeypatch.setattr(writer_module, "_SMALL_BYTES", 0)
    writer = dataset.unit_writer(0, count=6, run_id="r")

    def fail(name: str, rows: np.ndarray) -> None:
        raise DataError("disk full")

    monkeypatch.setattr(writer._unit_files, "append", fail)
    with pytest.raises(DataError, match="disk full"):
        writer.write(0, make_batch(0, 6))
    dataset.sweep()
    assert dataset.committed() == {}


def test_labels_are_optional(dataset: Dataset) -> None:
    batch = make_batch(0, 6)
    batch.label = None
    with dataset.unit_writer(0, count=6, run_id="r") as writer:
        writer.write(0, batch)
        assert writer.commit().labels is None
    assert dataset.snapshot().labels.tolist() == [-1] * 20


def test_long_errors_are_cut(dataset: Dataset) -> None:
    batch = make_batch(0, 6, invalid=(1,))
    batch.error[1] = "x" * 10_000
    with dataset.unit_writer(0, count=6, run_id="r") as writer:
        writer.write(0, batch)
        assert len(writer.commit().errors[1]) == 300


def test_what_a_run_wants_remembered_is_kept(dataset: Dataset) -> None:
    with dataset.unit_writer(0, count=6, run_id="r") as writer:
        writer.write(0, make_batch(0, 6))
        writer.commit(extra={"halved": True})
    assert dataset.committed()[0].extra == {"halved": True}


def test_nothing_can_be_written_after_the_end(dataset: Dataset) -> None:
    writer = dataset.unit_writer(0, count=6, run_id="r")
    writer.write(0, make_batch(0, 6))
    writer.commit()
    with pytest.raises(DataError, match="after commit or abort"):
        writer.write(6, make_batch(6, 1))
    writer.abort()
    assert dataset.committed().keys() == {0}
