"""Parameters of a feature extractor are found again in the whole timm network."""

from __future__ import annotations

import pytest

from distill.configs.train import StudentConfig
from distill.students.student import build_student
from distill.students.timm_names import full_names, layer_numbers, whole_network


def test_renamed_stages_and_wrapped_networks_are_found() -> None:
    whole = ["stem.0.weight", "stages.1.blocks.0.gamma", "head.norm.weight", "conv1.weight"]
    part = ["stem_0.weight", "stages_1.blocks.0.gamma", "conv1.weight"]
    expected = dict(zip(part, [whole[0], whole[1], whole[3]], strict=True))
    assert full_names(part, whole) == expected
    assert full_names(["model.norm.weight"], ["norm.weight"]) == {
        "model.norm.weight": "norm.weight"
    }


@pytest.mark.parametrize(
    "name", ["resnet18", "test_convnext", "test_vit", "test_efficientnet", "regnetx_002"]
)
def test_every_parameter_of_a_student_has_its_place(name: str) -> None:
    config = StudentConfig(name=name)
    student = build_student(config, strides=(16,), seed=0, image_size=(64, 64))
    part = student.backbone.state_dict()
    whole = whole_network(config, image_size=(64, 64)).state_dict()
    names = full_names(part, whole)
    assert set(names) == set(part) and len(set(names.values())) == len(part)
    assert all(part[mine].shape == whole[theirs].shape for mine, theirs in names.items())


def test_layers_are_numbered_from_the_stem_on() -> None:
    config = StudentConfig(name="resnet18")
    backbone = build_student(config, strides=(4, 8), seed=0).backbone
    numbers = layer_numbers(backbone, config)
    assert numbers["conv1.weight"] == 0
    assert [numbers[f"layer{s}.{b}.conv1.weight"] for s, b in ((1, 0), (1, 1), (2, 0))] == [1, 2, 3]
    coarse = layer_numbers(backbone, config, coarse=True)
    assert coarse["layer1.1.conv2.weight"] == 1 and coarse["layer2.0.conv1.weight"] == 2
