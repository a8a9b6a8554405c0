"""The regressor's shapes, parameters and wiring."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distill.regressor import FeatureRegressor, PyramidPooling, fitting_scales

LEVELS = {"up.2.t100": (1, 12), "up.1.t100": (2, 20), "up.0.t100": (4, 24)}


def small_regressor(**changes: object) -> FeatureRegressor:
    settings: dict = {
        "strides": (1, 2, 4),
        "levels": LEVELS,
        "map_size": (4, 4),
        "width": 16,
    }
    return FeatureRegressor((8, 16, 32), **(settings | changes))


def pyramid(batch: int = 2, size: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, channels, size // stride, size // stride, generator=generator)
        for channels, stride in ((8, 1), (16, 2), (32, 4))
    ]


def test_every_level_gets_a_map_of_its_own_shape() -> None:
    outputs = small_regressor()(pyramid())
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "up.2.t100": (2, 12, 16, 16),
        "up.1.t100": (2, 20, 8, 8),
        "up.0.t100": (2, 24, 4, 4),
    }


def test_levels_of_one_stride_have_heads_of_their_own() -> None:
    levels = {"up.2.t50": (1, 12), "up.2.t100": (1, 12), "up.0.t50": (4, 24)}
    outputs = small_regressor(levels=levels)(pyramid())
    assert list(outputs) == list(levels)
    assert not torch.equal(outputs["up.2.t50"], outputs["up.2.t100"])


@pytest.mark.parametrize(
    ("map_size", "expected"),
    [
        ((8, 8), (1, 2, 3, 6)),
        ((4, 4), (1, 2, 3)),
        ((2, 8), (1, 2)),
        ((1, 1), (1,)),
    ],
)
def test_pooling_scales_are_clipped_to_the_map(
    map_size: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert fitting_scales((1, 2, 3, 6), map_size=map_size) == expected
    assert fitting_scales((3, 6), map_size=(2, 2)) == (3,)


def test_pooling_lets_every_cell_see_the_whole_image() -> None:
    module = PyramidPooling(4, width=8, scales=(1,)).eval()
    features = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    features.requires_grad_()
    module(features)[0, :, 0, 0].sum().backward()
    assert features.grad is not None and (features.grad[0, :, 7, 7] != 0).any()


def test_without_scales_it_is_a_plain_fpn_of_fewer_parameters() -> None:
    plain, pooled = small_regressor(scales=()), small_regressor()
    assert not any(isinstance(module, PyramidPooling) for module in plain.modules())
    assert len(plain.smooths) == 3 and len(pooled.smooths) == 2
    count = [sum(p.numel() for p in module.parameters()) for module in (plain, pooled)]
    assert count[0] < count[1]


def test_parameter_count_for_resnet50_and_adm() -> None:
    # ResNet-50 C2..C5, teacher levels of ADM; counted by hand, batch norm has 2 a channel.
    width, student, teacher = 256, (256, 512, 1024, 2048), (512, 512, 1024, 1024)
    levels = {f"s{2 ** (i + 2)}": (2 ** (i + 2), channels) for i, channels in enumerate(teacher)}
    regressor = FeatureRegressor(student, strides=(4, 8, 16, 32), levels=levels, map_size=(8, 8))
    bn = 2 * width
    pooling = 4 * (2048 * width + bn) + 9 * (2048 + 4 * width) * width + bn
    laterals = sum(channels * width + bn for channels in student[:-1])
    smooths = 3 * (9 * width * width + bn)
    heads = sum((width + 1) * channels for channels in teacher)
    total = sum(parameter.numel() for parameter in regressor.parameters())
    assert total == pooling + laterals + smooths + heads


def test_gradients_reach_every_parameter() -> None:
    regressor = small_regressor()
    sum(output.square().mean() for output in regressor(pyramid()).values()).backward()
    dead = [name for name, p in regressor.named_parameters() if p.grad is None]
    assert dead == []


def test_odd_sizes_come_back_as_they_went_in() -> None:
    regressor = small_regressor().eval()
    maps = [torch.zeros(1, c, s, s) for c, s in ((8, 15), (16, 8), (32, 4))]
    assert regressor(maps)["up.2.t100"].shape[-2:] == (15, 15)


def test_convolutions_before_batch_norm_have_no_bias() -> None:
    regressor = small_regressor()
    heads = set(regressor.heads)
    convolutions = [m for m in regressor.modules() if isinstance(m, nn.Conv2d) and m not in heads]
    assert convolutions and all(conv.bias is None for conv in convolutions)
