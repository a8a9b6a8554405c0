"""Batch norm that is shared between ranks computes what it computed before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distill.configs.train import StudentConfig
from distill.students.student import build_student
from distill.training.batch_norm import share_batch_norm
from dreamshard.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("efficientnet_lite0", (4, 8)),
        ("mobilenetv3_small_050", (2, 4)),
        ("regnety_002", (8, 16)),
        ("resnetv2_50", (4,)),  # GroupNorm: nothing to convert
        ("densenet121", (4, 8)),
        ("legacy_xception", (2, 4)),  # maps are taken by hooks
        ("cifar_resnet18", (1, 2)),
    ],
)
def test_students_give_the_same_maps_when_their_statistics_are_shared(
    name: str, strides: tuple[int, ...]
) -> None:
    config = StudentConfig(name=name)
    student = build_student(config, strides=strides, seed=0, image_size=(64, 64)).eval()
    for layer in student.modules():
        if isinstance(layer, nn.BatchNorm2d):  # so that an activation makes a difference
            nn.init.normal_(layer.bias)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = student(images)
        share_batch_norm(student)
        after = student(images)
    norms = [
        layer for layer in student.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]
    assert all(isinstance(layer, nn.SyncBatchNorm) for layer in norms)
    assert len(before) == len(after) == len(strides)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other)


def test_a_batch_norm_of_ones_own_is_refused() -> None:
    class Squared(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input).square()

    module = nn.Sequential(nn.Conv2d(3, 8, 3), Squared(8))
    with pytest.raises(ConfigError, match=r"sync_batchnorm: got Squared at 1.*sync_batchnorm: off"):
        share_batch_norm(module)
    assert type(module[1]) is Squared, "nothing was changed"
