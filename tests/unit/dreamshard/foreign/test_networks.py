"""Settings of a file do not make a constructor build for ever."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from distill.configs.student import StudentConfig
from distill.students.backbones import available_maps
from dreamshard.errors import ConfigError
from dreamshard.foreign.networks import bounded, number_of_weights

ENDLESS = [
    ("vit_tiny_patch16_224", {"depth": 10**9}),
    ("vit_tiny_patch16_224", {"depth": 10**5}),
    ("resnet18", {"layers": [2**31, 1, 1, 1]}),
    ("cifar_resnet", {"depths": [2**31, 1], "widths": [8, 8]}),
    ("cifar_resnet", {"depths": [1, -1], "widths": [8, 8]}),
    ("cifar_resnet18", {"width": 2**40}),
]


@pytest.mark.parametrize(("name", "settings"), ENDLESS)
def test_a_network_without_end_is_refused(name: str, settings: dict[str, object]) -> None:
    started = time.process_time()
    with pytest.raises(ConfigError, match=r"student\.settings"):
        available_maps(StudentConfig(name=name, settings=settings), image_size=(224, 224))
    assert time.process_time() - started < 20, "the promise for hostile files"


def test_parts_are_counted_while_a_network_is_built_and_no_longer() -> None:
    with bounded({}, most_parts=3):
        network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with pytest.raises(ValueError, match="more than 2 parts"), bounded({}, most_parts=2):
        nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU())
    assert len(nn.Sequential(*(nn.ReLU() for _ in range(9)))) == 9
    assert number_of_weights(network) == 2 * 3 + 3 + 3 + 1
    assert number_of_weights(nn.Linear(9, 9, device=torch.device("meta"))) == 90
