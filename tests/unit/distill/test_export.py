"""A student kept on disk comes back as the same function."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distill.config import StudentConfig
from distill.export import export_student, load_student, read_card, untrained_student
from distill.students import Student, build_student
from dreamshard.errors import DataError

CONFIG = StudentConfig(
    name="cifar_resnet", settings={"depths": [1, 1], "widths": [4, 6]}, mean=[0.1, 0.2, 0.3]
)


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Student, Path]:
    student = build_student(CONFIG, strides=(1, 2), seed=3)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.5)
    folder = export_student(
        student,
        tmp_path / "student",
        config=CONFIG,
        levels=["a", "b"],
        image_size=(8, 8),
        seed=3,
        provenance={"steps": 10},
    )
    return student.eval(), folder


def test_it_comes_back_as_the_same_function(exported: tuple[Student, Path]) -> None:
    student, folder = exported
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for path in (folder, folder.parent):  # by its own folder, or by the run's
        loaded, card = load_student(path)
        with torch.inference_mode():
            pairs = list(zip(loaded(images), student(images), strict=True))
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
        assert card.levels == ["a", "b"] and card.provenance == {"steps": 10}
        assert loaded.mean == (0.1, 0.2, 0.3) and loaded.std == (0.5, 0.5, 0.5)


def test_the_untrained_student_is_where_training_began(exported: tuple[Student, Path]) -> None:
    _, folder = exported
    began = build_student(CONFIG, strides=(1, 2), seed=3).state_dict()
    untrained = untrained_student(read_card(folder)[0])
    assert not untrained.training
    assert all(torch.equal(value, began[name]) for name, value in untrained.state_dict().items())


def test_exporting_again_replaces_it(exported: tuple[Student, Path]) -> None:
    student, folder = exported
    export_student(
        student, folder, config=CONFIG, levels=["c"], image_size=(8, 8), seed=3, provenance={}
    )
    assert read_card(folder)[0].levels == ["c"]
    assert [path.name for path in folder.parent.iterdir()] == ["student"]


def test_no_student_asks_whether_training_is_finished(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Is the training finished"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    "card", ["{", "[]", '{"format_version": 9}', '{"format_version": 1, "other": 2}']
)
def test_a_strange_card_is_refused(exported: tuple[Student, Path], card: str) -> None:
    _, folder = exported
    (folder / "config.json").write_text(card, encoding="utf-8")
    with pytest.raises(DataError, match=r"config\.json"):
        read_card(folder)


def test_weights_of_another_network_are_refused(exported: tuple[Student, Path]) -> None:
    _, folder = exported
    path = folder / "config.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    card["student"]["settings"]["widths"] = [4, 8]
    path.write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(DataError, match="do not fit"):
        load_student(folder)
