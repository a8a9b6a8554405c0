"""COCO's annotations of images: boxes and masks, checked before they are used.

Boxes are (left, top, width, height) in pixels.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.foreign.files import read_bytes
from dreamshard.foreign.guard import reading
from dreamshard.foreign.text import read_json
from pipeline.images.prepare import decode

Target = dict[str, Tensor]
MAX_ANNOTATIONS, MAX_ANNOTATED = 1 << 30, 1 << 27
"""Bytes and values of an annotations' file; COCO's own has 449 MB."""
MAX_IMAGE = 256 << 20  # bytes
MAX_PLACE = 1 << 24
"""Pixels; a box is float32."""


class CocoImages:
    """Images with boxes and masks, as COCO's JSON lists them.

    Args:
        split: train or heldout, for messages.
        annotations: the JSON file.
        folder: of the images.

    Attributes:
        categories: COCO's number of a category -> its name; the network's are 1.. in this order.
        annotated: int64 (M,), the rows that have a box.
    """

    def __init__(self, split: str, annotations: str, folder: str) -> None:
        from pycocotools.coco import COCO

        key = f"detection.{split}_annotations"
        if not Path(annotations).is_file():
            raise ConfigError(Problem(key, annotations or "nothing", "a COCO JSON file"))
        self._folder, self._path = Path(folder), annotations
        self._coco: Any = COCO()
        with reading(annotations, "COCO's JSON", error=DataError):
            self._coco.dataset = read_json(
                Path(annotations), error=DataError, limit=MAX_ANNOTATIONS, values=MAX_ANNOTATED
            )
            with contextlib.redirect_stdout(io.StringIO()):  # it prints that it is done
                self._coco.createIndex()
            self._images = sorted(self._coco.getImgIds())
            numbers = sorted(self._coco.getCatIds())
            self.categories = {number: str(self._coco.cats[number]["name"]) for number in numbers}
            self._check(self._coco.anns.values())
            has_box = [bool(self._boxes(image)) for image in self._images]
        names = list(self.categories.values())
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"{annotations}: got several categories named {twice}, allowed one.")
        self._class_of = {number: place for place, number in enumerate(numbers, 1)}
        self.annotated = np.flatnonzero(has_box).astype(np.int64)
        if not len(self.annotated):
            raise DataError(f"{annotations}: got no box of any area, allowed at least one.")

    def __len__(self) -> int:
        return len(self._images)

    def boxed(self) -> set[str]:
        """Name the categories that a box has."""
        numbers = {each["category_id"] for image in self._images for each in self._boxes(image)}
        return {self.categories[number] for number in numbers}

    def number_as(self, other: CocoImages) -> None:
        """Give categories the numbers that those of the same name have in other annotations."""
        numbers = {name: other._class_of[number] for number, name in other.categories.items()}
        self._class_of = {number: numbers[name] for number, name in self.categories.items()}

    def require_masks(self) -> None:
        """Refuse objects without a mask.

        Raises: DataError naming the first images that have one.
        """
        bare = [
            str(self._coco.imgs[image]["file_name"])
            for image in self._images
            if any(not each.get("segmentation") for each in self._boxes(image))
        ]
        if bare:
            shown = ", ".join(bare[:3]) + (f" and {len(bare) - 3} more" if len(bare) > 3 else "")
            raise DataError(
                f"{self._path}: got objects without a segmentation in {shown}, allowed a mask for "
                "every box. Set detection.masks to false."
            )

    def read_judged(self, row: int) -> tuple[Tensor, Target]:
        """Return what `read` does with crowds among the objects, "iscrowd" and "area".

        COCO's evaluation forgives what is found inside a crowd, and tells sizes by the annotated
        area.
        """
        objects = self._boxes(self._images[row], crowds=True)
        image, target = self._read(row, objects)
        target["iscrowd"] = torch.tensor([int(each.get("iscrowd", 0)) for each in objects])
        boxes = [each["bbox"] for each in objects]
        areas = [
            float(each.get("area", box[2] * box[3]))
            for each, box in zip(objects, boxes, strict=True)
        ]
        target["area"] = torch.tensor(areas)
        return image, target

    def read(self, row: int) -> tuple[Tensor, Target]:
        """Return an image, float32 (3, H, W) in 0..1, and its boxes, labels and masks.

        Raises:
            DataError: an image that cannot be read.
        """
        return self._read(row, self._boxes(self._images[row]))

    def _check(self, annotations: Iterable[dict[str, Any]]) -> None:
        """Raise ValueError for what annotations name that is not there, or boxes of no place."""
        for each in self._coco.imgs.values():
            name = Path(str(each["file_name"]))
            if name.is_absolute() or ".." in name.parts:
                raise ValueError(f"file_name {str(name)!r} leads out of the folder of images")
        for each in annotations:
            if each["category_id"] not in self.categories:
                raise ValueError(f"annotation {each['id']} is of no category")
            if len(each["bbox"]) != 4 or not all(abs(float(x)) < MAX_PLACE for x in each["bbox"]):
                raise ValueError(f"annotation {each['id']} has a bbox that is no box")
            _ = float(each.get("area", 0)) + int(each.get("iscrowd", 0))  # both are numbers

    def _read(self, row: int, objects: list[dict[str, Any]]) -> tuple[Tensor, Target]:
        number = self._images[row]
        path = self._folder / str(self._coco.imgs[number]["file_name"])
        with reading(str(path), "an image", error=DataError):
            pixels = np.array(decode(read_bytes(path, limit=MAX_IMAGE, error=DataError)))
        boxes = np.array([each["bbox"] for each in objects], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        with reading(self._path, f"masks of {path.name}", error=DataError):
            shape = pixels.shape[:2]
            masks = [_mask(each, *shape) for each in objects if each.get("segmentation")]
        target = {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.tensor(
                [self._class_of[each["category_id"]] for each in objects], dtype=torch.int64
            ),
        }
        if len(masks) == len(objects):
            stacked = np.stack(masks) if masks else np.zeros((0, *shape), np.uint8)
            target["masks"] = torch.from_numpy(stacked).to(torch.uint8)
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, target

    def _boxes(self, image: int, *, crowds: bool = False) -> list[dict[str, Any]]:
        """Return an image's objects with an area; to learn from, those above a pixel a side."""
        objects, least = self._coco.imgToAnns.get(image, []), 0 if crowds else 1
        return [
            each
            for each in objects
            if (crowds or not each.get("iscrowd")) and min(each["bbox"][2:]) > least
        ]


