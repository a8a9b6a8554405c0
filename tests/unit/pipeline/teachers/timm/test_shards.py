"""Networks of timm and students go into shards and back, and join on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from distill.configs.train import DataConfig, DreamTeacherConfig, StudentConfig
from distill.data.open import open_training_set
from distill.data.sets import Needs
from distill.methods.build import build_method
from distill.methods.dreamteacher import DreamTeacher
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.request.config import EncodeConfig
from pipeline.teachers.base import TeacherConfig
from storage.dataset import Dataset
from tests.unit.pipeline.made_datasets import make, rows
from tests.unit.pipeline.teachers.timm.networks import make as open_timm
from tests.unit.pipeline.teachers.timm.networks import save, save_student

SIZE = 32


def encode(
    root: Path, name: str, kind: str, path: Path, levels: list[str], **changes: Any
) -> Dataset:
    return make(
        EncodeConfig(
            name=name,
            root=str(root),
            teacher=TeacherConfig(kind=kind, path=str(path), levels=levels),
            source=SourceConfig(kind="digits"),
            image=ImageConfig(size=SIZE),
            samples=6,
            samples_per_unit=4,
            micro_batch=2,
            device="cpu",
            fsync=False,
            **changes,
        )
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Dataset]]:
    """Three teachers' datasets of the same digits: two networks of timm, and a student."""
    root = tmp_path_factory.mktemp("shards")
    save(root / "resnet", "test_resnet")
    save(root / "efficientnet", "test_efficientnet")
    save_student(root / "run" / "student", "test_convnext", strides=(4, 8), size=SIZE)
    return root, [
        encode(root, "resnet", "timm", root / "resnet", ["s4", "s8", "pooled"]),
        encode(root, "efficient", "timm", root / "efficientnet", ["s4", "s8"]),
        encode(root, "chain", "student", root / "run", ["s4", "s8"], codec="int8"),
    ]


def test_what_is_in_the_shards_is_what_the_teacher_gives(
    made: tuple[Path, list[Dataset]],
) -> None:
    root, (first, *_) = made
    teacher = open_timm(root / "resnet", ["s4", "s8", "pooled"], SIZE)
    images = rows(first, "image")
    for start in range(0, 6, 2):
        batch = teacher.encode(images[start : start + 2], np.arange(2))
        for name, values in batch.levels.items():
            assert np.array_equal(rows(first, name)[start : start + 2], values), name
    flags = first.about.extra["teacher_flags"]
    assert isinstance(flags, dict)
    assert flags["mean"]["value"] == "0.5,0.5,0.5" and flags["network"]["value"] == "test_resnet"
    assert first.recipe.content["mode"] == {"kind": "encode", "seen": [SIZE, SIZE]}


def test_several_teachers_on_one_student_have_heads_of_their_own(
    made: tuple[Path, list[Dataset]],
) -> None:
    _, datasets = made
    urls = [dataset.url for dataset in datasets]
    config = DataConfig(dataset=urls[0], join=urls[1:], levels=["s4", "s8"])
    training_set = open_training_set(config, needs=Needs(kinds=("feature",)))
    names = {level.name for level in training_set.levels}
    own = {f"stage.{k}" for k in range(8)} & names
    assert len(own) == 2, "the first dataset's levels keep their names"
    others = {name for name in names if name.startswith("efficient.stage.")}
    assert names == {*own, *others, "map.s4", "map.s8"} and len(others) == 2
    assert others & {f"efficient.{name}" for name in own}, "both networks have such a stage"
    method = cast(
        DreamTeacher,
        build_method(
            DreamTeacher,
            DreamTeacherConfig(width=8),
            student=StudentConfig(name="test_resnet"),
            training_set=training_set,
            seed=0,
        ),
    )
    feature: Any = method.objectives["feature"]
    assert set(feature.head_of.values()) == names, "a head for every teacher's level"
    source = training_set.source
    licences = dict.fromkeys(dataset.about.licence for dataset in datasets)
    assert source.licence == "; ".join(licences) and "of the first teacher" in source.licence
    assert [recipe.name for recipe in source.joined] == ["efficient", "chain"]
