"""The regressor's shapes, parameters and wiring."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from distill.configs.train import StudentConfig
from distill.modules.regressor import (
    FeatureRegressor,
    PyramidPooling,
    RegressorKind,
    TimedHead,
    fitting_scales,
    time_embedding,
)
from distill.students.backbones import available_maps

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


def test_without_pooling_it_is_a_plain_fpn_of_fewer_parameters() -> None:
    plain, pooled = small_regressor(kind="fpn"), small_regressor()
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


# The paper's two students on ADM's levels (METHODS 4.3): C2..C5, strides 4..32, 256 px images.
STUDENTS = {"resnet50": (256, 512, 1024, 2048), "convnext_base": (128, 256, 512, 1024)}
ADM = {"s4": (4, 512), "s8": (8, 512), "s16": (16, 1024), "s32": (32, 1024)}
# Counted by hand, 256 wide; a convolution of k x k has k*k*in*out weights, batch norm 2*256.
#   pooling: 4 branches (1x1 from C5) and a 3x3 from C5 + 4*256 channels
#     resnet50       4*(2048*256+512) + 9*3072*256+512 = 2,099,200 + 7,078,400
#     convnext_base  4*(1024*256+512) + 9*2048*256+512 = 1,050,624 + 4,719,104
#   laterals of C2..C4, 1x1   (256+512+1024)*256+3*512 = 460,288; (128+256+512)*256+3*512 = 230,912
#   smoothing, one 3x3 per map: 9*256*256+512 = 590,336; three with pooling, four without
#   heads, 1x1 with bias: 257*(512+512+1024+1024) = 789,504
#   plain top, 1x1 from C5: 2048*256+512 = 524,800; 1024*256+512 = 262,656
#   attention: LayerNorm 512, in 768*257, out 256*257 = 263,680; bottom-up: 6 3x3 = 3,542,016
PARAMETERS = {
    ("resnet50", "fpn_ppm"): 2_099_200 + 7_078_400 + 460_288 + 3 * 590_336 + 789_504,
    ("resnet50", "fpn"): 524_800 + 460_288 + 4 * 590_336 + 789_504,
    ("resnet50", "fpn_attention"): 524_800 + 263_680 + 460_288 + 4 * 590_336 + 789_504,
    ("resnet50", "pafpn"): 524_800 + 460_288 + 4 * 590_336 + 3_542_016 + 789_504,
    ("convnext_base", "fpn_ppm"): 1_050_624 + 4_719_104 + 230_912 + 3 * 590_336 + 789_504,
    ("convnext_base", "fpn"): 262_656 + 230_912 + 4 * 590_336 + 789_504,
    ("convnext_base", "fpn_attention"): 262_656 + 263_680 + 230_912 + 4 * 590_336 + 789_504,
    ("convnext_base", "pafpn"): 262_656 + 230_912 + 4 * 590_336 + 3_542_016 + 789_504,
}
TOTALS = {
    ("resnet50", "fpn_ppm"): 12_198_400,
    ("resnet50", "fpn"): 4_135_936,
    ("resnet50", "fpn_attention"): 4_399_616,
    ("resnet50", "pafpn"): 7_677_952,
    ("convnext_base", "fpn_ppm"): 8_561_152,
    ("convnext_base", "fpn"): 3_644_416,
    ("convnext_base", "fpn_attention"): 3_908_096,
    ("convnext_base", "pafpn"): 7_186_432,
}


@pytest.mark.parametrize(("student", "kind"), PARAMETERS)
def test_parameters_and_shapes_for_the_papers_students(student: str, kind: RegressorKind) -> None:
    channels, strides = STUDENTS[student], (4, 8, 16, 32)
    with torch.device("meta"):
        regressor = FeatureRegressor(
            channels, strides=strides, levels=ADM, map_size=(8, 8), kind=kind
        )
        maps = [
            torch.empty(2, c, 256 // s, 256 // s) for c, s in zip(channels, strides, strict=True)
        ]
        outputs = regressor(maps)
    total = sum(parameter.numel() for parameter in regressor.parameters())
    assert total == PARAMETERS[student, kind] == TOTALS[student, kind]
    assert {name: tuple(value.shape[1:]) for name, value in outputs.items()} == {
        "s4": (512, 64, 64),
        "s8": (512, 32, 32),
        "s16": (1024, 16, 16),
        "s32": (1024, 8, 8),
    }


def test_timm_gives_the_papers_students_those_channels() -> None:
    for name, channels in STUDENTS.items():
        maps = available_maps(StudentConfig(name=name))
        assert [m.channels for m in maps if m.stride >= 4] == list(channels)


@pytest.mark.parametrize("kind", ["fpn", "fpn_attention", "pafpn", "fpn_ppm"])
def test_every_variant_gives_every_level_and_learns(kind: RegressorKind) -> None:
    regressor = small_regressor(kind=kind)
    outputs = regressor(pyramid())
    assert {name: tuple(v.shape[1:]) for name, v in outputs.items()} == {
        name: (channels, 16 // stride, 16 // stride) for name, (stride, channels) in LEVELS.items()
    }
    sum(output.square().mean() for output in outputs.values()).backward()
    assert [name for name, p in regressor.named_parameters() if p.grad is None] == []


def reaches(kind: RegressorKind, *, level: str, from_map: int) -> bool:
    """Tell whether a corner of a student's map is felt in the opposite corner of a level."""
    maps = pyramid(batch=1)
    maps[from_map].requires_grad_()
    small_regressor(kind=kind).eval()(maps)[level][0, :, -1, -1].sum().backward()
    gradient = maps[from_map].grad
    return gradient is not None and bool((gradient[0, :, 0, 0] != 0).any())


