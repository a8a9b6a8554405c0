"""Draws of samples: uniform, other ones every time, the same whoever asks."""

from __future__ import annotations

import torch

from distill.modules.draws import SampleDraws, hashed, shifted


def test_the_hash_is_splitmix64() -> None:
    """The first outputs of the reference code for seed 0."""
    found = [int(value) % 2**64 for value in hashed(torch.arange(2))]
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    assert int(shifted(torch.tensor([-1]), 60)) == 15


def test_a_sample_draws_the_same_wherever_its_row_is() -> None:
    numbers = torch.arange(64)
    whole = SampleDraws(3).integers(numbers, 5, below=100)
    half = SampleDraws(3).integers(numbers[32:], 5, below=100)
    assert torch.equal(whole[32:], half)
    assert not torch.equal(whole, SampleDraws(4).integers(numbers, 5, below=100))


def test_draws_follow_one_another_and_go_on_from_a_checkpoint() -> None:
    draws, numbers = SampleDraws(0), torch.arange(16)
    first = draws.uniform(numbers, 4)
    state = {name: value.clone() for name, value in draws.state_dict().items()}
    second, again = draws.uniform(numbers, 4), SampleDraws(0)
    again.load_state_dict(state)
    assert torch.equal(again.uniform(numbers, 4), second)
    assert not torch.equal(first, second)


def test_draws_are_uniform_and_not_related() -> None:
    values = SampleDraws(1).uniform(torch.arange(1000), 64)
    assert 0 <= float(values.min()) < 1e-3 and 1 - 1e-3 < float(values.max()) < 1
    counts = torch.histc(values, bins=10, min=0, max=1) / values.numel()
    assert (counts - 0.1).abs().max() < 0.005
    related = torch.corrcoef(values.T) - torch.eye(64)
    assert related.abs().max() < 0.15
