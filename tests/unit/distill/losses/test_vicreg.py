"""VICReg's terms against numbers computed by hand, and what must not change them."""

from __future__ import annotations

import math

import pytest
import torch

from distill.losses.vicreg import covariance, variance, vicreg_loss

# Columns (0, 1, 2) and (1, 1, 4): means 1 and 2, unbiased variances 1 and 3, covariance 1.5.
Z = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 4.0]])


def test_variance_by_hand() -> None:
    small = Z / 10  # variances 0.01 and 0.03
    expected = ((1 - math.sqrt(0.01 + 1e-4)) + (1 - math.sqrt(0.03 + 1e-4))) / 2
    assert variance(small).item() == pytest.approx(expected, rel=1e-5)
    assert variance(Z).item() == 0.0, "both deviations are above 1"


def test_covariance_by_hand() -> None:
    assert covariance(Z).item() == pytest.approx(2 * 1.5**2 / 2)


def test_a_collapsed_embedding_is_all_hinge() -> None:
    constant = torch.full((4, 3), 7.0)
    assert variance(constant).item() == pytest.approx(0.99)
    assert covariance(constant).item() == 0.0


def test_a_whitened_embedding_costs_nothing() -> None:
    z = torch.randn(64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = z - z.mean(dim=0)
    white = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / 63)).T
    assert variance(white).item() == pytest.approx(0.0, abs=1e-4)
    assert covariance(white).item() == pytest.approx(0.0, abs=1e-8)


def test_the_terms_add_up_with_their_weights() -> None:
    other = Z + torch.tensor([1.0, 0.0])
    terms = vicreg_loss(Z / 10, other / 10)
    assert terms["invariance"].item() == pytest.approx(0.01 / 2)
    assert terms["variance"].item() == pytest.approx(2 * variance(Z / 10).item())
    expected = 25 * terms["invariance"] + 25 * terms["variance"] + terms["covariance"]
    torch.testing.assert_close(terms["loss"], expected)
    halved = vicreg_loss(Z / 10, other / 10, halve_variance=True)["variance"]
    torch.testing.assert_close(2 * halved, terms["variance"])


def test_both_views_learn_and_a_shift_changes_neither_variance_nor_covariance() -> None:
    first, second = Z.clone().requires_grad_(), (Z * 0.5).requires_grad_()
    vicreg_loss(first, second)["loss"].backward()
    assert first.grad is not None and second.grad is not None
    assert (first.grad != 0).any() and (second.grad != 0).any()
    torch.testing.assert_close(covariance(Z + 5), covariance(Z))
    torch.testing.assert_close(variance(Z / 10 + 5), variance(Z / 10), rtol=1e-4, atol=1e-5)
