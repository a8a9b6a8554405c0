"""Statistics of the dataset: unit variance per channel, and PHI-S as it is defined."""

from __future__ import annotations

import pytest
import torch

from distill.modules.standardise import Standardiser, hadamard, phi_s, spreading


def maps(channels: int) -> torch.Tensor:
    torch.manual_seed(0)
    mixing = torch.randn(channels, channels) * torch.logspace(0, 2, channels)[:, None]
    cells = torch.randn(400, channels) @ mixing + 5
    return cells.view(25, 4, 4, channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize("channels", [1, 6, 8])
@pytest.mark.parametrize("kind", ["channel", "phi_s"])
def test_every_channel_has_mean_zero_and_variance_one(channels: int, kind) -> None:
    standard = Standardiser(channels, kind=kind)
    standard.fit(maps(channels))
    found = standard(maps(channels)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(found.mean(dim=1), torch.zeros(channels), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.var(dim=1, correction=0), torch.ones(channels), rtol=1e-3,
                               atol=1e-3)  # fmt: skip


@pytest.mark.parametrize("channels", [2, 5, 12, 16])
def test_phi_s_is_one_scale_and_a_rotation_and_can_be_undone(channels: int) -> None:
    cells = maps(channels).double().transpose(0, 1).flatten(1)
    matrix = phi_s(torch.cov(cells))
    scale = (matrix @ matrix.T).diagonal().mean()
    rotation = matrix / scale.sqrt()
    eye = torch.eye(channels, dtype=torch.float64)
    torch.testing.assert_close(rotation @ rotation.T, eye)
    torch.testing.assert_close(matrix.T @ (matrix @ cells) / scale, cells)
    torch.testing.assert_close(1 / scale, torch.cov(cells).trace() / channels, rtol=1e-5, atol=0)


def test_hadamard_and_spreading_make_uneven_variances_even() -> None:
    for even, size in ((hadamard(8), 8), (spreading(torch.arange(7.0).double()), 7)):
        variances = torch.arange(float(size)).double()
        after = even @ torch.diag(variances) @ even.T
        torch.testing.assert_close(after.diagonal(), variances.mean().expand(size))
    assert float(hadamard(4)[3, 3]) == 0.5


def test_no_gradient_reaches_the_teacher() -> None:
    teacher = maps(4).requires_grad_()
    standard = Standardiser(4, kind="phi_s")
    assert not standard(teacher).requires_grad
