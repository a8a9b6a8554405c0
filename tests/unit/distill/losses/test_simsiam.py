"""SimSiam's loss against numbers computed by hand; its stopped gradients."""

from __future__ import annotations

import pytest
import torch

from distill.losses.simsiam import simsiam_loss


def test_it_is_minus_the_mean_cosine_of_the_crossed_pairs() -> None:
    p1, z2 = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    p2, z1 = torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0], [0.0, -2.0]])
    # cos(p1, z2) = 0.6 and 1, mean 0.8; cos(p2, z1) = 1 and -1, mean 0.
    assert simsiam_loss(p1, p2, z1, z2).item() == pytest.approx(-0.4)


def test_agreement_is_minus_one_whatever_the_scale() -> None:
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert simsiam_loss(z, 3 * z, 2 * z, z).item() == pytest.approx(-1.0)


def test_projections_get_no_gradient_and_predictions_do() -> None:
    parts = [torch.randn(4, 3, requires_grad=True) for _ in range(4)]
    simsiam_loss(*parts).backward()
    assert [part.grad is not None for part in parts] == [True, True, False, False]
