"""BigBiGAN as an objective: who learns from which score, its variants, its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from dreamshard.errors import ConfigError
from pipeline.learning.pretraining.adversarial.bigbigan import networks
from pipeline.learning.pretraining.adversarial.bigbigan.config import BigBiGANConfig, EncoderConfig
from pipeline.learning.pretraining.adversarial.bigbigan.measure import relative_l1
from pipeline.learning.pretraining.adversarial.bigbigan.objective import BigBiGANObjective
from pipeline.learning.pretraining.adversarial.norms import initialise, trainable
from pipeline.learning.pretraining.adversarial.objective import Facts, Share
from pipeline.teachers.gan.bigbigan import encoder, family
from pipeline.teachers.gan.bigbigan.network import Encoded, ReversibleUnit
from pipeline.teachers.gan.biggan import discriminator

SMALL = {
    "channels": 2, "discriminator_channels": 2, "latent": 8, "shared": 4, "width": 8, "blocks": 2,
    "attention": 0,
}  # fmt: skip


def build(side: int = 32, enc: dict[str, Any] | None = None, **settings: Any) -> BigBiGANObjective:
    told = {"filters": 4, "units": [1, 1, 1], "stem": 3, "perceptron": [8], **(enc or {})}
    config = BigBiGANConfig(**{**SMALL, **settings}, encoder=EncoderConfig(**told))
    assert not config.problems()
    facts = Facts(side=side, classes=0, batch_size=6, seed=0, device=torch.device("cpu"))
    return BigBiGANObjective(config, facts)


def share(side: int = 32, **changes: Any) -> Share:
    images = torch.rand(6, 3, side, side, generator=torch.Generator().manual_seed(5)) * 2 - 1
    told = {"positions": range(6), "seed": 0, "turn": 0, "step": 1, "progress": 0.0, **changes}
    return Share(images=images, labels=None, **told)


def reached(module: nn.Module, score: Tensor) -> bool:
    weights = list(module.parameters())
    found = torch.autograd.grad(score.mean(), weights, allow_unused=True, retain_graph=True)
    return any(gradient is not None and bool(gradient.any()) for gradient in found)


def test_e_and_g_get_their_shares_of_the_joint_loss() -> None:
    objective = build()
    parts = objective.networks
    real, fake = objective._score(*objective._pairs(share()))
    shares = {
        name: (reached(parts["encoder"], value), reached(parts["generator"], value))
        for name, value in [*((f"real {k}", v) for k, v in real.items()),
                            *((f"fake {k}", v) for k, v in fake.items())]
    }  # fmt: skip
    assert shares == {
        "real x": (False, False),  # of images alone: it carries no gradient for either
        "real z": (True, False),
        "real xz": (True, False),
        "fake x": (False, True),
        "fake z": (False, False),
        "fake xz": (False, True),
    }


def test_the_discriminators_turn_reaches_neither() -> None:
    objective = build()
    terms = objective.discriminator_step(share())
    assert not reached(objective.networks["encoder"], terms["loss"])
    assert not reached(objective.networks["generator"], terms["loss"])
    assert {"real_x", "real_z", "real_xz", "fake_x", "fake_z", "fake_xz"} <= set(terms)


def test_latents_of_what_the_encoder_gave() -> None:
    mean, stdev = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 2.0]])
    noise = torch.tensor([[2.0, 1.0]])
    found = Encoded(mean, stdev)
    assert networks.latent_of(found, "stochastic", noise).tolist() == [[2.0, 0.0]]
    assert networks.latent_of(found, "stochastic", None).tolist() == mean.tolist()
    assert networks.latent_of(found, "deterministic", noise).tolist() == mean.tolist()
    torch.testing.assert_close(networks.latent_of(found, "uniform", noise), torch.tanh(mean))


def test_sigma_is_a_softplus_and_is_learned() -> None:
    network = build().networks["encoder"]
    found = network(share().images)
    assert bool((found.stdev > 0).all())
    raw = network.out.bias  # type: ignore[union-attr]
    z = networks.latent_of(found, "stochastic", torch.ones_like(found.mean))
    (gradient,) = torch.autograd.grad(z.sum(), raw)  # type: ignore[arg-type]
    assert gradient[8:].abs().sum() > 0


@pytest.mark.parametrize("training", [False, True])
def test_a_reversible_unit_can_be_undone(training: bool) -> None:
    unit = initialise(trainable(ReversibleUnit(16, 1e-4)), "orthogonal", seed=0).train(training)
    x = torch.randn(3, 16, 4, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        kept, changed = unit(x).chunk(2, dim=1)
        back = changed - unit.branch(unit.norm1(kept).relu())  # type: ignore[operator]
    assert not torch.allclose(changed, x[:, :8], atol=1e-3)
    torch.testing.assert_close(torch.cat([back, kept], dim=1), x, rtol=1e-4, atol=1e-5)


def test_the_generators_images_are_the_encoders_averaged() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4)
    assert networks.side_of(images, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert networks.side_of(images, 4) is images


def test_one_pass_of_each_network_is_one_step_of_power_iteration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective, steps = build(), []
    monkeypatch.setattr(
        parametrizations._SpectralNorm, "_power_method",
        lambda self, weight, count: steps.extend([id(self)] * count),
    )  # fmt: skip
    layers = {
        name: sum(isinstance(m, parametrizations._SpectralNorm) for m in network.modules())
        for name, network in objective.networks.items()
    }
    assert layers["generator"] and layers["discriminator"] and not layers["encoder"]
    for who in ("discriminator", "generator"):
        steps.clear()
        getattr(objective, f"{who}_step")(share())
        assert len(steps) == len(set(steps)) == sum(layers.values())


VARIANTS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "base": (32, {}, {}),
    "no unaries": (32, {"scores": ["xz"]}, {}),
    "x only": (32, {"scores": ["x", "xz"]}, {}),
    "z only": (32, {"scores": ["z", "xz"]}, {}),
    "gan": (32, {"scores": ["x"]}, {}),
    "deterministic": (32, {"posterior": "deterministic"}, {}),
    "uniform": (32, {"posterior": "uniform"}, {}),
    "small g": (32, {"channels": 1}, {}),
    "revnet": (32, {}, {"architecture": "revnet50"}),
    "high resolution": (64, {"generator_side": 32}, {"stem": 7, "units": [1, 1]}),
    "attention": (64, {"attention": 16, "latent": 10, "channels": 4, "discriminator_channels": 4},
                  {"stem": 7, "units": [1, 1]}),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_every_row_of_the_ablation_trains_and_is_read(name: str, tmp_path: Path) -> None:
    side, settings, enc = VARIANTS[name]
    objective, told = build(side, enc, **settings), share(side)
    for who in ("discriminator", "generator"):
        learned = [p for g in objective.optimizers[who].param_groups for p in g["params"]]
        for network in objective.networks.values():
            network.requires_grad_(False)
        for parameter in learned:
            parameter.requires_grad_(True)
        objective.optimizers[who].zero_grad()
        getattr(objective, f"{who}_step")(told)["loss"].backward()
        assert all(parameter.grad is not None for parameter in learned)
        objective.optimizers[who].step()
    averages = {each: objective.networks[each] for each in objective.averaged}
    files = objective.export(averages, tmp_path, dtype=torch.float32)
    assert all(file.is_file() for file in files)
    assert objective.sample(averages, range(3)).shape == (3, *[objective.side] * 2, 3)
    if name == "uniform":
        with pytest.raises(ConfigError):
            family.describe(tmp_path, {})  # its latents are not the loader's
        return
    check_files(objective, averages, told, tmp_path)


def check_files(
    objective: BigBiGANObjective, averages: dict[str, nn.Module], told: Share, folder: Path
) -> None:
    module = family.describe(folder, {}).load(torch.float32).module
    z, y = torch.randn(3, objective.config.latent), torch.zeros(3, dtype=torch.int64)
    made = module(z, y, None)
    torch.testing.assert_close(made, averages["generator"].eval()(z, y, None), rtol=1e-4, atol=1e-4)
    x = networks.side_of(told.images, objective.side)
    looking = discriminator.describe(folder / "D.pth", {"SN_eps": 0.0}).load(torch.float32).module
    scores = objective.networks["discriminator"].eval()
    torch.testing.assert_close(looking(x), scores.images(x))  # type: ignore[operator]
    if not objective.encodes:
        return
    known = encoder.describe(folder, {"generator": "", "z": "mean"})
    assert known.taps[0].stride == (1 if objective.config.encoder.stem == 3 else 4)
    read = known.load(torch.float32).module
    rebuilt = objective.reconstruct(averages, told.images)
    torch.testing.assert_close(read(told.images), rebuilt, rtol=1e-3, atol=1e-3)
    deviation = read.encoder(told.images).stdev  # type: ignore[operator]
    assert bool((deviation < 1e-6).all()) == (objective.config.posterior == "deterministic")


def test_the_encoders_rate_is_its_own() -> None:
    groups = build(encoder_rate=10.0).optimizers["generator"].param_groups
    assert [group["lr"] for group in groups] == pytest.approx([5e-5, 5e-4])


def test_published_networks_have_their_widths() -> None:
    config = BigBiGANConfig()
    up, down = networks.generator_layout(config, 128), networks.image_layout(config, 128)
    assert [b.outputs for b in up.blocks] == [1536, 768, 384, 192, 96]
    assert [b.attention for b in up.blocks] == [False, False, False, True, False]
    assert up.chunk == 20
    assert [stage[0].outputs for stage in down.stages] == [96, 192, 384, 768, 1536, 1536]
    assert down.attention == (True, *[False] * 5)
    layout = networks.encoder_layout(config, 256)
    assert layout.widths == (256, 512, 1024, 2048)
    assert [block.hidden for block in layout.head] == [4096, 4096]


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"bigbigan\.latent.*multiple of 4"):
        build(latent=9)
    with pytest.raises(ConfigError, match=r"image\.size.*48"):
        build(48)
    with pytest.raises(ConfigError, match=r"generator_side.*divisor"):
        build(64, generator_side=48)
    assert BigBiGANConfig(scores=["z"]).problems()
    assert BigBiGANConfig(scores=["x", "x"]).problems()


def test_relative_l1_by_hand() -> None:
    images = torch.tensor([0.0, 2.0, 6.0]).view(3, 1, 1, 1)
    assert relative_l1(images, images) == 0
    # Own errors 1 + 1 + 5, those to the next image 1 + 5 + 1.
    assert relative_l1(images, torch.ones(3, 1, 1, 1)) == pytest.approx(1.0)
    rebuilt = torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1, 1)
    assert relative_l1(images, rebuilt) == pytest.approx((1 + 0 + 2) / (1 + 4 + 4))
