"""A student's folder as a teacher: the maps it was trained to give, and nothing that was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.students.normalise import Normaliser
from dreamshard.errors import ConfigError, TeacherError
from pipeline.teachers.base import TeacherConfig
from pipeline.teachers.load import describe_teacher
from pipeline.teachers.timm.student import OURS, StudentTeacher
from tests.unit.pipeline.teachers.conftest import make_images, pins
from tests.unit.pipeline.teachers.timm.networks import save_student

STUDENTS: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
    "cifar_resnet18": ({"width": 4}, (1, 2, 4, 8), 16),
    "cifar_resnet": ({"depths": [1, 1, 1], "widths": [4, 6, 8]}, (2, 4), 16),
    "resnet10t": ({}, (4, 8), 32),
    "test_convnext": ({}, (4, 8, 16, 32), 64),
    "swin_tiny_patch4_window7_224": (
        {"depths": [1, 1], "embed_dim": 12, "num_heads": [1, 2]},
        (4, 8),
        56,
    ),
    "vit_small_patch14_reg4_dinov2": (
        {"depth": 2, "embed_dim": 32, "num_heads": 2},
        (7, 14, 28),
        56,
    ),
}


def open_student(path: Path, levels: list[str], size: int | None = None) -> StudentTeacher:
    config = TeacherConfig(kind="student", path=str(path), levels=levels)
    shape = (size, size) if size else None
    return StudentTeacher(config, mode="encode", image_size=shape, seed=0, pins=pins(micro_batch=2))


@pytest.mark.parametrize("name", STUDENTS)
def test_a_teacher_gives_the_students_own_maps(name: str, tmp_path: Path) -> None:
    settings, strides, size = STUDENTS[name]
    student = save_student(tmp_path / "student", name, settings, strides=strides, size=size)
    teacher = open_student(tmp_path, [*(f"s{stride}" for stride in strides), "pooled"])
    assert teacher.image_size == (size, size)
    assert [level.name for level in teacher.levels] == [*(f"map.s{s}" for s in strides), "pooled"]
    images = make_images(2, size)
    batch = teacher.encode(images, np.arange(2))
    seen = Normaliser(student.mean, student.std, device=torch.device("cpu"))(images)
    with torch.inference_mode():
        maps, pooled = student(seen), student.pooled(seen)
        ours = teacher.activations(seen)
    for level, expected in zip(teacher.levels, [*maps, pooled], strict=True):
        assert level.shape == tuple(expected.shape[1:])
        torch.testing.assert_close(ours[level.tap], expected, atol=1e-5, rtol=1e-5)
        recorded = torch.from_numpy(batch.levels[level.name]).float()
        torch.testing.assert_close(recorded, expected, atol=5e-3, rtol=5e-3)


def test_its_licence_is_that_of_what_it_learned_from(tmp_path: Path) -> None:
    save_student(tmp_path, "test_resnet", strides=(4, 8), size=32)
    config = TeacherConfig(kind="student", path=str(tmp_path), levels=["s4"])
    spec = describe_teacher(config, mode="encode")
    assert spec.licence == "of the first teacher" and spec.fingerprint["kind"] == "student"
    config = TeacherConfig(kind="timm", path=str(tmp_path), levels=["pooled"])
    with pytest.raises(TeacherError, match=r"never trained .*Set teacher.kind to student"):
        describe_teacher(config, mode="encode")


def test_ours_are_those_of_distill() -> None:
    from distill.students.backbones import BACKBONES

    assert OURS == BACKBONES


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format_version": 1}, "format_version: got 1, allowed 2"),
        ({"student": 3}, "student: got 3, allowed an object"),
        ({"strides": "12"}, "strides: got 12, allowed 1..64 whole numbers"),
        ({"strides": [1, 3]}, r"strides: got \[3\], allowed those of cifar_resnet"),
        ({"channels": [4]}, r"strides and channels: got \(1, 2\) and \(4,\)"),
        ({"image_size": [10**9, 1]}, "image_size: got .*allowed 1..64 whole numbers of 1..16384"),
    ],
)
def test_a_card_is_data(tmp_path: Path, change: dict[str, object], text: str) -> None:
    settings = {"depths": [1, 1], "widths": [4, 6]}
    save_student(tmp_path, "cifar_resnet", settings, strides=(1, 2), size=16)
    card = json.loads((tmp_path / "student.json").read_text())
    (tmp_path / "student.json").write_text(json.dumps(card | change))
    with pytest.raises(TeacherError, match=text):
        open_student(tmp_path, ["s1"])


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("os:system", {}, "student.name: got 'os:system', allowed a network of timm's or ours"),
        ("cifar_resnet", {"depths": [10**6], "widths": [4]}, "model_args.depths: got"),
    ],
)
def test_nothing_that_a_card_names_is_imported(
    tmp_path: Path, name: str, settings: dict[str, object], text: str
) -> None:
    own = {"depths": [1, 1], "widths": [4, 6]}
    save_student(tmp_path, "cifar_resnet", own, strides=(1, 2), size=16)
    card = json.loads((tmp_path / "student.json").read_text())
    card["student"] |= {"name": name, "settings": settings}
    (tmp_path / "student.json").write_text(json.dumps(card))
    with pytest.raises(TeacherError, match=text):
        open_student(tmp_path, ["s1"])


def test_a_folder_without_a_student(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="path: got .*allowed a run folder of `dreamshard train`"):
        open_student(tmp_path, ["s1"])
