"""Parquet columns of every type: read, mapped, or refused before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dreamshard.errors import ConfigError, DataError
from pipeline.images.source import ImageSource, SourceConfig, fingerprint, open_source
from tests.unit.pipeline.images.sources_tools import encoded

IMAGES = [encoded(1), encoded(2)]


def opened(path: Path, columns: dict[str, Any], **settings: str) -> ImageSource:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return open_source(SourceConfig(kind="parquet", path=str(path), **settings))  # type: ignore[arg-type]


def test_relabelled_rows_are_the_same_images_with_other_labels(tmp_path: Path) -> None:
    prints = [
        fingerprint(opened(tmp_path / "l.parquet", {"image": IMAGES, "label": labels}))
        for labels in ([0, 1], [1, 0])
    ]
    assert prints[0]["digest"] == prints[1]["digest"] and prints[0]["labels"] != prints[1]["labels"]


def test_other_images_of_the_same_sizes_are_told_apart(tmp_path: Path) -> None:
    prints = []
    for values in ((1, 2), (2, 1)):
        images = [encoded(value, kind="BMP") for value in values]
        prints.append(fingerprint(opened(tmp_path / "i.parquet", {"image": images})))
    assert prints[0] != prints[1]


@pytest.mark.parametrize(
    ("labels", "numbers", "classes"),
    [
        (["dog", "cat"], [1, 0], ("cat", "dog")),
        (pa.array(["dog", "cat"]).dictionary_encode(), [1, 0], ("cat", "dog")),
        ([0.0, float("nan")], [0, -1], ()),
        ([True, False], [1, 0], ()),
        ([None, 3], [-1, 3], ()),
    ],
)
def test_labels_of_every_type(
    labels: Any, numbers: list[int], classes: tuple[str, ...], tmp_path: Path
) -> None:
    source = opened(tmp_path / "s.parquet", {"image": IMAGES, "label": labels})
    assert [record.label for record in source.read([0, 1])] == numbers
    assert source.labels.classes == classes  # type: ignore[attr-defined]


@pytest.mark.parametrize("labels", [[[1], [2]], [0.5, 1.0], [{"a": 1}, {"a": 2}]])
def test_labels_that_are_no_classes_are_refused_with_the_way_out(
    labels: Any, tmp_path: Path
) -> None:
    columns = {"image": IMAGES, "label": labels}
    with pytest.raises(ConfigError, match="--source.label_column ''"):
        opened(tmp_path / "s.parquet", columns)
    assert not opened(tmp_path / "s.parquet", columns, label_column="").has_labels


def test_texts_are_no_images_unless_they_lead_to_files_beside(tmp_path: Path) -> None:
    for texts in (["/etc/hostname", "x"], ["../out.png", "x"], ["nothing.png", "x"]):
        with pytest.raises(ConfigError, match=r"source.image_column.*--source.kind folder"):
            opened(tmp_path / "p" / "p.parquet", {"image": texts})
    (tmp_path / "p" / "1.png").write_bytes(IMAGES[0])
    (tmp_path / "out.png").write_bytes(IMAGES[0])
    source = opened(tmp_path / "p" / "p.parquet", {"image": ["1.png", "../out.png"]})
    first, second = source.read([0, 1])
    assert first.data == IMAGES[0] and "leads out of the folder" in second.error
    columns = {"image": [{"bytes": None, "path": "1.png"}, {"bytes": IMAGES[1], "path": None}]}
    source = opened(tmp_path / "p" / "p.parquet", columns)
    assert [record.data for record in source.read([1, 0])] == [IMAGES[1], IMAGES[0]]


def test_a_column_of_numbers_holds_no_images(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source.image_column: got image of type int64"):
        opened(tmp_path / "n.parquet", {"image": [1, 2]})


def test_names_are_unique_over_files(tmp_path: Path) -> None:
    for part in ("train", "test"):
        opened(tmp_path / "f" / part / "0.parquet", {"image": [IMAGES[0]]})
    source = open_source(SourceConfig(path=str(tmp_path / "f" / "*" / "0.parquet")))
    assert [source.entry(index)[0] for index in (0, 1)] == ["test/0-00000000", "train/0-00000000"]
    for part in "ab":
        opened(tmp_path / "k" / f"{part}.parquet", {"image": [IMAGES[0]], "key": ["0"]})
    source = open_source(SourceConfig(kind="parquet", path=str(tmp_path / "k")))
    assert [source.entry(index)[0] for index in (0, 1)] == ["a/0", "b/0"]
    with pytest.raises(ConfigError, match=r"source.key_column: got '0' more than once"):
        opened(tmp_path / "twice.parquet", {"image": IMAGES, "key": ["0", "0"]})


def test_a_setting_that_the_kind_does_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source.split: got test, allowed nothing with kind"):
        opened(tmp_path / "s.parquet", {"image": IMAGES}, split="test")
    with pytest.raises(ConfigError, match=r"source.path: got photos, allowed nothing with kind"):
        open_source(SourceConfig(kind="digits", path="photos"))
    with pytest.raises(ConfigError, match=r"source.path: got nothing.*--source.kind digits"):
        open_source(SourceConfig())


@pytest.mark.parametrize("setting", ["key_column", "label_column", "mask_column"])
def test_a_column_of_a_name_of_ones_own_must_be_there(setting: str, tmp_path: Path) -> None:
    columns = {"image": IMAGES, "label": [0, 1]}
    with pytest.raises(ConfigError, match=rf"source.{setting}: got lable, not in .*Did you mean"):
        opened(tmp_path / "s.parquet", columns, **{setting: "lable"})
    assert not opened(tmp_path / "s.parquet", columns, **{setting: ""}).has_masks


def test_rows_without_the_column_that_others_have_are_counted(tmp_path: Path) -> None:
    opened(tmp_path / "f" / "a.parquet", {"image": IMAGES, "label": [0, 1]})
    opened(tmp_path / "f" / "b.parquet", {"image": IMAGES})
    source = open_source(SourceConfig(kind="parquet", path=str(tmp_path / "f")))
    assert [record.label for record in source.read(range(4))] == [0, 1, -1, -1]
    assert source.passed.lines() == [  # type: ignore[attr-defined]
        "2 rows without a label, in files without column label, such as 'b.parquet'"
    ]


def test_labels_may_stand_in_folders_of_partitions(tmp_path: Path) -> None:
    for part in ("label=dog", "label=a%20cat", "label=__HIVE_DEFAULT_PARTITION__"):
        opened(tmp_path / "h" / part / "0.parquet", {"image": [encoded(len(part))]})
    source = open_source(SourceConfig(kind="parquet", path=str(tmp_path / "h")))
    assert source.labels.classes == ("a cat", "dog")  # type: ignore[attr-defined]
    assert [record.label for record in source.read(range(3))] == [-1, 0, 1]


def test_names_of_classes_are_those_of_hugging_face(tmp_path: Path) -> None:
    def write(name: str, classes: list[str]) -> Path:
        note = {"info": {"features": {"label": {"names": classes, "_type": "ClassLabel"}}}}
        table = pa.table({"image": IMAGES, "label": [1, 0]})
        (tmp_path / "n").mkdir(exist_ok=True)
        table = table.replace_schema_metadata({"huggingface": json.dumps(note)})
        pq.write_table(table, tmp_path / "n" / name)
        return tmp_path / "n"

    config = SourceConfig(kind="parquet", path=str(write("a.parquet", ["cat", "dog"])))
    assert open_source(config).labels.classes == ("cat", "dog")  # type: ignore[attr-defined]
    write("b.parquet", ["dog", "cat"])
    with pytest.raises(ConfigError, match=r"cat, dog in .*a.parquet, dog, cat in .*one table"):
        open_source(config)


@pytest.mark.parametrize("keys", [["a", None], ["", "a"], [0.5, 1.5], [[1], [2]]])
def test_names_are_texts_or_whole_numbers(keys: list[Any], tmp_path: Path) -> None:
    columns = {"image": IMAGES, "key": keys}
    with pytest.raises(ConfigError, match=r"source.key_column: got .*--source.key_column ''"):
        opened(tmp_path / "k.parquet", columns)
    columns["key"] = [b"a\xff", b"b"]
    assert opened(tmp_path / "k.parquet", columns).entry(0)[0] == "a\\xff"


def test_a_table_without_rows_is_a_source_without_images(tmp_path: Path) -> None:
    nothing = {"image": pa.array([], pa.binary())}
    with pytest.raises(DataError, match="no image found"):
        opened(tmp_path / "e" / "1.parquet", nothing)
    opened(tmp_path / "e" / "0.parquet", {"image": IMAGES})
    source = open_source(SourceConfig(kind="parquet", path=str(tmp_path / "e")))
    assert len(source) == 2 and source.read([1])[0].data == IMAGES[1]


def test_a_column_that_a_table_has_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(IMAGES)] * 2, names=["image", "image"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=r"source.path: got 2 columns image in .*t.parquet"):
        open_source(SourceConfig(kind="parquet", path=str(tmp_path / "t.parquet")))
