"""Every source lists and reads the same images in the same order, and knows itself again."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dreamshard.errors import ConfigError, DataError
from pipeline.images.prepare import decode
from pipeline.images.source import (
    ImageSource,
    SourceConfig,
    fingerprint,
    open_source,
    prefix_digest,
)

COUNT = 12


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 6, 3), number, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def make_folder(path: Path, count: int) -> SourceConfig:
    for number in range(count):
        file = path / "data" / ("ab"[number % 2]) / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number))
    (path / "data" / "notes.txt").write_text("no image")
    return SourceConfig(kind="folder", path=str(path / "data"), class_folders=True)


def make_parquet(path: Path, count: int) -> SourceConfig:
    for start in range(0, count, 6):
        rows = range(start, min(start + 6, count))
        table = pa.table(
            {
                "key": [f"k{row}" for row in rows],
                "image": [png(row) for row in rows],
                "label": [row % 3 for row in rows],
                "mask": [png(row) for row in rows],
            }
        )
        path.mkdir(exist_ok=True)
        pq.write_table(table, path / f"part-{start:03d}.parquet", row_group_size=4)
    return SourceConfig(kind="parquet", path=str(path))


def make_tar(path: Path, count: int) -> SourceConfig:
    path.mkdir(exist_ok=True)
    for start in range(0, count, 6):
        with tarfile.open(path / f"{start:03d}.tar", "w") as archive:
            for number in range(start, min(start + 6, count)):
                for name, data in (("cls", b"%d" % (number % 3)), ("png", png(number))):
                    info = tarfile.TarInfo(f"s/{number:04d}.{name}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return SourceConfig(kind="webdataset", path=str(path / "*.tar"))


MAKERS = {"folder": make_folder, "parquet": make_parquet, "webdataset": make_tar}
maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
Make = Callable[[Path, int], SourceConfig]


def values(source: ImageSource, indices: list[int]) -> list[int]:
    records = source.read(indices)
    assert [record.key for record in records] == [source.entry(index)[0] for index in indices]
    return [int(np.asarray(decode(record.data))[0, 0, 0]) for record in records]


@maker
def test_lists_reads_and_pickles(make: Make, tmp_path: Path) -> None:
    source = open_source(make(tmp_path / "s", COUNT))
    assert len(source) == COUNT and source.has_labels
    everything = values(source, list(range(COUNT)))
    assert sorted(everything) == list(range(COUNT))
    copy = pickle.loads(pickle.dumps(source))
    assert values(copy, [7, 2, 9]) == [everything[index] for index in (7, 2, 9)]
    assert len({source.entry(index)[0] for index in range(COUNT)}) == COUNT


@maker
def test_a_source_that_grew_at_its_end_is_recognised(make: Make, tmp_path: Path) -> None:
    config = make(tmp_path / "s", COUNT)
    before = open_source(config)
    assert fingerprint(before) == fingerprint(open_source(config))
    if config.kind == "folder":  # sorted by path: it grows at its end if names do
        config.path = str(tmp_path / "s" / "data" / "b")
        before = open_source(config)
        (tmp_path / "s" / "data" / "b" / "999.png").write_bytes(png(99))
    else:
        make(tmp_path / "s", 2 * COUNT)
    after = open_source(config)
    assert len(after) > len(before)
    assert prefix_digest(after, len(before)) == fingerprint(before)["digest"]
    assert fingerprint(after)["digest"] != fingerprint(before)["digest"]


def test_digits_split_is_fixed() -> None:
    parts = {
        split: open_source(SourceConfig(kind="digits", split=split))
        for split in ("train", "heldout", "all")
    }
    assert {split: len(source) for split, source in parts.items()} == {
        "train": 1297,
        "heldout": 500,
        "all": 1797,
    }
    keys = {
        split: {source.entry(index)[0] for index in range(len(source))}
        for split, source in parts.items()
    }
    assert keys["train"] | keys["heldout"] == keys["all"]
    assert [parts["heldout"].entry(index)[0] for index in range(5)] == GOLDEN_HELDOUT
    record = parts["train"].read([0])[0]
    assert isinstance(record.data, np.ndarray) and record.data.shape == (16, 16, 3)
    assert np.ptp(record.data, axis=2).max() == 0 and record.data.max() > 200
    held = [parts["heldout"].read([index])[0].label for index in range(500)]
    assert min(np.bincount(held, minlength=10)) >= 20


GOLDEN_HELDOUT = ["digits-00001", "digits-00004", "digits-00009", "digits-00010", "digits-00024"]


def test_folder_labels_and_masks_of_parquet(tmp_path: Path) -> None:
    folder = open_source(make_folder(tmp_path / "f", 4))
    assert [record.label for record in folder.read([0, 1, 2, 3])] == [0, 0, 1, 1]
    parquet = open_source(make_parquet(tmp_path / "p", 4))
    assert parquet.has_masks and parquet.read([3])[0].mask == png(3)


def test_torchvision_by_name(tmp_path: Path) -> None:
    path = tmp_path / "fake"
    for number in range(3):
        (path / "cats").mkdir(parents=True, exist_ok=True)
        (path / "cats" / f"{number}.png").write_bytes(png(number))
    source = open_source(SourceConfig(kind="torchvision", name="ImageFolder", path=str(path)))
    assert len(source) == 3 and values(source, [2]) == [2]
    with pytest.raises(ConfigError, match="source.name"):
        open_source(SourceConfig(kind="torchvision", name="Nothing", path=str(path)))
    with pytest.raises(ConfigError, match="source.path"):
        open_source(SourceConfig(kind="torchvision", name="CIFAR10", path=str(path)))


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_a_missing_source_is_a_config_error(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="source.path"):
        open_source(SourceConfig(kind=kind, path=str(tmp_path / "nowhere")))


def test_other_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source.split: got trian, allowed train \| heldout"):
        open_source(SourceConfig(kind="digits", split="trian"))
    with pytest.raises(DataError, match="no image"):
        open_source(SourceConfig(kind="folder", path=str(tmp_path)))
    config = make_parquet(tmp_path / "p", 4)
    config.image_column = "picture"
    with pytest.raises(ConfigError, match="source.image_column"):
        open_source(config)
    (tmp_path / "bad.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="bad.parquet"):
        open_source(SourceConfig(kind="parquet", path=str(tmp_path / "bad.parquet")))
    assert SourceConfig(kind="folders").problems()[0].hint == "Did you mean folder?"
    assert SourceConfig(kind="folder").problems()[0].key == "path"


def test_sources_are_listed_for_a_user_without_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("evidence", "sources.index_cache"):
        monkeypatch.setattr(f"pipeline.images.{name}.user_cache", lambda: None)
    for make in (make_folder, make_tar):
        assert values(open_source(make(tmp_path / make.__name__, 4)), [3]) == [3]


def test_parts_of_a_dataset_are_no_classes(tmp_path: Path) -> None:
    for name in ("train/cat/0", "train/dog/1", "Val/cat/2"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.png").write_bytes(png(1))
    config = SourceConfig(kind="folder", path=str(tmp_path), class_folders=True)
    with pytest.raises(ConfigError, match=r"source.class_folders.* Val, train, .*tmp.*/Val\."):
        open_source(config)
    (tmp_path / "train" / "3.png").write_bytes(png(3))  # a class may be called so
    assert open_source(config).labels.classes == ("Val", "train")  # type: ignore[attr-defined]


class Pictures:
    """A dataset of torchvision whose targets are no class numbers."""

    def __init__(self, root: str) -> None:
        self.root = root

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        return np.full((8, 8, 3), index, np.uint8), "a mask"


class Annotated:
    """One that needs more than a folder."""

    def __init__(self, root: str, annFile: str) -> None:
        pass


def test_torchvision_without_class_numbers_or_with_further_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets

    for cls in (Pictures, Annotated):
        monkeypatch.setattr(torchvision.datasets, cls.__name__, cls, raising=False)
    source = open_source(SourceConfig(kind="torchvision", name="Pictures", path=str(tmp_path)))
    assert not source.has_labels and "2 targets that are no class" in source.passed.lines()[0]  # type: ignore[attr-defined]
    for name, takes in (("Annotated", "annFile"), ("FakeData", "size")):
        with pytest.raises(ConfigError, match=f"source.name: got {name}, which takes {takes}"):
            open_source(SourceConfig(kind="torchvision", name=name, path=str(tmp_path)))
