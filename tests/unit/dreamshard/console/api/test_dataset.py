"""A dataset in Python: samples by number and key, slices, batches for torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import dreamshard
from dreamshard.console.api.dataset import FeatureDataset
from dreamshard.errors import ConfigError, DataError
from storage.rows.pick import read_rows
from storage.schema import Level
from tests.feature_store import UNIT, make_batch, make_dataset, make_recipe

COUNT = 20
LEVELS = (
    Level("up.1.t100", "feature", "up.1", 100, 0, "", 4, (3, 2, 2), "float32"),
    Level("up.1.t200", "feature", "up.1", 200, 0, "", 4, (3, 2, 2), "float32"),
    Level("up.2.t100", "feature", "up.2", 100, 0, "", 2, (2, 4, 4), "float32"),
)


def make(root: Path, *, codec: str = "float16", units: int = 4, invalid: int = 7) -> FeatureDataset:
    made = make_dataset(root, recipe=make_recipe(levels=LEVELS, codec=codec), levels=LEVELS)
    made.grow(COUNT)
    for unit in range(units):
        first, count = unit * UNIT, min(UNIT, COUNT - unit * UNIT)
        with made.unit_writer(unit, count=count, run_id="run") as writer:
            inside = (invalid,) if first <= invalid < first + count else ()
            writer.write(0, make_batch(first, count, invalid=inside, levels=LEVELS))
            writer.commit()
    made.roll_up(final=True)
    return dreamshard.open_dataset(root / "noise-test")


def test_samples_by_number_key_and_from_the_end(tmp_path: Path) -> None:
    ds = make(tmp_path)
    assert len(ds) == COUNT and bool(ds) and "20 samples" in repr(ds)
    sample = ds[3]
    assert (sample.index, sample.key, sample.label, sample.valid) == (3, "key/3", 3, True)
    assert sample.image is not None and sample.image.shape == (4, 4, 3)
    assert sample.mask is not None and sample.mask.shape == (4, 4)
    stored = read_rows(ds.snapshot(), "up.2.t100", [3])[0]
    np.testing.assert_array_equal(sample.levels["up.2.t100"], stored)
    np.testing.assert_array_equal(ds["key/3"].levels["s2"], stored)
    assert ds[-1].key == "key/19" and ds[np.int64(2)].key == "key/2"
    assert not ds[7].valid and ds[7].error == "truncated"


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    ds = make(tmp_path)
    with pytest.raises(IndexError, match=r"sample 20: allowed -20\.\.19"):
        ds[20]
    with pytest.raises(KeyError, match="did you mean 'key/3'"):
        ds["kye/3"]
    with pytest.raises(KeyError, match=r"2 levels, allowed one of them: up\.1\.t100, up\.1\.t200"):
        ds[0].levels["s4"]
    with pytest.raises(ConfigError, match=r"level: got 's4', which is 2 levels"):
        ds.read("s4")
    with pytest.raises(ConfigError, match=r"or by stride s2, s4"):
        ds.torch(batch_size=2, levels=["s8"])


@pytest.mark.parametrize("which", [True, None, 1.0, [1.5], [[1, 2], [3, 4]], [1, "key/2"]])
def test_what_means_no_sample_is_refused(which: object, tmp_path: Path) -> None:
    """Python takes True for 1: a mask that was cut short would be a sample."""
    with pytest.raises(TypeError, match="allowed are a number or a key"):
        make(tmp_path)[which]  # type: ignore[call-overload]


def test_a_pass_takes_no_sample_twice_and_no_device_that_is_not_there(tmp_path: Path) -> None:
    ds = make(tmp_path)
    with pytest.raises(ConfigError, match="samples: got sample 3 2 times, allowed each once"):
        ds[[1, 3, 3]].torch(batch_size=2)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device: got cuda, allowed cpu"):
            ds.torch(batch_size=2, device="cuda")


def test_slices_lists_and_masks_are_samples_too(tmp_path: Path) -> None:
    ds = make(tmp_path)
    assert ds[2:5].keys == ["key/2", "key/3", "key/4"]
    assert ds["key/2":"key/4"].keys == ["key/2", "key/3", "key/4"]  # pyright: ignore
    assert ds[::-7].keys == ["key/19", "key/12", "key/5"]
    assert ds[["key/9", "key/1"]].keys == ["key/9", "key/1"]
    assert ds[[4, 0]][1].key == "key/0" and ds[5:][["key/6"]].keys == ["key/6"]
    assert ds[ds.labels == 2].labels.tolist() == [2, 2, 2] and len(ds[[]]) == 0
    assert ds[2:4].read("up.1.t100").shape == (2, 3, 2, 2)
    assert [sample.index for sample in ds] == list(range(COUNT))
    with pytest.raises(KeyError):
        ds[5:]["key/4"]


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_a_pass_gives_every_usable_sample_once(tmp_path: Path, codec: str) -> None:
    ds = make(tmp_path, codec=codec)
    batches = ds.torch(batch_size=6, levels=["s2", "up.1.t200"], seed=3)
    orders = []
    for _ in range(2):
        seen = []
        for batch in batches:
            assert batch.images is not None and batch.images.shape == (len(batch), 3, 4, 4)
            assert float(batch.images.min()) >= 0 and float(batch.images.max()) <= 1
            assert set(batch.levels) == {"up.2.t100", "up.1.t200"} and batch.label is not None
            stored = read_rows(ds.snapshot(), "up.2.t100", batch.index.numpy())
            np.testing.assert_allclose(batch.levels["s2"].numpy(), stored, rtol=1e-6, atol=1e-6)
            assert batch.label.tolist() == [n % 7 for n in batch.index.tolist()]
            seen += batch.index.tolist()
        assert sorted(seen) == [n for n in range(COUNT) if n != 7] and len(batches) == 4
        orders.append(seen)
    assert orders[0] != orders[1]


def test_a_subset_in_order_without_the_rest(tmp_path: Path) -> None:
    ds = make(tmp_path)
    batches = ds[5:12].torch(batch_size=4, shuffle=False, drop_last=True)
    assert [batch.index.tolist() for batch in batches] == [[5, 6, 8, 9]] and len(batches) == 1
    assert [batch.index.tolist() for batch in batches] == [[5, 6, 8, 9]]
    with pytest.raises(ConfigError, match="batch_size: got 0"):
        ds.torch(batch_size=0)
    with pytest.raises(DataError, match="no usable sample"):
        ds[7:8].torch(batch_size=1)


def test_units_that_are_missing_are_refused_by_name(tmp_path: Path) -> None:
    ds = make(tmp_path, units=2)
    assert ds[5].key == "key/5"
    with pytest.raises(DataError, match="got sample 15"):
        ds[15]
    with pytest.raises(DataError, match="missing units"):
        next(iter(ds.torch(batch_size=2)))
    write_unit_of(ds, 2)
    with pytest.raises(DataError):
        ds[15]
    assert ds.refresh()[15].key == "key/15"


def write_unit_of(ds: FeatureDataset, unit: int) -> None:
    with ds.unit_writer(unit, count=UNIT, run_id="later") as writer:
        writer.write(0, make_batch(unit * UNIT, UNIT, levels=LEVELS))
        writer.commit()