def _mask(annotation: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Rasterise an object's outline or runs, uint8 (H, W).

    Runs that end early would leave memory as it is found, and an outline far beyond the image is
    drawn pixel by pixel outside of it, so neither is handed on.
    """
    from pycocotools import mask as rasters

    outline = annotation["segmentation"]
    if isinstance(outline, list):
        places = np.concatenate([np.asarray(part, np.float64).reshape(-1, 2) for part in outline])
        size = np.array([width, height])
        if not ((places >= -size) & (places <= 2 * size)).all():
            raise ValueError(f"an outline beyond the image of {width}x{height} pixels")
        runs = rasters.merge(rasters.frPyObjects(outline, height, width))
    else:
        if list(outline["size"]) != [height, width]:
            raise ValueError(f"runs of {outline['size']}, an image of {[height, width]}")
        packed = isinstance(outline["counts"], str)
        counts = _unpacked(outline["counts"]) if packed else outline["counts"]
        if min(counts) < 0 or sum(counts) != height * width:
            raise ValueError(f"runs of {sum(counts)} pixels, an image of {height * width}")
        runs = outline if packed else rasters.frPyObjects(outline, height, width)
    return rasters.decode(runs)


def _unpacked(text: str) -> list[int]:
    """Return the runs of COCO's packed text: numbers of 5 bits a letter, from the third on as
    differences from the one before the last.
    """
    counts, value, shift = list[int](), 0, 0
    for letter in text.encode("ascii"):
        value |= (letter - 48 & 31) << shift
        shift += 5
        if letter - 48 & 32 and shift < 64:
            continue
        value -= (letter - 48 & 16) << shift - 4
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("runs that end within a number")
    return counts
