"""One source in two parts: by the images' bytes, whole, and never an image on both sides."""

from __future__ import annotations

import io
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dreamshard.errors import ConfigError, DataError
from pipeline.images import evidence
from pipeline.images.source import SourceConfig, evidence_of, fingerprint, labels_of, open_source
from pipeline.images.sources.parquet import ParquetSource

CLASSES = ("cat", "dog")


def draw(root: Path, count: int = 40) -> Path:
    rng = np.random.default_rng(5)
    for number in range(count):
        folder = root / CLASSES[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (6, 5, 3), np.uint8)).save(folder / f"{number}.png")
    return root


def part(root: Path, split: str, **others: bool) -> SourceConfig:
    return SourceConfig(kind="fifths", path=str(root), split=split, **others)


def test_the_parts_are_all_of_it(tmp_path: Path) -> None:
    root = draw(tmp_path / "a")
    sides = {n: open_source(part(root, n, class_folders=True)) for n in ("train", "heldout")}
    keys = {n: [s.entry(i)[0] for i in range(len(s))] for n, s in sides.items()}
    whole = open_source(SourceConfig(path=str(root)))
    assert sorted(keys["train"] + keys["heldout"]) == [whole.entry(i)[0] for i in range(40)]
    assert 1 <= len(keys["heldout"]) < len(keys["train"])
    for name, source in sides.items():
        labels = labels_of(source)
        assert labels is not None and labels.classes == CLASSES
        records = pickle.loads(pickle.dumps(source)).read(range(len(source)))
        for record, number, key in zip(records, labels.numbers, keys[name], strict=True):
            assert record.key == key and record.label == number
            assert key.startswith(CLASSES[number]) and record.data == (root / key).read_bytes()
    assert fingerprint(sides["train"])["digest"] != fingerprint(sides["heldout"])["digest"]


def test_bytes_decide_not_names(tmp_path: Path) -> None:
    first, second = draw(tmp_path / "a"), tmp_path / "b"
    second.mkdir()
    for number, path in enumerate(sorted(first.rglob("*.png"), reverse=True)):
        (second / f"x{number:03d}.png").write_bytes(path.read_bytes())
    sides = [open_source(part(root, "heldout")) for root in (first, second)]
    found = [sorted(bytes(r.data) for r in s.read(range(len(s)))) for s in sides]  # type: ignore
    assert found[0] == found[1]


def packed(kind: str, images: list[bytes], path: Path) -> SourceConfig:
    """Put images into one file of a kind, and ask for its fifths."""
    if kind == "parquet":
        pq.write_table(pa.table({"image": images}), path, row_group_size=30)
    else:
        with tarfile.open(path, "w") as archive:
            for number, image in enumerate(images):
                info = tarfile.TarInfo(f"{number:03d}.png")
                info.size = len(image)
                archive.addfile(info, io.BytesIO(image))
    return SourceConfig(kind="fifths", path=str(path))


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_files_of_many_images_are_parted_image_by_image(kind: str, tmp_path: Path) -> None:
    images = [path.read_bytes() for path in sorted(draw(tmp_path / "a", 200).rglob("*.png"))]
    config = packed(kind, [*images, *images[:20]], tmp_path / f"b.{kind}")
    sides = [open_source(replace(config, split=split)) for split in ("train", "heldout")]
    train, heldout = ([bytes(r.data) for r in s.read(range(len(s)))] for s in sides)  # type: ignore
    assert sorted(train + heldout) == sorted([*images, *images[:20]])
    assert not set(train) & set(heldout), "a copy is on both sides"
    assert 15 <= len(set(heldout)) <= 65  # five standard deviations around a fifth of 200
    assert not np.isin(evidence_of(sides[0]), evidence_of(sides[1])).any()


def test_an_image_is_on_the_same_side_in_a_folder_and_in_parquet(tmp_path: Path) -> None:
    root = draw(tmp_path / "a")
    images = [path.read_bytes() for path in sorted(root.rglob("*.png"))]
    config = packed("parquet", images, tmp_path / "b.parquet")
    both = [open_source(one) for one in (part(root, "heldout"), replace(config, split="heldout"))]
    folder, parquet = ({bytes(r.data) for r in s.read(range(len(s)))} for s in both)  # type: ignore
    assert folder == parquet


def test_a_parquet_file_is_read_through_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "user_cache", lambda: tmp_path / "cache")
    images = [path.read_bytes() for path in sorted(draw(tmp_path / "a").rglob("*.png"))]
    config = packed("parquet", images, tmp_path / "b.parquet")
    first = evidence_of(open_source(config))
    digests, read = ParquetSource._digested, []
    monkeypatch.setattr(ParquetSource, "_digested", lambda self: read.append(1) or digests(self))
    assert np.array_equal(evidence_of(open_source(config)), first) and not read
    packed("parquet", images[::-1], tmp_path / "b.parquet")
    assert np.array_equal(evidence_of(open_source(config)), first[::-1]) and read
    for file in (tmp_path / "cache" / "sources").iterdir():
        file.write_bytes(b"damaged")
    assert np.array_equal(evidence_of(open_source(config)), first[::-1]) and len(read) == 2


def test_what_cannot_be_parted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source\.path: got nothing"):
        open_source(SourceConfig(kind="fifths"))
    root = draw(tmp_path / "a", count=1)
    sides = ("train", "heldout")
    refused = 0
    for side in sides:
        try:
            open_source(part(root, side))
        except DataError as error:
            refused += 1
            assert "got none of 1 images in part" in str(error)
    assert refused == 1
    with pytest.raises(ConfigError, match="train | heldout | all"):
        open_source(part(root, "test"))
