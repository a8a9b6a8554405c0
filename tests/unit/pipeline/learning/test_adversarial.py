"""The adversarial trainer's parts: losses by hand, whose gradients, averages, random numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.learning.pretraining.adversarial import ada, looking, objective
from pipeline.learning.pretraining.adversarial.diffaugment import (
    NUMBERS,
    POLICIES,
    diffaugment,
)
from pipeline.learning.pretraining.adversarial.kept import Budget
from pipeline.learning.pretraining.adversarial.objective import Facts, Share
from pipeline.learning.pretraining.adversarial.play import Players
from pipeline.learning.pretraining.adversarial.stylegan2 import losses, method
from pipeline.learning.pretraining.adversarial.stylegan2.config import StyleGAN2Config
from pipeline.learning.pretraining.adversarial.stylegan2.method import StyleGAN2, layouts
from pipeline.learning.pretraining.adversarial.sync import moments
from pipeline.learning.pretraining.batches import Batch
from pipeline.teachers.door import open_teacher

SIDE, ROWS, CLASSES = 8, 4, 3


def tiny(**changed: Any) -> StyleGAN2Config:
    told = {"channel_base": 64, "channel_max": 8, "latent": 6, "statistics_group": 2}
    return StyleGAN2Config(**{**told, **changed})


def facts(**changed: Any) -> Facts:
    told: dict[str, Any] = {"side": SIDE, "classes": 0, "batch_size": ROWS, "seed": 0}
    return Facts(**{**told, "device": torch.device("cpu"), **changed})


def share(classes: int = 0, **changed: Any) -> Share:
    drawn = torch.Generator().manual_seed(1)
    images = torch.rand(ROWS, 3, SIDE, SIDE, generator=drawn) * 2 - 1
    labels = torch.arange(ROWS) % classes if classes else None
    told = {"positions": range(ROWS), "seed": 0, "turn": 0, "step": 1, "progress": 0.0, **changed}
    return Share(images, labels, **told)


def batches(count: int) -> Iterator[Batch]:
    for number in range(count):
        drawn = torch.Generator().manual_seed(number)
        images = torch.rand(ROWS, 3, SIDE, SIDE, generator=drawn) * 2 - 1
        positions = range(number * ROWS, (number + 1) * ROWS)
        yield Batch(images, torch.zeros(0), None, positions)


def state(players: Players) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value.clone()
        for name, part in players.parts().items()
        if isinstance(part, nn.Module)
        for key, value in part.state_dict().items()
    }


def test_losses_are_those_computed_by_hand() -> None:
    real, fake = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [-1.0]])
    plus = [math.log1p(math.exp(x)) for x in (0.0, -1.0, 2.0, -1.0)]
    expected = (plus[0] + plus[1]) / 2 + (plus[2] + plus[3]) / 2
    assert losses.discriminator_loss(real, fake).item() == pytest.approx(expected)
    expected = sum(math.log1p(math.exp(x)) for x in (-2.0, 1.0)) / 2
    assert losses.generator_loss(fake).item() == pytest.approx(expected)


def test_r1_of_a_quadratic_is_known() -> None:
    """Scores a |x|^2 / 2 have the gradient a x: R1 is a^2 |x|^2, its derivative 2 a |x|^2."""
    x = share().images
    a = torch.tensor(1.5, requires_grad=True)
    penalty = losses.r1(lambda seen: a * seen.square().sum((1, 2, 3), keepdim=True) / 2, x)
    length = x.square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(penalty, 2.25 * length)
    penalty.backward()
    torch.testing.assert_close(a.grad, 3.0 * length)


def test_lazy_r1_weighs_what_its_turns_leave_out() -> None:
    objective = StyleGAN2(tiny(r1_gamma=0.4, r1_every=4), facts())
    terms = objective.regulariser_step(share())
    assert terms["loss"].item() == pytest.approx(0.4 / 2 * 4 * terms["r1"].item())
    players, stream = Players(objective, seed=0, half=False), batches(8)
    due = [number for number in range(1, 9) if "loss_r" in players.step(number, stream, progress=0)]
    assert due == [4, 8]


@pytest.mark.parametrize("augment", ["diffaugment", "ada"])
def test_real_and_generated_images_are_changed_in_every_turn(
    augment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that leaves nothing: then no score depends on images."""
    given = StyleGAN2(tiny(augment=augment), facts())
    given.adaptive = {"augment_strength": 0.5} if augment == "ada" else {}
    for where, name in ((method, "diffaugment"), (ada, "adaptive")):
        monkeypatch.setattr(where, name, lambda images, drawn, **_: images * 0)
    terms = given.discriminator_step(share())
    torch.testing.assert_close(terms["real"], terms["fake"])
    given.generator_step(share())["loss"].backward()
    learned = [p.grad for p in given.generator.parameters() if p.grad is not None]
    assert learned and not any(bool(gradient.any()) for gradient in learned)
    penalties = [given.regulariser_step(share())["r1"]]
    other = Share(-share().images, None, range(ROWS), seed=0, turn=0, step=1, progress=0.0)
    torch.testing.assert_close(penalties[0], given.regulariser_step(other)["r1"])


