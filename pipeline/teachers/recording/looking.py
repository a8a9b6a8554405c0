"""Networks that look at given images: discriminators, encoders, and any that only classify."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dreamshard.errors import Problem
from pipeline.teachers.base import Mode, TeacherSpec
from pipeline.teachers.pixels import signed
from pipeline.teachers.recording.teacher import NetworkRequest, NetworkTeacher
from pipeline.teachers.request import drawn_once

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.teachers.recording.teacher import Records


@dataclass(kw_only=True)
class LookingRequest(NetworkRequest):
    """A checked request to a network that looks: nothing is drawn."""

    def check(self) -> list[Problem | str]:
        """Settle the levels; return what is wrong."""
        return [*drawn_once(self.config), *super().check()]

    @property
    def spec(self) -> TeacherSpec:
        """Return what the pipeline may know; what it records depends on the image alone."""
        return replace(super().spec, seeded=False)


class LookingTeacher(NetworkTeacher):
    """Run a frozen network on given images; one pass, ended at the last requested tap."""

    modes: tuple[Mode, ...] = ("encode",)
    request_class = LookingRequest

    def record_images(self, records: Records, images: Tensor, indices: np.ndarray) -> None:
        """Run the network on images uint8 (N, H, W, 3) and keep what it gives."""
        self.keep(records, self.activations(self.prepare(images)))

    def prepare(self, images: Tensor) -> Tensor:
        """Turn uint8 (N, H, W, 3) into what the network takes: (N, 3, H, W) in [-1, 1]."""
        return self.fit(signed(images))

    def fit(self, images: Tensor) -> Tensor:
        """Turn images (N, 3, H, W) in [-1, 1] into what the network takes; gradients go through."""
        return images.to(self.dtype)
