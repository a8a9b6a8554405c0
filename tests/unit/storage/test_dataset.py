import json
import multiprocessing
import os
from pathlib import Path

import pytest

import dreamshard
from dreamshard.errors import DataError
from storage.dataset import Dataset
from storage.schema import Level, Pins
from tests.feature_store import (
    LEVELS,
    PINS,
    all_keys,
    expected_keys,
    fill,
    make_dataset,
    make_recipe,
    write_unit,
)

FORK = multiprocessing.get_context("fork")


def test_creating_again_returns_the_first_with_its_pins(tmp_path: Path) -> None:
    first = make_dataset(tmp_path)
    text = Path(first.files.path("dataset.json")).read_text()
    again = Dataset.create(
        str(tmp_path),
        make_recipe(),
        levels=LEVELS,
        image_size=(4, 4),
        pins=Pins(64, "bfloat16", "cuda", 8),
        extra={"note": "other"},
        labels=True,
        masks=True,
    )
    assert again.pins == PINS and again.url == first.url
    assert Path(first.files.path("dataset.json")).read_text() == text
    assert all_keys(first) == expected_keys(first)
    assert not os.path.exists(first.files.path("staging"))


@pytest.mark.parametrize(
    ("change", "field"),
    [({"levels": LEVELS[:2]}, "levels"), ({"image_size": (8, 8)}, "image_size"),
     ({"labels": False}, "labels")],
)  # fmt: skip
def test_another_dataset_in_the_same_folder_is_refused(tmp_path: Path, change, field: str) -> None:
    make_dataset(tmp_path)
    settings = {"levels": LEVELS, "image_size": (4, 4), "labels": True, "masks": True, **change}
    with pytest.raises(DataError, match=f"differs in {field}"):
        Dataset.create(str(tmp_path), make_recipe(), pins=PINS, extra={}, **settings)


def test_nothing_is_made_for_a_recipe_that_cannot_be(tmp_path: Path) -> None:
    bad = make_recipe(codec="int3")
    with pytest.raises(DataError, match="int3"):
        make_dataset(tmp_path / "root", recipe=bad)
    with pytest.raises(DataError, match="format"):
        make_dataset(tmp_path / "root", recipe=make_recipe(layout_format="parquet"))
    assert not (tmp_path / "root").exists()


def _create(root: str, micro_batch: int, barrier, results) -> None:
    barrier.wait()
    dataset = Dataset.create(
        root,
        make_recipe(),
        levels=LEVELS,
        image_size=(4, 4),
        pins=Pins(micro_batch, "float32", "cpu", 1),
        extra={},
        labels=True,
        masks=True,
    )
    dataset.grow(micro_batch)
    results.put(dataset.pins.micro_batch)


def test_creations_at_once_agree_and_the_largest_request_stays(tmp_path: Path) -> None:
    barrier, results = FORK.Barrier(4), FORK.Queue()
    runs = [
        FORK.Process(target=_create, args=(str(tmp_path), size, barrier, results))
        for size in (3, 20, 8, 14)
    ]
    for run in runs:
        run.start()
    pins = {results.get(timeout=60) for _ in runs}
    for run in runs:
        run.join()
    assert len(pins) == 1
    dataset = make_dataset(tmp_path)
    assert dataset.requested() == dataset.store.num_samples() == 20


def test_opening_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got no dataset"):
        Dataset.open(str(tmp_path / "nowhere"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="got no dataset"):
        Dataset.open(str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"memory://.*got no dataset"):
        Dataset.open("memory://nowhere/data")


def test_the_front_door_opens_it(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    assert dreamshard.open_dataset(dataset.url).recipe == dataset.recipe
    assert Dataset.open(f"file://{dataset.url}").url == dataset.url


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    path = Path(dataset.files.path("dataset.json"))
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "format_version": 2}))
    with pytest.raises(DataError, match="got format version 2, allowed up to 1.*newer dreamshard"):
        Dataset.open(dataset.url)


def test_datasets_without_images_labels_or_masks(tmp_path: Path) -> None:
    level = Level("emb", "embedding", "gap", 0, 0, "", 0, (5,), "float16")
    dataset = Dataset.create(
        str(tmp_path),
        make_recipe(levels=(level,)),
        levels=[level],
        image_size=(4, 4),
        pins=PINS,
        images=False,
    )
    fill(dataset, 8)
    assert dataset.snapshot().array_names == ("emb",)
    assert dataset.snapshot().labels.tolist() == [i % 7 for i in range(8)]  # in the manifest
    assert all_keys(dataset) == expected_keys(dataset)


def test_commit_of(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    dataset.grow(20)
    assert dataset.commit_of(1) is None
    commit = write_unit(dataset, 1, num_samples=20)
    assert dataset.commit_of(1) == commit == dataset.committed()[1]
    dataset.invalidate(1)
    assert dataset.commit_of(1) is None and dataset.committed() == {}
    assert not dataset.invalidate(5)


def test_a_partial_unit_is_a_request_for_its_end(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    write_unit(dataset, 0, num_samples=4)
    assert dataset.requested() == 4 and dataset.snapshot().num_samples == 4
    assert dataset.missing(4).tolist() == [] and dataset.missing(6).tolist() == [0]
