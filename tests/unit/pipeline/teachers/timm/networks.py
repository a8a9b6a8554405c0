"""Networks of timm with random weights, saved as users have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf

from distill.configs.train import StudentConfig
from distill.students.export import export_student
from distill.students.student import Student, build_student
from pipeline.teachers.base import Scalar, TeacherConfig
from pipeline.teachers.timm.teacher import TimmTeacher
from tests.unit.pipeline.teachers.conftest import pins, randomize


def save(folder: Path, name: str, **arguments: Any) -> torch.nn.Module:
    """Save a network with random weights in timm's own layout; batch norms have statistics."""
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval()
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, torch.nn.BatchNorm2d) and part.running_mean is not None:
                part.running_mean.normal_(std=0.1)
                part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    save_for_hf(model, str(folder), safe_serialization=True)
    return model


def save_student(
    folder: Path,
    name: str,
    settings: dict[str, Any] | None = None,
    *,
    strides: tuple[int, ...],
    size: int,
) -> Student:
    """Save a student as a finished training run does, licence of its teacher included."""
    config = StudentConfig(name=name, settings=settings or {}, mean=[0.1, 0.2, 0.3])
    student = build_student(config, strides=strides, seed=3, image_size=(size, size))
    randomize(student)
    for part in student.modules():
        if isinstance(part, torch.nn.BatchNorm2d) and part.running_mean is not None:
            part.running_mean.normal_(std=0.1)
    export_student(
        student,
        folder,
        config=config,
        levels=["a"] * len(strides),
        image_size=(size, size),
        seed=3,
        provenance={"licence": "of the first teacher"},
    )
    return student.eval()


def make(
    path: Path | str, levels: list[str], size: int | None = None, rows: int = 2, **settings: Scalar
) -> TimmTeacher:
    """Load a teacher as the pipeline does."""
    config = TeacherConfig(kind="timm", path=str(path), levels=levels, settings=settings)
    shape = (size, size) if size else None
    return TimmTeacher(config, mode="encode", image_size=shape, seed=0, pins=pins(micro_batch=rows))
