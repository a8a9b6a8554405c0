"""Datasets whose levels are quantised, learned or compressed: written, read, checked, explained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dreamshard.errors import DataError
from storage.batches.reader import BatchReader
from storage.codecs.base import ArraySpec
from storage.codecs.lossless import compress, decompress
from storage.dataset import Dataset
from storage.rows.pick import read_rows
from storage.verbs.verify import verify_dataset
from tests.codec_bounds import bound
from tests.feature_store import fill, make_batch, make_dataset, make_recipe

N = 20
CODECS = "bfloat16 int8 int4 lowrank2-int4 dct4 dct3+zstd float16+zstd int8+blosc".split()


def build(root: Path, codec: str, layout_format: str = "zarr") -> Dataset:
    dataset = make_dataset(root, recipe=make_recipe(codec=codec, layout_format=layout_format))
    if dataset.unfitted():
        dataset.fit(make_batch(0, N))
    return dataset


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("layout_format", ["zarr", "tar"])
def test_what_is_read_lies_within_the_bound(tmp_path: Path, codec: str, layout_format: str) -> None:
    if layout_format == "tar" and "+" in codec:
        with pytest.raises(DataError, match="in format 'tar', allowed none"):
            build(tmp_path, codec, layout_format)
        return
    dataset = build(tmp_path, codec, layout_format)
    fill(dataset, N, invalid=(7,))
    assert verify_dataset(dataset).findings == []
    snapshot, batch = dataset.snapshot(), make_batch(0, N)
    valid = np.arange(N) != 7
    for name in ("up.1.t100", "emb"):
        level = next(item for item in dataset.levels if item.name == name)
        found = read_rows(snapshot, name, range(N))[valid].astype(np.float64)
        limit = bound(dataset.codec(name), level, batch.levels[name])[valid]
        assert (np.abs(found - batch.levels[name][valid]) <= limit).all()
    with BatchReader(snapshot, levels=["up.1.t100"], batch_size=4, images=False) as reader:
        rows = reader.next()
        parts = reader.components["up.1.t100"]
        assert set(rows.levels) == set(parts) and parts[0] == "up.1.t100"
        decoded = snapshot.decode("up.1.t100", rows.levels)
        assert np.array_equal(decoded, read_rows(snapshot, "up.1.t100", rows.index))
    assert snapshot.codec_name("up.1.t100") == codec and snapshot.codec_name("image") == "raw"


@pytest.mark.parametrize("codec", CODECS)
def test_plain_zarr_reads_arrays_scales_and_how_to_decode(tmp_path: Path, codec: str) -> None:
    import zarr

    dataset = build(tmp_path, codec)
    fill(dataset, N)
    group = zarr.open_group(f"{dataset.url}/data.zarr", mode="r")
    snapshot = dataset.snapshot()
    for name in snapshot.array_names:
        stored = read_rows(snapshot, name, range(N), decode=False)
        assert np.array_equal(np.asarray(group[name]), stored)
    attributes = dict(group["up.1.t100"].attrs)
    if codec == "int8":
        scale = np.asarray(group[attributes["scale"]]).astype("f4")
        values = np.asarray(group["up.1.t100"]) * scale[:, :, None, None]
        assert np.array_equal(values, read_rows(snapshot, "up.1.t100", range(N)))
    if codec == "bfloat16":
        bits = np.asarray(group["up.1.t100"]).astype("u4") << 16
        assert np.array_equal(bits.view("f4"), read_rows(snapshot, "up.1.t100", range(N)))
    assert "+" in codec or attributes["decode"]


def test_a_basis_comes_first_and_once_and_is_named_in_every_commit(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, recipe=make_recipe(codec="lowrank2-int8"))
    assert dataset.unfitted() == ["up.1.t100", "emb"]
    dataset.grow(N)
    with pytest.raises(DataError, match="got no basis for codec lowrank2-int8"):
        dataset.unit_writer(0, count=6, run_id="run")
    dataset.fit(make_batch(0, N))
    key = f"{dataset.url}/codecs/up.1.t100.npy"
    before = Path(key).read_bytes()
    Dataset.open(dataset.url).fit(make_batch(50, N))  # a later fit changes nothing
    assert Path(key).read_bytes() == before and dataset.unfitted() == []
    assert np.load(key).shape == (3, 3)
    fill(dataset, N)
    named = {str(commit.extra["bases"]) for commit in dataset.committed().values()}
    assert len(named) == 1 and "up.1.t100" in named.pop()
    assert verify_dataset(dataset).findings == [] and verify_dataset(dataset).notes == []
    damaged = bytearray(before)
    damaged[-1] ^= 1
    Path(key).write_bytes(damaged)
    report = verify_dataset(Dataset.open(dataset.url))
    assert len(report.findings) == 4 and "codec bases" in str(report.findings[0])
    Path(key).write_bytes(before[:40])
    with pytest.raises(DataError, match="damaged basis"):
        read_rows(Dataset.open(dataset.url).snapshot(), "up.1.t100", [0])


def test_a_damaged_compressed_chunk_is_named(tmp_path: Path) -> None:
    dataset = build(tmp_path, "float16+zstd")
    fill(dataset, N)
    path = Path(dataset.snapshot().chunk_path("up.1.t100", 1))
    good = path.read_bytes()
    for bad in (good[:-3], b"", good[:4] + b"\xff" * 40, b"x" * len(good)):
        path.write_bytes(bad)
        with pytest.raises(DataError, match="damaged chunk"):
            read_rows(dataset.snapshot(), "up.1.t100", [8])
        assert [finding.unit for finding in verify_dataset(dataset).findings] == [1]


@pytest.mark.parametrize("compression", ["zstd", "blosc"])
def test_a_chunk_that_states_more_bytes_is_not_unpacked(compression: str) -> None:
    spec = ArraySpec("a", np.dtype("<f2"), (4,), 0, compression=compression)
    packed = compress(spec, np.zeros((1 << 20, 4), np.float16))
    with pytest.raises(DataError, match="damaged chunk"):
        decompress(spec, packed, np.empty((2, 4), np.float16), where="chunk")
    out = np.ones((1 << 20, 4), np.float16)
    decompress(spec, packed, out, where="chunk")
    assert not out.any()


def test_values_too_large_for_a_scale_are_named(tmp_path: Path) -> None:
    dataset = build(tmp_path, "int8")
    dataset.grow(N)
    batch = make_batch(0, 6)
    batch.levels["up.1.t100"][4, 1, 0, 0] = 1e9
    with (
        dataset.unit_writer(0, count=6, run_id="run") as writer,
        pytest.raises(DataError, match=r"up.1.t100, unit 0, row 4: got 1e\+09"),
    ):
        writer.write(0, batch)
