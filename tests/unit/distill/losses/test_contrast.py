"""CRD's loss and memory by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from distill.losses.contrast import noise_contrast
from distill.modules.memory_bank import MemoryBank


def test_one_positive_and_two_negatives_give_the_loss_counted_by_hand() -> None:
    # N = 4, K = 2: noise 1/2. h = 1/(1 + 1/2), 1 - h = (1/2)/(1/2 + 1/2) and (1/2)/(3/2 + 1/2).
    loss = noise_contrast(torch.tensor([[1.0, 0.5, 1.5]]).log(), samples=4)
    assert float(loss) == pytest.approx(-(math.log(2 / 3) + math.log(1 / 2) + math.log(1 / 4)))


def test_scores_are_normalised_by_the_first_batch_and_rows_move_by_their_momentum() -> None:
    torch.manual_seed(0)
    bank = MemoryBank(6, 4, momentum=0.5)
    before = bank.rows.clone()
    embeddings, rows = F.normalize(torch.randn(2, 4), dim=1), torch.tensor([[0, 1], [3, 5]])
    first = bank.log_scores(embeddings, rows, temperature=1.0)
    assert float(first.exp().mean()) == pytest.approx(1 / 6)
    constant = float(bank.log_constant)
    bank.log_scores(embeddings * 0, rows, temperature=1.0)
    assert float(bank.log_constant) == constant
    bank.update(embeddings, torch.tensor([0, 3]))
    expected = F.normalize(0.5 * before[[0, 3]] + 0.5 * embeddings, dim=1)
    torch.testing.assert_close(bank.rows[[0, 3]], expected)
    assert torch.equal(bank.rows[[1, 2, 4, 5]], before[[1, 2, 4, 5]])
    bank.update(embeddings, torch.tensor([5, 5]))
    expected = F.normalize(0.5 * before[5] + 0.5 * embeddings[1], dim=0)
    torch.testing.assert_close(bank.rows[5], expected)


@pytest.mark.parametrize("temperature", [1e-3, 0.02, 1e3])
def test_loss_and_gradient_are_finite_at_every_temperature_allowed(temperature: float) -> None:
    torch.manual_seed(0)
    bank = MemoryBank(40, 4, momentum=0.5)
    bank.rows.copy_(F.normalize(bank.rows, dim=1))
    embeddings = bank.rows[:3].clone().requires_grad_()
    rows = torch.arange(36).view(3, 12)
    for _ in range(2):
        logs = bank.log_scores(embeddings, rows, temperature=temperature)
        loss = noise_contrast(logs, samples=40)
        (gradient,) = torch.autograd.grad(loss, embeddings)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()
