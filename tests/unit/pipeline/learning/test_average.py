"""How fast moving averages forget the initial weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.learning.average import RatioEma, build_average


def moved(decays: dict[int, float], average: nn.Module) -> None:
    """Check the decay of steps against an average of a weight that was 0 and is 1 from then on."""
    for step, decay in decays.items():
        ours = next(average.module.parameters())  # type: ignore[union-attr]
        layer = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            ours.zero_()
            layer.weight.fill_(1.0)
        average.update(layer, step=step)  # type: ignore[operator]
        assert float(ours.detach()) == pytest.approx(1 - decay, abs=1e-6)


def test_the_students_average_begins_as_a_copy() -> None:
    average = build_average(nn.Linear(1, 1, bias=False), decay=0.9)
    assert average is not None and not average.module.training
    moved({1: 0.0, 8: 1 - 8 ** (-2 / 3), 1000: 0.9}, average)
    assert build_average(nn.Linear(1, 1), decay=0.0) is None


def test_the_teachers_average_begins_at_a_tenth() -> None:
    moved({1: 0.1, 11: 11 / 20, 10_000: 0.99}, RatioEma(nn.Linear(1, 1, bias=False), decay=0.99))
    assert RatioEma(nn.Linear(1, 1), decay=0.99).get_decay() == 0.99


def test_counters_are_copied_and_statistics_averaged() -> None:
    layer = nn.BatchNorm2d(1)
    average = RatioEma(layer, decay=0.5)
    layer(torch.ones(2, 1, 2, 2))
    average.update(layer, step=100)
    assert int(average.module.num_batches_tracked) == 1
    assert float(average.module.running_mean) == pytest.approx(float(layer.running_mean) / 2)  # type: ignore[arg-type]


def test_tied_weights_are_averaged_once_a_step() -> None:
    first, second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    second.weight = first.weight
    average = build_average(nn.ModuleList([first, second]), decay=0.9)
    assert average is not None
    with torch.no_grad():
        average.module[0].weight.zero_()  # type: ignore[index]
        first.weight.fill_(1.0)
    average.update(nn.ModuleList([first, second]), step=1000)
    assert float(average.module[1].weight.detach()) == pytest.approx(0.1)  # type: ignore[index]