def test_minibatch_statistics_are_of_every_second_image_of_four() -> None:
    """Groups are made as the official code makes them: images N / G apart."""
    epilogue = StyleGAN2(tiny(statistics_group=2), facts()).discriminator.network.b4
    x = torch.randn(4, 8, 4, 4, generator=torch.Generator().manual_seed(3))
    told = epilogue._of_batch(x, 1)
    pair = x[[1, 3]]
    expected = ((pair - pair.mean(0)).square().mean(0) + 1e-8).sqrt().mean()
    torch.testing.assert_close(told[1], expected.expand(1, 4, 4))
    assert told[0].equal(told[2]) and told[1].equal(told[3]) and not told[0].equal(told[1])


@pytest.mark.parametrize("half", [False, True])
def test_r1_of_the_network_agrees_with_finite_differences(half: bool) -> None:
    """Its gradient by the weights goes through the derivative of the derivative."""
    objective = StyleGAN2(tiny(), facts())
    network = objective.discriminator
    network.in_half = half
    images = share().images

    def penalty() -> Tensor:
        return losses.r1(lambda seen: network(seen, None), images)

    weight = network.network.b4.fc.weight
    value = penalty()
    value.backward()
    assert weight.grad is not None and bool(torch.isfinite(weight.grad).all())
    if half:
        return
    length = 1e-2  # the last block computes in float32: shorter steps drown in its rounding
    step = weight.grad / weight.grad.norm() * length
    found = []
    for move in (step, -2 * step):
        with torch.no_grad():
            weight += move
        found.append(penalty().item())
    above, below = found
    assert (above - below) / (2 * length) == pytest.approx(weight.grad.norm().item(), rel=2e-2)


@pytest.mark.parametrize("classes", [0, CLASSES])
def test_each_turn_moves_one_player_alone(classes: int) -> None:
    objective = StyleGAN2(tiny(r1_every=1), facts(classes=classes))
    players, given = Players(objective, seed=0, half=False), share(classes)
    turns = {
        "discriminator_step": "discriminator", "regulariser_step": "discriminator",
        "generator_step": "generator",
    }  # fmt: skip
    for turn, player in turns.items():
        before = state(players)
        players._turn(player, getattr(objective, turn), given, "loss")
        moved = {n.split(".")[0] for n, v in state(players).items() if not v.equal(before[n])}
        learnt = {n for n in moved if n in objective.networks}
        w_moves = {"generator"} if turn == "discriminator_step" else set()  # the mean w alone
        assert learnt - w_moves == {player}
        for name, network in objective.networks.items():
            graded = {n for n, p in network.named_parameters() if p.grad is not None}
            left_out = {"network.b4.out.bias"} if turn == "regulariser_step" else set()
            if name == player:
                assert graded >= {n for n, _ in network.named_parameters()} - left_out
            network.zero_grad()


