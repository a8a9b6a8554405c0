"""A trained student's maps of a dataset's images, beside the levels that its teacher left there."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

import numpy as np

from dreamshard.console.view.samples import Shelf
from dreamshard.errors import DataError
from storage.codecs.arrays import IMAGE
from storage.rows.pick import read_rows
from storage.schema import Level

MARK = "student"
_BATCH = 16  # images a forward, on the CPU beside other work


class Pupil:
    """Run one student; its maps are levels named `student<number>.s<stride>`.

    No class of somebody's own is loaded: a folder that is looked at names none.

    Args:
        number: its place among the students that were named.
        folder: with the student, or the run that made it.
    """

    def __init__(self, number: int, folder: Path) -> None:
        self.number, self.folder, self.name = number, folder, folder.name
        self._one_at_a_time = threading.Lock()

    @functools.cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from distill.students.export import load_student

        return load_student(self.folder)

    def facts(self) -> dict[str, Any]:
        """Return its name, network and strides, without running it; "error" where it cannot be."""
        from distill.students.card import read_card

        try:
            card, _ = read_card(self.folder)
        except DataError as error:
            return {"name": self.name, "error": str(error), "levels": []}
        levels = [
            self._level(stride, channels, size=card.size)
            for stride, channels in zip(card.strides, card.channels, strict=True)
        ]
        return {"name": self.name, "network": str(card.student.get("name")), "levels": levels}

    def read(self, shelf: Shelf, stride: int, samples: np.ndarray) -> np.ndarray:
        """Run it on a dataset's images: float32 (N, C, H, W), its map of a stride."""
        import torch

        images = read_rows(shelf.snapshot, IMAGE, samples, access="range")
        with self._one_at_a_time, torch.inference_mode():
            student, card = self._loaded
            if images.shape[1:3] != card.size:
                raise DataError(
                    f"{shelf.name}: got images of {images.shape[1]} x {images.shape[2]} pixels, "
                    f"allowed {card.size[0]} x {card.size[1]}: those the student was trained on."
                )
            mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (student.mean, student.std))
            place = card.strides.index(stride)
            maps = []
            for first in range(0, len(images), _BATCH):
                some = torch.from_numpy(images[first : first + _BATCH]).permute(0, 3, 1, 2)
                maps.append(student((some.float() / 255 - mean) / std)[place].float().numpy())
        return np.concatenate(maps)

    def _level(self, stride: int, channels: int, *, size: tuple[int, int]) -> Level:
        shape = (channels, max(1, size[0] // stride), max(1, size[1] // stride))
        name = f"{MARK}{self.number}.s{stride}"
        return Level(name, "feature", name, 0, 0, "", stride, shape, "float32")
