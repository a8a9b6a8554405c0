"""The learning rate: its rise, its fall, and what a group of parameters makes of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pipeline.learning.schedule import WarmupCosine


def test_the_rise_is_linear_and_reaches_the_peak() -> None:
    schedule = WarmupCosine(peak=2.0, steps=100, warmup=10, floor=0.01)
    rates = [schedule(step) for step in range(1, 11)]
    assert rates == pytest.approx([0.2 * step for step in range(1, 11)])


def test_the_cosine_passes_its_middle_and_ends_at_the_floor() -> None:
    schedule = WarmupCosine(peak=2.0, steps=100, warmup=10, floor=0.01)
    assert schedule(55) == pytest.approx(2.0 * (0.01 + 0.99 / 2))
    assert schedule(100) == pytest.approx(0.02)
    assert schedule(11) == pytest.approx(2 * (0.01 + 0.99 * (1 + math.cos(math.pi / 90)) / 2))


def test_with_a_lag_the_first_step_after_the_rise_has_the_peak() -> None:
    schedule = WarmupCosine(peak=2.0, steps=100, warmup=10, lag=1)
    assert schedule(11) == 2.0 and schedule(12) < 2.0
    assert schedule(100) == pytest.approx(1 + math.cos(math.pi * 89 / 90))


def test_a_rate_is_held_over_the_steps_of_an_epoch() -> None:
    schedule = WarmupCosine(peak=1.0, steps=12, lag=1, hold=4)
    rates = [schedule(step) for step in range(1, 13)]
    assert rates[:4] == [1.0] * 4 and rates[4:8] == [rates[4]] * 4
    assert [rates[4], rates[8]] == pytest.approx(
        [(1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in (1, 2)]
    )


def test_one_step_and_no_rise() -> None:
    assert WarmupCosine(peak=2.0, steps=1, floor=0.5)(1) == pytest.approx(1.0)
    assert WarmupCosine(peak=2.0, steps=1, warmup=1)(1) == 2.0


def test_groups_scale_the_rate_or_keep_the_peak() -> None:
    layer = nn.Linear(2, 2)
    groups = [
        {"params": [layer.weight], "lr_scale": 0.5},
        {"params": [layer.bias], "fixed_rate": True},
        {"params": [nn.Parameter(torch.zeros(1))], "fixed_rate": False},
    ]
    optimizer = torch.optim.SGD(groups, lr=9.0)
    schedule = WarmupCosine(peak=0.8, steps=4, warmup=4)
    assert schedule.set(optimizer, 1) == pytest.approx(0.2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.8, 0.2])