def test_the_average_has_the_half_life_it_says() -> None:
    objective = StyleGAN2(tiny(ema_half_life=400, ema_ramp=0), facts())
    assert objective.decay(1) ** (400 / ROWS) == pytest.approx(0.5)
    ramped = StyleGAN2(tiny(ema_half_life=400, ema_ramp=0.05), facts())
    assert ramped.decay(100) == pytest.approx(0.5 ** (ROWS / (0.05 * 100 * ROWS)))
    assert ramped.decay(10**6) == objective.decay(1)
    players = Players(ramped, seed=0, half=False)
    weight = ramped.generator.network.synthesis.get_submodule("b8").conv0.weight
    first = weight.detach().clone()
    players.step(1, batches(1), progress=0.0)
    decay = ramped.decay(1)
    average = players.averages["generator"].network.synthesis.b8.conv0.weight  # type: ignore[union-attr]
    torch.testing.assert_close(average, decay * first + (1 - decay) * weight)


def test_random_numbers_belong_to_positions_turns_and_purposes() -> None:
    whole = share()
    parts = [share(positions=range(2)), share(positions=range(2, 4))]
    joined = torch.cat([part.normal("z", 5) for part in parts])
    assert joined.equal(whole.normal("z", 5))
    others = [whole.normal("w", 5), share(turn=1).normal("z", 5), share(seed=1).normal("z", 5)]
    assert not any(joined.equal(other) for other in others)
    assert whole.integers("k", 2, high=4).max() < 4 and whole.uniform("u", 99).max() < 1


