import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr

from storage.dataset import Dataset
from tests.feature_store import fill, make_batch, make_dataset, make_recipe, write_unit


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path)


@pytest.mark.parametrize("consolidated", [None, False, True])
def test_plain_zarr_reads_one_array_per_level(dataset: Dataset, consolidated) -> None:
    fill(dataset, 20)
    batch = make_batch(0, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(f"{dataset.url}/data.zarr", mode="r", use_consolidated=consolidated)
        arrays = {name: np.asarray(group[name]) for name in group.array_keys()}
    wanted = {"image": batch.image, "label": batch.label, "mask": batch.mask, **batch.levels}
    assert set(arrays) == set(wanted)
    for name, values in wanted.items():
        assert np.array_equal(arrays[name], np.asarray(values).astype(arrays[name].dtype)), name
    assert arrays["up.1.t100"].dtype == np.float16
    array = zarr.open(f"{dataset.url}/data.zarr", mode="r")["up.1.t100"]
    assert array.chunks == (6, 3, 2, 2)
    assert array.metadata.dimension_names == ("sample", "channel", "height", "width")


def test_plain_zarr_reads_without_any_import_of_ours(dataset: Dataset) -> None:
    fill(dataset, 20)
    code = (
        "import sys, zarr; g = zarr.open(sys.argv[1], mode='r');"
        "print(g['up.1.t100'][:].shape, float(g['emb'][19][0]), g['label'][:].tolist());"
        "assert not {'storage', 'dreamshard'} & set(sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, f"{dataset.url}/data.zarr"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    ).stdout
    first = float(make_batch(19, 1).levels["emb"][0, 0])
    assert out == f"(20, 3, 2, 2) {first} {[i % 7 for i in range(20)]}\n"


def test_holes_read_as_fill_values(dataset: Dataset) -> None:
    dataset.grow(18)
    write_unit(dataset, 1, num_samples=18)
    group = zarr.open_group(f"{dataset.url}/data.zarr", mode="r")
    level, label = np.asarray(group["up.1.t100"]), np.asarray(group["label"])
    assert np.isnan(level[:6]).all() and np.isnan(level[12:]).all()
    assert np.isfinite(level[6:12]).all()
    assert label.tolist() == [-1] * 6 + [i % 7 for i in range(6, 12)] + [-1] * 6
    assert (np.asarray(group["image"])[:6] == 0).all()
    assert (np.asarray(group["top"])[:6] == 0).all()


def test_the_shape_follows_requests_and_never_shrinks(dataset: Dataset) -> None:
    assert zarr.open_group(f"{dataset.url}/data.zarr", mode="r")["emb"].shape == (0, 5)
    for request, shape in ((8, 8), (20, 20), (3, 20)):
        dataset.grow(request)
        group = zarr.open_group(f"{dataset.url}/data.zarr", mode="r")
        assert {array.shape[0] for _, array in group.arrays()} == {shape}
        assert dataset.store.num_samples() == dataset.requested() == shape


def test_metadata_that_is_not_whole_is_written_again(dataset: Dataset) -> None:
    dataset.grow(8)
    path = Path(dataset.files.path("data.zarr/emb/zarr.json"))
    for text in ("", "{}", json.dumps({"shape": [5, 5]})):
        path.write_text(text)
        assert dataset.store.num_samples() is None
        dataset.grow(8)
        assert dataset.store.num_samples() == 8
    path.unlink()
    Dataset.open(dataset.url).grow(0)
    assert dataset.store.num_samples() == 8


def test_chunks_are_raw_rows_padded_with_fill_values(dataset: Dataset) -> None:
    fill(dataset, 8)
    path = dataset.files.path("data.zarr/up.1.t100/c/1/0/0/0")
    rows = np.fromfile(path, "<f2").reshape(6, 3, 2, 2)
    assert np.array_equal(rows[:2], make_batch(6, 2).levels["up.1.t100"].astype("<f2"))
    assert np.isnan(rows[2:]).all()
    assert np.fromfile(dataset.files.path("data.zarr/label/c/1"), "<i8")[2:].tolist() == [-1] * 4


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda p: p.unlink(), "got no file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes, allowed"),
        (lambda p: p.write_bytes(p.read_bytes() + b"x"), "bytes, allowed"),
        (lambda p: p.write_bytes(b"\x01" + p.read_bytes()[1:]), "got digest"),
        (lambda p: (p.rename(p.with_name("x")), p.symlink_to("x")), "got a link"),
    ],
)
def test_damage_is_found(dataset: Dataset, damage, text: str) -> None:
    fill(dataset, 6)
    path = Path(dataset.files.path("data.zarr/emb/c/0/0"))
    damage(path)
    problems = dataset.store.problems(dataset.committed()[0], quick=False)
    assert [where for where, _ in problems] == [str(path)]
    assert text in problems[0][1]
    assert not dataset.store.holds(dataset.committed()[0])


def test_strays_are_found(dataset: Dataset) -> None:
    fill(dataset, 6)
    assert list(dataset.store.strays({0})) == []
    dataset.files.write("data.zarr/emb/c/7/0", b"x")
    assert list(dataset.store.strays({0})) == ["data.zarr/emb/c/7"]


@pytest.mark.parametrize("codec", ["float16", "bfloat16", "int8", "float16+zstd"])
def test_tensorstore_reads_every_array(tmp_path: Path, codec: str) -> None:
    tensorstore = pytest.importorskip("tensorstore", reason="pip install 'dreamshard[bench]'")
    dataset = make_dataset(tmp_path, recipe=make_recipe(codec=codec))
    fill(dataset, 20)
    group = zarr.open_group(f"{dataset.url}/data.zarr", mode="r")
    for name in group.array_keys():
        store = {"driver": "file", "path": f"{dataset.url}/data.zarr/{name}"}
        array = tensorstore.open({"driver": "zarr3", "kvstore": store}, open=True).result()
        assert np.array_equal(np.asarray(array[:].read().result()), np.asarray(group[name])), name
