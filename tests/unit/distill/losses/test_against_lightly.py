"""VICReg's and SimSiam's terms against an independent library's: lightly.

The numbers were computed once by lightly 1.6.0 (`lightly.loss.VICRegLoss`, `vicreg_loss.*` and
`NegativeCosineSimilarity`, torch 2.x, float32) from the inputs below; where lightly is installed,
they are computed again, from random inputs too.
"""

from __future__ import annotations

import pytest
import torch

from distill.losses.simsiam import simsiam_loss
from distill.losses.vicreg import covariance, variance, vicreg_loss

PLACES = torch.arange(24, dtype=torch.float64).reshape(6, 4)
FIRST, SECOND = (PLACES * 1.7).sin().float(), (0.8 * (PLACES * 0.9).cos()).float()
OTHERS = (PLACES * 1.3).cos().float(), (PLACES * 0.6 + 1).sin().float()
GRADIENT = [-0.6704948544502258, 0.4302806854248047, -0.9276670217514038, 0.2645481526851654]


def test_vicregs_terms_are_lightlys() -> None:
    terms = vicreg_loss(FIRST, SECOND, halve_variance=True)
    assert terms["loss"].item() == pytest.approx(31.191835403442383, rel=1e-5)
    assert terms["invariance"].item() == pytest.approx(0.8139895796775818, rel=1e-5)
    found = [term(side).item() for term in (variance, covariance) for side in (FIRST, SECOND)]
    expected = [0.44767582416534424, 0.3921157717704773, 0.19888705015182495, 0.14581447839736938]
    assert found == pytest.approx(expected, rel=1e-5)


def test_vicregs_gradient_is_lightlys() -> None:
    first = FIRST.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        vicreg_loss(first, SECOND, halve_variance=True)["loss"], first
    )
    assert gradient.norm().item() == pytest.approx(7.960824489593506, rel=1e-4)
    assert gradient[0].tolist() == pytest.approx(GRADIENT, rel=1e-4)


def test_simsiams_loss_is_lightlys() -> None:
    loss = simsiam_loss(FIRST, SECOND, *OTHERS)
    assert loss.item() == pytest.approx(-0.03668166697025299, abs=1e-6)


def test_random_inputs_agree_where_lightly_is_installed() -> None:
    lightly = pytest.importorskip("lightly.loss", reason="pip install lightly to compare afresh")
    torch.manual_seed(0)
    first, second, third, fourth = torch.randn(4, 32, 16) * 0.7
    expected = lightly.VICRegLoss()(first, second)
    torch.testing.assert_close(vicreg_loss(first, second, halve_variance=True)["loss"], expected)
    cosine = lightly.NegativeCosineSimilarity()
    expected = (cosine(first, fourth) + cosine(second, third)) / 2
    torch.testing.assert_close(simsiam_loss(first, second, third, fourth), expected)
