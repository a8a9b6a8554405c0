"""What every student must do, whatever its family."""

from __future__ import annotations

import pytest
import torch

from distill.configs.train import StudentConfig
from distill.students.backbones import available_maps
from distill.students.student import build_student, output_shapes

STUDENTS = [
    ("cifar_resnet", {"depths": [1, 1, 1], "widths": [8, 16, 32]}, (1, 2, 4), (16, 16)),
    ("resnet10t", {}, (4, 8, 16), (64, 64)),
    ("test_efficientnet", {}, (4, 8, 16), (64, 64)),
    ("test_convnext", {}, (4, 8, 16, 32), (64, 64)),
    ("cifar_resnet18", {"width": 4}, (1, 2, 4, 8), (16, 16)),
]
IDS = [name for name, *_ in STUDENTS]


@pytest.fixture(params=STUDENTS, ids=IDS)
def case(request: pytest.FixtureRequest) -> tuple[StudentConfig, tuple[int, ...], tuple[int, int]]:
    name, settings, strides, size = request.param
    return StudentConfig(name=name, settings=settings), strides, size


def test_maps_have_the_strides_and_channels_announced(case) -> None:
    config, strides, size = case
    student = build_student(config, strides=strides, seed=0, image_size=size)
    assert student.strides == strides
    shapes = output_shapes(student, image_size=size)
    assert tuple(c for c, _, _ in shapes) == student.channels
    expected = [(size[0] // stride, size[1] // stride) for stride in strides]
    assert [shape[1:] for shape in shapes] == expected


def test_one_stride_alone_can_be_had(case) -> None:
    config, strides, size = case
    student = build_student(config, strides=strides[1:2], seed=0)
    ((_, height, width),) = output_shapes(student, image_size=size)
    assert (height, width) == (size[0] // strides[1], size[1] // strides[1])


def test_weights_follow_from_the_seed_alone(case) -> None:
    config, strides, _ = case
    torch.manual_seed(1)
    first = build_student(config, strides=strides, seed=3).state_dict()
    torch.manual_seed(2)
    second = build_student(config, strides=strides, seed=3).state_dict()
    other = build_student(config, strides=strides, seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_building_leaves_the_global_generator_alone(case) -> None:
    config, strides, _ = case
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    build_student(config, strides=strides, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_evaluation_mode_does_not_depend_on_the_rest_of_the_batch(case) -> None:
    config, strides, size = case
    student = build_student(config, strides=strides, seed=0).eval()
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together, alone = student(images), student(images[1:2])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:2], b, rtol=1e-4, atol=1e-4)


def test_strides_ascend(case) -> None:
    config, _, _ = case
    strides = [info.stride for info in available_maps(config)]
    assert strides == sorted(strides)
