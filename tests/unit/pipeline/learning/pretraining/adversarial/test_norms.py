"""Norms and weights of networks that learn, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.learning.pretraining.adversarial import norms
from pipeline.teachers.gan.bigbigan.network import CReLU, Norm
from pipeline.teachers.gan.ssgan.layout import Block, GeneratorLayout
from pipeline.teachers.gan.ssgan.network import SSGANGenerator


def layout_of(modulation: int | None) -> GeneratorLayout:
    block = Block("B1", 6, 6, 6, resample=True, shortcut=1)
    return GeneratorLayout((block,), 5, 4, "nearest", modulation, 1e-5, unsigned=False)


def test_a_norm_is_torchs_batch_norm_while_it_trains_and_after() -> None:
    ours = norms.trainable(nn.Sequential(Norm(4, 1e-5)))
    torchs = nn.BatchNorm2d(4)
    for _ in range(3):
        x = torch.randn(8, 4, 3, 3) * 2 + 1
        torch.testing.assert_close(ours(x), torchs(x))
    ours.eval()
    torchs.eval()
    x = torch.randn(8, 4, 3, 3)
    torch.testing.assert_close(ours(x), torchs(x))


def test_a_norm_for_inference_reads_what_was_trained() -> None:
    plain = nn.Sequential(Norm(4, 1e-5))
    learned = norms.trainable(nn.Sequential(Norm(4, 1e-5)))
    learned(torch.randn(8, 4, 3, 3) * 3)
    plain.load_state_dict(norms.plain_state(learned))
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(plain(x), learned.eval()(x))


@pytest.mark.parametrize("modulation", [0, 8])
def test_a_modulated_network_begins_as_a_plain_one(modulation: int) -> None:
    plain, modulated = (
        norms.initialise(norms.trainable(SSGANGenerator(layout_of(told))), "normal", seed=1)
        for told in (None, modulation)
    )
    shared = {key: value for key, value in plain.state_dict().items() if "norm" not in key}
    modulated.load_state_dict(shared, strict=False)
    z = torch.randn(4, 5)
    torch.testing.assert_close(modulated(z), plain(z))
    told = [m for m in modulated.modules() if isinstance(m, norms.BatchNorm)]
    modulated(z).square().sum().backward()
    assert all(norm.get_submodule("gamma").weight.grad.any() for norm in told)  # type: ignore[union-attr]


def test_crelu_doubles_and_learns_its_statistics() -> None:
    crelu = norms.trainable(nn.Sequential(CReLU(3, 1e-5)))
    x = torch.randn(64, 3) * 4 + 2
    found = crelu(x)
    h = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(found, torch.cat([h.relu(), (-h).relu()], 1), rtol=1e-4, atol=1e-5)


def test_spectral_norms_are_torchs_and_are_one() -> None:
    net = norms.initialise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(6, 4)), "normal", seed=3)
    weights = [part.weight.detach().clone() for part in net]
    norms.normalise_weights(net)
    norms.settle(net)
    for part, before in zip(net.eval(), weights, strict=True):
        exact = torch.linalg.matrix_norm(before.flatten(1), ord=2)
        torch.testing.assert_close(part.weight, before / exact, rtol=2e-2, atol=1e-4)
    first = [part.weight.detach().clone() for part in net]
    norms.settle(net)
    for part, before in zip(net.eval(), first, strict=True):
        assert torch.equal(part.weight, before)  # it depends on the weights alone


def test_plain_weights_are_what_passes_used() -> None:
    net = norms.normalise_weights(
        norms.initialise(nn.Sequential(nn.Linear(5, 4)), "orthogonal", seed=0)
    )
    for _ in range(3):
        net(torch.randn(2, 5))
    net.eval()
    state = norms.plain_state(net)
    assert set(state) == {"0.weight", "0.bias"}
    plain = nn.Sequential(nn.Linear(5, 4))
    plain.load_state_dict(state)
    x = torch.randn(3, 5)
    torch.testing.assert_close(plain(x), net(x))
