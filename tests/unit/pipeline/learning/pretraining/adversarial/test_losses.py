"""Adversarial losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.learning.pretraining.adversarial import losses


def test_hinges_by_hand() -> None:
    logits = torch.tensor([[2.0], [0.5], [-1.0]])
    assert losses.hinge_real(logits).item() == pytest.approx((0 + 0.5 + 2) / 3)
    assert losses.hinge_fake(logits).item() == pytest.approx((3 + 1.5 + 0) / 3)


def test_a_quarter_is_rotated_in_four_ways() -> None:
    images = torch.arange(64 * 3 * 4 * 4, dtype=torch.float32).reshape(64, 3, 4, 4)
    turned, labels = losses.rotate(images)
    assert len(turned) == 64 + 48
    assert torch.equal(turned[:64], images)
    assert labels.tolist() == [0] * 16 + [1] * 16 + [2] * 16 + [3] * 16
    for number, times in enumerate((1, 2, 3)):
        part = turned[64 + 16 * number : 80 + 16 * number]
        assert torch.equal(part, torch.rot90(images[48:], times, (2, 3)))
    assert turned[64, 0, 0, 0] == images[48, 0, 0, -1]  # the right column comes to the top


def test_the_last_logits_are_told_of() -> None:
    logits = torch.zeros(7, 4)
    logits[3:, :] = torch.tensor([10.0, 0, 0, 0])
    labels = torch.tensor([0, 1, 2, 3])
    low, high = (math.log(3 + math.exp(10)) - 10, math.log(3 + math.exp(10)))
    wanted = (low + 3 * high) / 4
    assert losses.rotation_loss(logits, labels).item() == pytest.approx(wanted, rel=1e-5)


def test_the_penalty_of_a_linear_score() -> None:
    weight = torch.tensor([3.0, 4.0] + [0.0] * 10)  # its norm is 5, so that the penalty is 16
    real, fake = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    found = losses.gradient_penalty(
        lambda images: images.flatten(1) @ weight, real, fake, torch.rand(2, 1, 1, 1)
    )
    assert found.item() == pytest.approx(16.0, rel=1e-5)


def test_bigbigans_scores_have_a_hinge_each() -> None:
    real = {"x": torch.tensor([2.0]), "z": torch.tensor([-2.0])}
    fake = {"x": torch.tensor([0.0]), "z": torch.tensor([-3.0])}
    # A single hinge on the sums would give max(0, 1 - 0) + max(0, 1 - 3) = 1.
    assert losses.joint_discriminator(real, fake).item() == pytest.approx(0 + 3 + 1 + 0)
    assert losses.joint_generator(real, fake).item() == pytest.approx((2 - 2) - (0 - 3))


def test_alpha_falls_to_nothing() -> None:
    assert losses.annealed(0.2, 0.0) == pytest.approx(0.2)
    assert losses.annealed(0.2, 0.75) == pytest.approx(0.05)
    assert losses.annealed(0.2, 1.0) == 0
