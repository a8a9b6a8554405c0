"""Images to learn from and to judge on have one class table, and draws have every class."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dreamshard.errors import DataError
from pipeline.images.pair import (
    compact,
    draw_by_class,
    draw_pair,
    open_pair,
    read_usable,
    require_labels,
)
from pipeline.images.source import ImageConfig, SourceConfig, labels_of
from tests.unit.pipeline.masked_shapes import png

SHADE = {"a": 10, "b": 100, "c": 200}


def folders(root: Path, names: str, *, count: int = 3, shift: int = 0) -> SourceConfig:
    """Write class folders whose images tell their class by their grey level."""
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(count):
            level = SHADE.get(name, 250) + number + shift
            Image.new("RGB", (8, 8), (level,) * 3).save(root / name / f"{number}.png")
    return SourceConfig(kind="folder", path=str(root), class_folders=True)


def parquet(path: Path, labels: list[object]) -> SourceConfig:
    images = [png(np.full((8, 8, 3), 7 + row, np.uint8)) for row in range(len(labels))]
    pq.write_table(pa.table({"image": images, "label": labels}), path)
    return SourceConfig(kind="parquet", path=str(path))


def numbers(config: tuple[SourceConfig, SourceConfig]) -> list[list[int]]:
    """Return the classes of both sources, as their records tell them."""
    pair = open_pair(*config)
    return [
        [record.label for record in source.read(range(len(source)))] for source in pair.values()
    ]


def test_class_folders_have_one_table_by_name(tmp_path: Path) -> None:
    train = folders(tmp_path / "train", "abc")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    heldout = folders(tmp_path / "held", "bc", shift=4)
    assert numbers((train, heldout)) == [[0, 0, 0, 1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2]]


def test_texts_in_a_column_have_one_table_by_name(tmp_path: Path) -> None:
    train = parquet(tmp_path / "t.parquet", ["dog", "ant", "cat"])
    heldout = parquet(tmp_path / "h.parquet", ["dog", "cat", None])
    assert numbers((train, heldout)) == [[2, 0, 1], [2, 1, -1]]


def test_folders_and_columns_agree_by_name(tmp_path: Path) -> None:
    train = folders(tmp_path / "train", "abc")
    assert numbers((train, parquet(tmp_path / "h.parquet", ["c", "a"])))[1] == [2, 0]
    (tmp_path / "10").mkdir()
    train = folders(tmp_path / "10", ["9", "10"])  # type: ignore[arg-type]  # sorted: 10, 9
    assert numbers((train, parquet(tmp_path / "n.parquet", [9, 10])))[1] == [1, 0]


def test_classes_that_training_has_not_are_refused_by_name(tmp_path: Path) -> None:
    train = folders(tmp_path / "train", "ab")
    with pytest.raises(DataError, match=r"heldout_images: got classes c that no image of train_"):
        open_pair(train, folders(tmp_path / "held", "abc"))
    (tmp_path / "train" / "c").mkdir()
    with pytest.raises(DataError, match="classes c"):  # a folder without images teaches nothing
        open_pair(
            train, SourceConfig(kind="folder", path=str(tmp_path / "held"), class_folders=True)
        )
    with pytest.raises(DataError, match="One source has names of classes, the other numbers"):
        open_pair(train, parquet(tmp_path / "h.parquet", [0, 1]))
    with pytest.raises(DataError, match=r"monitor\.heldout_images: got classes 2, 7"):
        both = parquet(tmp_path / "a.parquet", [0, 1]), parquet(tmp_path / "b.parquet", [2, 7, 1])
        open_pair(*both, prefix="monitor.")
    open_pair(*both, classes=False)


def test_missing_classes_and_shared_images_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = folders(tmp_path / "train", "abc")
    with caplog.at_level(logging.WARNING):
        open_pair(train, folders(tmp_path / "held", "b"))
    assert "no image of 2 classes that are learnt (a, c)" in caplog.text
    assert "heldout_images: 3 of 3 images (" in caplog.text
    assert "that were compared are in train_images, too" in caplog.text


def test_equal_names_are_told_apart_by_their_order(tmp_path: Path) -> None:
    """ImageNet has two classes named crane: the n-th of one list is the n-th of the other."""
    from pipeline.images.labels import Labels, renumbered

    like = Labels(np.array([0, 1, 2]), ("crane", "dog", "crane"))
    mine = Labels(np.array([0, 1, 1]), ("crane", "crane"))
    found = renumbered(mine, like=like, key="heldout_images", other="train_images")
    assert found.numbers.tolist() == [0, 2, 2]


def test_classes_are_numbered_without_gaps() -> None:
    train, heldout, classes = compact(np.array([9_000_027, 3, 3]), np.array([3, 9_000_027]))
    assert train.tolist() == [1, 0, 0] and heldout.tolist() == [0, 1]
    assert classes.tolist() == [3, 9_000_027]
    with pytest.raises(DataError, match=r"heldout: got classes \[4\] that no image of train has"):
        compact(np.array([1, 2]), np.array([1, 4]))
    with pytest.raises(DataError, match="one class alone"):
        compact(np.array([1, 1]), np.array([1]))


def test_draws_take_classes_in_turn() -> None:
    labels = np.repeat([0, 1, 2, -1], [100, 50, 5, 30])
    drawn = draw_by_class(labels, count=60, seed=0)
    counts = np.bincount(labels[drawn])
    assert counts[2] == 5 and counts[:2].tolist() in ([27, 28], [28, 27])
    assert np.array_equal(drawn, np.unique(drawn)) and not np.array_equal(drawn[:27], range(27))
    assert np.array_equal(drawn, draw_by_class(labels, count=60, seed=0))
    assert not np.array_equal(drawn, draw_by_class(labels, count=60, seed=1))
    assert len(set(labels[draw_by_class(labels, count=2, seed=0)].tolist())) == 2
    assert len(draw_by_class(labels, count=1000, seed=0)) == 155, "unlabelled ones are not drawn"


def test_both_draws_have_the_same_classes(tmp_path: Path) -> None:
    many = parquet(tmp_path / "t.parquet", [f"c{row // 2}" for row in range(40)])
    sources = open_pair(
        many, parquet(tmp_path / "h.parquet", [f"c{row // 2}" for row in range(40)])
    )
    drawn = draw_pair(sources, count=7, seed=0)
    classes = []
    for part, source in sources.items():
        labels = labels_of(source)
        assert labels is not None
        classes.append(set(labels.numbers[drawn[part]].tolist()))
    assert classes[0] == classes[1] and len(classes[0]) == 7


def test_unusable_images_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = folders(tmp_path / "train", "ab")
    (tmp_path / "train" / "a" / "1.png").write_bytes(b"no image")
    train = open_pair(source, source)["train"]
    how = {"config": ImageConfig(), "size": (8, 8), "seed": 0, "key": "train_images"}
    with caplog.at_level(logging.WARNING):
        images, labels = read_usable(train, numbers=np.array([1, 2, 5]), **how)  # type: ignore[arg-type]
    assert labels is not None and labels.tolist() == [0, 1]
    assert images[:, 0, 0, 0].tolist() == [12, 102]
    assert "train_images: 1 of 3 images cannot be used and are left out" in caplog.text
    with pytest.raises(DataError, match="none can be used"):
        read_usable(train, numbers=np.array([1]), **how)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"got none of 6 images"):
        read_usable(train, numbers=np.array([], np.int64), **how)  # type: ignore[arg-type]


def test_one_name_in_two_spellings_of_unicode_is_one_class(tmp_path: Path) -> None:
    """A letter with its accent, or a letter and an accent, as some file systems keep it."""
    train = parquet(tmp_path / "t.parquet", ["caf\u00e9", "tea"])
    heldout = parquet(tmp_path / "h.parquet", ["tea", "cafe\u0301"])
    assert numbers((train, heldout)) == [[0, 1], [1, 0]]


def test_images_without_a_label_are_counted_and_the_first_is_named() -> None:
    labels = np.array([0, -1, 2, -1])
    assert require_labels(np.abs(labels), key="x").tolist() == [0, 1, 2, 1]
    with pytest.raises(DataError, match=r"x: got 2 of 4 images without a label.*number 1 \(b\)"):
        require_labels(labels, key="x", keys=["a", "b", "c", "d"])
    for nothing in (None, np.full(3, -1)):
        with pytest.raises(DataError, match=r"without labels.*Set x.label_column"):
            require_labels(nothing, key="x")
