"""A student's description: what it is rebuilt from, and where it comes from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distill.configs.student import StudentConfig
from dreamshard.errors import DataError

STUDENT_FOLDER, CARD = "student", "student.json"
FORMAT_VERSION = 2


@dataclass(kw_only=True)
class StudentCard:
    """Describe a trained student.

    Args:
        student: name and settings of the backbone, normalisation filled in.
        strides, channels: of its maps, finest first.
        levels: names of the teacher's levels it was trained on.
        image_size: (H, W) it was trained at, in pixels.
        seed: of its initial weights.
        provenance: method, dataset, recipe keys, teacher, licence, steps.
        metrics: the run's last figures by name.
        untrained: parameters of the whole network that training did not touch.
        format_version: of this description.
    """

    student: dict[str, Any]
    strides: list[int]
    channels: list[int]
    levels: list[str]
    image_size: list[int]
    seed: int
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    untrained: list[str] = field(default_factory=list)
    format_version: int = FORMAT_VERSION

    @property
    def config(self) -> StudentConfig:
        """The student's settings, to build it from scratch and whole."""
        return replace(
            StudentConfig(**self.student),
            pretrained=False,
            frozen_stages=0,
            grad_checkpointing=False,
            compile="off",
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its training images, in pixels."""
        return self.image_size[0], self.image_size[1]


def read_card(path: Path) -> tuple[StudentCard, Path]:
    """Read a student's description.

    Args:
        path: the student's folder, or the run folder that holds it.

    Returns:
        The description, and the folder it is in.

    Raises:
        DataError: no student there, or not one this version reads.
    """
    folder = next((f for f in (path, path / STUDENT_FOLDER) if (f / CARD).exists()), None)
    if folder is None:
        raise DataError(
            f"{path}: got no trained student, allowed a run folder of `dreamshard train` or the "
            "folder of an exported student. Is the training finished?"
        )
    try:
        raw = json.loads((folder / CARD).read_text(encoding="utf-8"))
        if raw.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"format_version {raw.get('format_version')}, not {FORMAT_VERSION}")
        return StudentCard(**raw), folder
    except (ValueError, TypeError, AttributeError) as error:
        path = folder / CARD
        raise DataError(f"{path}: got {error}, allowed a student's card.") from error
