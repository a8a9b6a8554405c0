"""Untrained students are tried on tensors without values, and are left as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from distill.configs.train import StudentConfig
from distill.students.export import export_student, load_student
from distill.students.student import build_student
from distill.students.trial import (
    call_without_values,
    check_kept,
    check_takes,
    untrained_share,
    without_values,
)

SIZE = (64, 64)


class Twice(nn.Module):
    """Use one module twice, and one weight in two modules."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(4, 4)
        self.first, self.second, self.third = shared, shared, nn.Linear(4, 4)
        self.third.weight = shared.weight
        self.idle = nn.Linear(4, 4)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(values)))


def test_what_is_used_twice_is_put_back_and_tied_weights_get_one_gradient() -> None:
    module = Twice()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    places, leaves = without_values(module)
    call_without_values(module, places, torch.zeros(2, 4, device="meta")).sum().backward()
    idle = [name for name, leaf in leaves.items() if leaf.grad is None]
    assert idle == ["idle.weight", "idle.bias"]
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert module.third.weight is module.first.weight


@pytest.mark.parametrize(
    ("name", "strides"), [("coat_lite_tiny", (4, 8)), ("legacy_xception", (2, 4))]
)
def test_students_with_tied_weights_or_hooks_are_kept(
    tmp_path: Path, name: str, strides: tuple[int, ...]
) -> None:
    config = StudentConfig(name=name)
    student = build_student(config, strides=strides, seed=0, image_size=SIZE)
    check_takes(student, name=name, image_size=SIZE)
    check_kept(student, config=config, image_size=SIZE)
    folder = export_student(
        student,
        tmp_path / "student",
        config=config,
        levels=[],
        image_size=SIZE,
        seed=0,
        provenance={},
    )
    found, card = load_student(folder)
    mine, theirs = student.eval().state_dict(), found.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    whole = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert sum(p.numel() for p in whole.parameters()) > 0 and card.student["name"] == name


def test_the_share_that_nothing_trains() -> None:
    config = StudentConfig(name="resnet10t")
    shallow = build_student(config, strides=(2, 4), seed=0)
    deep = build_student(config, strides=(2, 4, 8, 16, 32), seed=0)
    assert untrained_share(shallow, config=config, image_size=SIZE) > 0.9
    assert untrained_share(deep, config=config, image_size=SIZE) == pytest.approx(0.0)
