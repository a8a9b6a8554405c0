"""One source in two parts: by the images' bytes, whole, and never an image on both sides."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamshard.errors import ConfigError, DataError
from pipeline.images.source import SourceConfig, fingerprint, labels_of, open_source

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
