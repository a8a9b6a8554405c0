"""COCO's annotations: what is hostile in them is one sentence before it reaches anything in C."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distill.tasks.coco import CocoImages
from dreamshard.errors import DataError

rasters = pytest.importorskip("pycocotools.mask")
HIGH, WIDE = 6, 8


def write(folder: Path, **changes: Any) -> str:
    """Write one image with one object; changes are to the annotation, or by name to the rest."""
    Image.fromarray(np.zeros((HIGH, WIDE, 3), np.uint8)).save(folder / "0.png")
    content: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "0.png", "width": WIDE, "height": HIGH}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]}],
    }
    content["annotations"][0] |= {k: v for k, v in changes.items() if k not in content}
    content |= {k: v for k, v in changes.items() if k in content}
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return str(path)


HOSTILE: dict[str, dict[str, Any]] = {
    "deep": {"bbox": json.loads("[" * 500 + "]" * 500)},
    "a box of text": {"bbox": ["x", 1, 1, 1]},
    "a box of three": {"bbox": [1, 1, 1]},
    "a box without end": {"bbox": [1, 1, 1e300, 1]},
    "an area of text": {"area": "x"},
    "a category that is not there": {"category_id": 9},
    "a category without a name": {"categories": [{"id": 1}]},
    "numbers and texts": {"categories": [{"id": 1, "name": "a"}, {"id": "b", "name": "b"}]},
    "a number that is a list": {"images": [{"id": [], "file_name": "0.png"}]},
    "images that are none": {"images": 5},
    "a name that leads out": {"images": [{"id": 1, "file_name": "../0.png"}]},
    "a name from the root": {"images": [{"id": 1, "file_name": "/dev/zero"}]},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_annotations_are_one_sentence(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, **HOSTILE[name])
    with pytest.raises(DataError, match=r"instances\.json: "):
        CocoImages("train", path, str(tmp_path))


MASKS: dict[str, Any] = {
    "an outline far out": [[0, 0, 1e8, 0, 1e8, 1e8, 0, 1e8]],
    "an outline of no place": [[float("1e300")] * 6],
    "half a point": [[1, 1, 2, 2, 3, 3, 4]],
    "runs too long": {"size": [HIGH, WIDE], "counts": [2, 1000000]},
    "runs too short": {"size": [HIGH, WIDE], "counts": [2, 1]},
    "runs below nothing": {"size": [HIGH, WIDE], "counts": [-2, HIGH * WIDE + 2]},
    "runs of another image": {"size": [1 << 20, 1 << 20], "counts": [1 << 40]},
    "packed runs too long": {"size": [HIGH, WIDE], "counts": "P100000000"},
    "packed runs without end": {"size": [HIGH, WIDE], "counts": "o" * 100_000},
    "packed runs of no letters": {"size": [HIGH, WIDE], "counts": "ß~\x00"},
    "no runs": {"size": [HIGH, WIDE]},
    "a number": 5,
}


@pytest.mark.parametrize("name", MASKS)
def test_hostile_masks_are_one_sentence(tmp_path: Path, name: str) -> None:
    found = CocoImages("train", write(tmp_path, segmentation=MASKS[name]), str(tmp_path))
    with pytest.raises(DataError, match=r"instances\.json: not readable as masks of 0\.png"):
        found.read(0)


def test_packed_and_plain_runs_are_the_mask_that_they_were_made_of(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((HIGH, WIDE)) < 0.4
    packed = rasters.encode(np.asfortranarray(mask.astype(np.uint8)))
    flat = mask.T.reshape(-1)
    ends = np.flatnonzero(np.diff(flat)) + 1
    plain = np.diff([0, *([0] if flat[0] else []), *ends, flat.size]).tolist()
    texts = {"size": [HIGH, WIDE], "counts": packed["counts"].decode()}
    for runs in (texts, {"size": [HIGH, WIDE], "counts": plain}):
        _, target = CocoImages("t", write(tmp_path, segmentation=runs), str(tmp_path)).read(0)
        assert np.array_equal(target["masks"][0].numpy(), mask)


def test_a_pipe_in_an_images_place_is_not_waited_for(tmp_path: Path) -> None:
    found = CocoImages("train", write(tmp_path), str(tmp_path))
    (tmp_path / "0.png").unlink()
    os.mkfifo(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"0\.png: got no regular file"):
        found.read(0)
