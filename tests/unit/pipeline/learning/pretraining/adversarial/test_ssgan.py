"""SS-GAN as an objective: who learns from what, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from dreamshard.errors import ConfigError
from pipeline.learning.pretraining.adversarial.objective import Facts, Share
from pipeline.learning.pretraining.adversarial.ssgan import networks
from pipeline.learning.pretraining.adversarial.ssgan.config import SSGANConfig
from pipeline.learning.pretraining.adversarial.ssgan.objective import SSGANObjective
from pipeline.teachers.gan.biggan import discriminator as biggan_discriminator
from pipeline.teachers.gan.biggan import family as biggan
from pipeline.teachers.gan.ssgan import discriminator, family

CPU = torch.device("cpu")


def facts(side: int = 32, classes: int = 0) -> Facts:
    return Facts(side=side, classes=classes, batch_size=8, seed=0, device=CPU)


def build(side: int = 32, classes: int = 0, **settings: Any) -> SSGANObjective:
    told: dict[str, Any] = {"channels": 4, "discriminator_channels": 4, "latent": 6, **settings}
    return SSGANObjective(SSGANConfig(**told), facts(side, classes))


def share(side: int = 32, classes: int = 0, **changes: Any) -> Share:
    drawn = torch.Generator().manual_seed(5)
    images = torch.rand(8, 3, side, side, generator=drawn) * 2 - 1
    labels = torch.arange(8) % classes if classes else None
    told = {"positions": range(8), "seed": 0, "turn": 0, "step": 1, "progress": 0.0, **changes}
    return Share(images=images, labels=labels, **told)


def turn(objective: SSGANObjective, who: str, told: Share) -> dict[str, Tensor]:
    """Run a player's turn and its step as the trainer does."""
    for name, network in objective.networks.items():
        network.requires_grad_(name == who)
    terms = getattr(objective, f"{who}_step")(told)
    optimizer = objective.optimizers[who]
    optimizer.zero_grad()
    terms["loss"].backward()
    optimizer.step()
    return dict(terms)