def test_attention_and_pooling_look_across_the_map_and_fpn_does_not() -> None:
    felt = {
        kind: reaches(kind, level="up.2.t100", from_map=2)
        for kind in ("fpn", "fpn_attention", "fpn_ppm")
    }
    assert felt == {"fpn": False, "fpn_attention": True, "fpn_ppm": True}


def test_only_the_bottom_up_branch_carries_fine_maps_to_coarse_levels() -> None:
    felt = {}
    for kind in ("fpn", "pafpn"):
        maps = pyramid(batch=1)
        maps[0].requires_grad_()
        small_regressor(kind=kind).eval()(maps)["up.0.t100"].sum().backward()
        felt[kind] = maps[0].grad is not None and bool((maps[0].grad != 0).any())
    assert felt == {"fpn": False, "pafpn": True}


@pytest.mark.parametrize("kind", ["fpn", "fpn_attention", "pafpn", "fpn_ppm"])
@pytest.mark.parametrize("strides", [(2,), (4,), (1, 2), (2, 4), (1, 4)])
def test_only_parts_that_lead_to_a_level_are_built(
    kind: RegressorKind, strides: tuple[int, ...]
) -> None:
    """Processes that train together wait for a gradient of every parameter."""
    levels = {f"s{stride}": (stride, 5) for stride in strides}
    regressor = small_regressor(kind=kind, levels=levels)
    outputs = regressor(pyramid())
    assert {name: tuple(value.shape[1:]) for name, value in outputs.items()} == {
        f"s{stride}": (5, 16 // stride, 16 // stride) for stride in strides
    }
    sum(output.square().mean() for output in outputs.values()).backward()
    assert [name for name, p in regressor.named_parameters() if p.grad is None] == []


def test_a_head_told_the_timestep_by_hand() -> None:
    """out(x + mix(silu(x (1 + scale) + shift))), with all of them ones or known numbers."""
    head = TimedHead(2, 1)
    features = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1)
    with torch.no_grad():
        for layer in (head.mix, head.out):
            layer.weight.fill_(1.0)
            layer.bias.zero_()  # type: ignore[union-attr]
    mixed = torch.nn.functional.silu(torch.tensor([1.0, -2.0])).sum()
    torch.testing.assert_close(head(features, 7).flatten(), (-1 + 2 * mixed)[None])
    assert torch.equal(head(features, 7), head(features, 300)), "they begin alike"
    last = head.time[-1]
    with torch.no_grad():
        last.bias.copy_(torch.tensor([1.0, 1.0, 0.5, 0.5]))  # scale 1, shift 0.5
    mixed = torch.nn.functional.silu(torch.tensor([2.5, -3.5])).sum()
    torch.testing.assert_close(head(features, 7).flatten(), (-1 + 2 * mixed)[None])
    torch.nn.init.normal_(last.weight)
    assert not torch.allclose(head(features, 7), head(features, 300))


def test_a_timestep_is_told_by_sines_and_cosines() -> None:
    told = time_embedding(3)
    assert told.shape == (64,)
    angles = [3 * 10_000 ** -(place / 32) for place in range(32)]
    expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    torch.testing.assert_close(told, torch.tensor(expected))