def test_numbers_that_a_gpu_draws_are_those_of_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    whole = objective.device_normal(7, range(40, 48), (3, 5), cpu)
    assert whole.equal(objective.device_normal(7, range(40, 48), (3, 5), cpu))
    others = [(8, range(40, 48)), (7, range(48, 56))]
    assert not any(whole.equal(objective.device_normal(*each, (3, 5), cpu)) for each in others)
    monkeypatch.setattr(objective, "rank_count", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(objective, "this_rank", lambda rank=rank: rank)
        part = range(40 + 4 * rank, 44 + 4 * rank)
        drawn = objective.device_normal(7, part, (3, 5), cpu)
        assert drawn.equal(whole[4 * rank : 4 * rank + 4])


def test_lazy_regularisation_corrects_adam() -> None:
    """Source: StyleGAN2, appendix B: rate and decays to the power k / (k + 1)."""
    objective = StyleGAN2(tiny(r1_every=16, betas=[0.0, 0.99]), facts())
    group = objective.optimizers["discriminator"].param_groups[0]
    assert group["lr"] == pytest.approx(2.5e-3 * 16 / 17)
    assert group["betas"] == pytest.approx((0.0, 0.99 ** (16 / 17)))
    assert objective.optimizers["generator"].param_groups[0]["lr"] == 2.5e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_exported_is_what_was_trained(tmp_path: Path, dtype: torch.dtype) -> None:
    objective = StyleGAN2(tiny(), facts(classes=CLASSES))
    with torch.no_grad():  # noise that counts, and a mean w
        for layer in objective.generator.network.synthesis.noisy_layers():
            layer.noise_strength.fill_(0.3)
    averages: dict[str, nn.Module] = {"generator": objective.generator}
    (file,) = objective.export(averages, tmp_path, dtype=dtype)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    told = {"kind": "stylegan2", "micro_batch": ROWS}
    teacher = open_teacher(file, mode="synthesize", levels=["b8", "w"], **told)
    given = share(CLASSES)
    z, labels = given.normal("z", 6), given.labels
    assert labels is not None
    maps, images = teacher.generate(z.numpy(), labels.numpy(), None)
    with torch.no_grad():
        own, w = objective.generator(z, labels, "const")
    torch.testing.assert_close(images, own, **close)
    torch.testing.assert_close(maps["w"], w, **close)
    judge = open_teacher(file, mode="encode", levels=["d.fc"], **told).network.module
    with torch.no_grad():
        theirs = judge.judge(given.images, nn.functional.one_hot(labels, CLASSES).float())
        torch.testing.assert_close(theirs, objective.discriminator(given.images, labels), **close)


def test_widths_follow_base_and_most_channels() -> None:
    told, judged = layouts(tiny(channel_base=128, channel_max=16), 16, 0)
    assert told.channels == ((4, 16), (8, 16), (16, 8))
    assert judged.channels == ((16, 8, 16), (8, 16, 16)) and judged.architecture == "orig"


@pytest.mark.parametrize("policy", POLICIES)
def test_diffaugment_changes_and_passes_gradients_on(policy: str) -> None:
    x = share().images.requires_grad_()
    changed = diffaugment(x, share().uniform("a", NUMBERS), policies=[policy])
    assert changed.shape == x.shape and not changed.equal(x)
    (gradient,) = torch.autograd.grad(changed.sum(), x)
    assert gradient.abs().sum() > 0
    assert diffaugment(x, share().uniform("a", NUMBERS), policies=[]) is x


def test_diffaugment_by_hand() -> None:
    x = torch.ones(1, 3, 8, 8)
    middle = torch.full((1, NUMBERS), 0.5)
    cut = diffaugment(x, middle, policies=["cutout"])
    assert cut.sum() == 3 * (64 - 16)
    assert diffaugment(x, middle, policies=["translation"]).equal(x)
    left = middle.clone()
    left[:, 4] = 0.0  # one pixel of eight
    assert diffaugment(x, left, policies=["translation"]).sum() == 3 * 56
    bright = middle.clone()
    bright[:, 0] = 0.75
    torch.testing.assert_close(diffaugment(x, bright, policies=["color"]), x + 0.25)


def test_adaptive_augmentation_begins_with_nothing_and_moves_by_signs() -> None:
    x, drawn = share().images, share().uniform("a", ada.NUMBERS)
    assert ada.adaptive(x, drawn, strength=0.0) is x
    unchosen = drawn.clone()
    unchosen[:, : ada.NUMBERS // 2] = 0.999
    torch.testing.assert_close(ada.adaptive(x, unchosen, strength=0.5), x, atol=1e-5, rtol=0)
    changed = ada.adaptive(x, drawn, strength=1.0)
    assert changed.shape == x.shape and bool(torch.isfinite(changed).all())
    told = {"target": 0.6, "images": 100, "speed": 1000}
    assert ada.next_strength(0.2, 0.9, **told) == pytest.approx(0.3)  # type: ignore[arg-type]
    assert ada.next_strength(0.05, 0.1, **told) == 0.0  # type: ignore[arg-type]
    objective = StyleGAN2(tiny(augment="ada", ada_images=1000), facts())
    objective.adapt(10, {"signs": 0.9})
    objective.adapt(20, {"signs": 0.9})
    assert objective.adaptive["augment_strength"] == pytest.approx(2 * 10 * ROWS / 1000)


def test_a_collapse_is_told_from_variety() -> None:
    real = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3)).astype(np.uint8)
    other = np.random.default_rng(1).integers(0, 256, (32, 8, 8, 3)).astype(np.uint8)
    assert looking.variety(other, real) == pytest.approx(1, abs=0.2)
    few = other[np.arange(32) % 3]
    assert looking.variety(few, real) < 0.01
    assert looking.alarm(0.01, seen=10, best=0.0) == ""  # it only begins
    assert "COLLAPSE" in looking.alarm(0.01, seen=10, best=0.9)
    assert "COLLAPSE" in looking.alarm(0.01, seen=10**6, best=0.0)
    assert looking.alarm(0.9, seen=10**6, best=0.9) == ""


def test_budgets_are_steps_or_minutes() -> None:
    assert Budget(10, None).is_spent(10, 0) and not Budget(10, None).is_spent(9, 1e9)
    assert Budget(10, 2.0).is_spent(3, 120) and not Budget(10, 2.0).is_spent(99, 119)
    assert Budget(10, 2.0).progress(1, 60) == 0.5


def test_moments_are_those_of_the_batch() -> None:
    x = torch.randn(4, 3, 5, 5)
    mean, var = moments(x)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(var, x.var((0, 2, 3), correction=0))