def gradients(objective: SSGANObjective, loss: Tensor, who: str) -> dict[str, Tensor | None]:
    named = dict(objective.networks[who].named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    return dict(zip(named, found, strict=True))


def test_the_discriminators_turn_reaches_no_generator_and_its_rotations_are_real() -> None:
    objective = build()
    terms = objective.discriminator_step(share())
    assert not any(g is not None for g in gradients(objective, terms["loss"], "generator").values())
    told = gradients(objective, terms["rotation"], "discriminator")
    assert all((g is not None) == ("logit" not in name) for name, g in told.items())
    # The rotations are those of real images: other latents change nothing about them.
    other = objective.discriminator_step(share(turn=1))
    assert terms["fake"].item() != other["fake"].item()
    assert terms["rotation"].item() == pytest.approx(other["rotation"].item(), rel=0.2)
    hinge = (terms["loss"] - objective.config.beta * terms["rotation"]).item()
    linear = (2 - terms["real"] + terms["fake"]).item()  # which it is where no score is beyond 1
    assert linear - 1e-5 <= hinge <= linear + 0.2


def test_the_generators_turn_is_its_own() -> None:
    objective = build(alpha=0.5)
    objective.networks["discriminator"].requires_grad_(False)
    terms = objective.generator_step(share())
    assert all(g is not None for g in gradients(objective, terms["loss"], "generator").values())
    terms["loss"].backward()
    assert all(p.grad is None for p in objective.networks["discriminator"].parameters())
    # It does not look at the images: others change nothing.
    same = build(alpha=0.5).generator_step(share())["loss"]
    assert same.item() == pytest.approx(terms["loss"].item(), rel=1e-5)


def test_the_generators_loss_is_upright_scores_and_alpha_times_rotations() -> None:
    given = share()
    upright = build(alpha=0.0).generator_step(given)["loss"].item()  # nothing is rotated
    for alpha in (0.2, 1.0):
        terms = build(alpha=alpha).generator_step(given)
        rest = (terms["loss"] - alpha * terms["rotation"]).item()
        assert rest == pytest.approx(upright, rel=1e-4)


def test_the_discriminators_loss_by_hand() -> None:
    """Hinges of the upright images; beta times four ways of the last quarter of the real ones."""
    objective, given = build(beta=0.7), share()
    network: Any = objective.networks["discriminator"].eval()  # norms stay as they are
    fake = objective._generate(given).detach()
    terms = objective.discriminator_step(given)
    hinge = (1 - network(given.images)).relu().mean() + (1 + network(fake)).relu().mean()
    last = given.images[6:]
    four = torch.cat([last, *(torch.rot90(last, times, (2, 3)) for times in (1, 2, 3))])
    ways = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    rotation = nn.functional.cross_entropy(network.rotation(network.pooled(four)), ways)
    torch.testing.assert_close(terms["rotation"], rotation)
    torch.testing.assert_close(terms["loss"], hinge + 0.7 * rotation)


@pytest.mark.parametrize("method", ["ssgan", "conditional"])
def test_a_look_is_one_step_of_power_iteration(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = 3 if method == "conditional" else 0
    objective, given = build(classes=classes, method=method), share(classes=classes)
    steps = counted(monkeypatch)
    for who in ("discriminator", "generator"):
        before = len(steps)
        turn(objective, who, given)
        names = steps[before:]
        assert len(names) == len(set(names)) == normalised(objective.networks["discriminator"])
    before = len(steps)
    objective.sample({"generator": objective.networks["generator"]}, range(2))
    assert len(steps) == before


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note the layer of every step of power iteration."""
    found: list[int] = []
    original = parametrizations._SpectralNorm._power_method

    def noted(self: Any, weight: Tensor, steps: int) -> None:
        found.extend([id(self)] * steps)
        original(self, weight, steps)

    monkeypatch.setattr(parametrizations._SpectralNorm, "_power_method", noted)
    return found


def normalised(network: nn.Module) -> int:
    return sum(isinstance(part, parametrizations._SpectralNorm) for part in network.modules())


def test_baselines_leave_terms_out() -> None:
    assert "rotation" not in build(method="unconditional").discriminator_step(share())
    alone = build(method="rotation_only")
    terms = alone.discriminator_step(share())
    assert terms["loss"].item() == pytest.approx(terms["rotation"].item())
    told = gradients(alone, terms["loss"], "discriminator")
    assert not told["logit.bias"].any()  # type: ignore[union-attr]
    annealed = build(anneal_alpha=True).generator_step(share(progress=1.0))
    assert "rotation" not in annealed
    penalised = build(regularisation="gradient_penalty", penalty=10.0)
    terms = penalised.discriminator_step(share())
    hinges = 2 - terms["real"] + terms["fake"] + terms["rotation"]
    assert terms["loss"].item() == pytest.approx((hinges + 10 * terms["penalty"]).item(), rel=1e-3)


@pytest.mark.parametrize(
    ("side", "settings"),
    [
        (32, {}),
        (128, {"channels": 1, "discriminator_channels": 1}),
        (32, {"variant": "compare_gan", "modulation": 3}),
        (128, {"variant": "compare_gan", "channels": 1, "discriminator_channels": 1}),
        (32, {"regularisation": "gradient_penalty", "method": "unconditional"}),
    ],
)
def test_the_loaders_read_what_was_trained(
    tmp_path: Path, side: int, settings: dict[str, Any]
) -> None:
    objective = build(side, **settings)
    told = share(side)
    turn(objective, "discriminator", told)
    turn(objective, "generator", told)
    objective.export({"generator": objective.networks["generator"]}, tmp_path, dtype=torch.float32)
    known = family.describe(tmp_path, family.SETTINGS)
    uniform = settings.get("variant") == "compare_gan"
    assert known.architecture["z_distribution"] == ("uniform" if uniform else "normal")
    z = torch.randn(3, 6)
    trained = {name: network.eval() for name, network in objective.networks.items()}
    torch.testing.assert_close(known.load(torch.float32).module(z), trained["generator"](z))
    looking = discriminator.describe(tmp_path, discriminator.SETTINGS)
    assert looking.image_size == (side, side)
    torch.testing.assert_close(
        looking.load(torch.float32).module(told.images),
        trained["discriminator"](told.images),
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_conditional_baseline_is_a_biggan_file(tmp_path: Path) -> None:
    objective = build(classes=5, method="conditional")
    told = share(classes=5)
    turn(objective, "discriminator", told)
    turn(objective, "generator", told)
    objective.export({"generator": objective.networks["generator"]}, tmp_path, dtype=torch.float32)
    known = biggan.describe(tmp_path / "G_ema.pth", biggan.biggan_flags.SETTINGS)
    assert known.classes == 5
    z, y = torch.randn(3, 6), torch.arange(3)
    trained = {name: network.eval() for name, network in objective.networks.items()}
    torch.testing.assert_close(
        known.load(torch.float32).module(z, y, None), trained["generator"](z, y, None),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    looking = biggan_discriminator.describe(tmp_path / "D.pth", {"SN_eps": 0.0})
    torch.testing.assert_close(
        looking.load(torch.float32).module(told.images), trained["discriminator"](told.images)
    )
    assert objective.sample({"generator": trained["generator"]}, range(7)).shape == (7, 32, 32, 3)


def test_published_networks_have_their_widths() -> None:
    paper, code = SSGANConfig(), SSGANConfig(variant="compare_gan")
    assert [b.outputs for b in networks.generator_layout(paper, 32).blocks] == [256] * 3
    down = networks.discriminator_layout(paper, 32).blocks
    assert [(b.outputs, b.resample) for b in down] == [(128, True)] * 2 + [(128, False)] * 2
    wide = [b.outputs for b in networks.generator_layout(paper, 128).blocks]
    assert wide == [1024, 512, 256, 128, 64]
    down = networks.discriminator_layout(paper, 128).blocks
    assert [b.outputs for b in down] == [64, 128, 256, 512, 1024, 1024]
    assert [b.resample for b in down] == [True] * 5 + [False]
    down = networks.discriminator_layout(code, 128).blocks
    assert [b.outputs for b in down] == [64, 128, 256, 256, 512, 512]
    assert all(b.resample and b.shortcut == 3 for b in down)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"image\.size.*48.*32, 64, 128"):
        build(48)
    with pytest.raises(ConfigError, match="conditional without classes"):
        build(method="conditional")
    assert SSGANConfig(modulation=8).problems()[0].key == "modulation"
    told = SSGANConfig(method="conditional", upsample="nearest", pool="mean").problems()
    assert [problem.key for problem in told] == ["upsample", "pool"]
