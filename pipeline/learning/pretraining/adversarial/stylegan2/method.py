"""StyleGAN2 as the adversarial trainer takes it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from dreamshard import rng
from pipeline.learning.device import on_device
from pipeline.learning.pretraining.adversarial import ada
from pipeline.learning.pretraining.adversarial.diffaugment import NUMBERS, diffaugment
from pipeline.learning.pretraining.adversarial.objective import Facts, Share
from pipeline.learning.pretraining.adversarial.stylegan2 import export
from pipeline.learning.pretraining.adversarial.stylegan2.config import StyleGAN2Config
from pipeline.learning.pretraining.adversarial.stylegan2.losses import (
    discriminator_loss,
    generator_loss,
    r1,
)
from pipeline.learning.pretraining.adversarial.stylegan2.network import (
    TrainedDiscriminator,
    TrainedGenerator,
)
from pipeline.learning.pretraining.adversarial.sync import summed
from pipeline.learning.ranks import rank_count
from pipeline.teachers.gan.stylegan2.layout import (
    DiscriminatorLayout,
    GeneratorLayout,
    MappingLayout,
)
from pipeline.teachers.pixels import to_uint8

MULTIPLIER, W_DECAY = 0.01, 0.998
"""The mapping's learning rate multiplier, and the decay of the mean w, both of the paper."""
CLASS_LAYERS = 8
"""Of the discriminator's mapping from a class (the official code's default)."""
ROWS = 64
"""Samples drawn at once (count)."""


class StyleGAN2:
    """Train a StyleGAN2; see `Objective`."""

    averaged = ("generator",)
    discriminator_steps = 1
    generator_sees_images = False

    def __init__(self, config: StyleGAN2Config, facts: Facts) -> None:
        self.config, self.facts = config, facts
        self.generator, self.discriminator = _built(config, facts)
        self.networks = {"generator": self.generator, "discriminator": self.discriminator}
        rates = {"generator": config.lr_generator, "discriminator": config.lr_discriminator}
        self.regularise_every = config.r1_every if config.r1_gamma else 0
        self.optimizers: Mapping[str, Optimizer] = {
            name: _adam(
                network, rates[name], config.betas, every=self._lazy(name), fused=facts.fused
            )
            for name, network in self.networks.items()
        }
        self.adaptive = {"augment_strength": 0.0} if config.augment == "ada" else {}

    def discriminator_step(self, share: Share) -> dict[str, Tensor]:
        """Score real images and generated ones; see `Objective`."""
        images, w = self._generate(share)
        self._follow_w(w)
        fake = self.discriminator(self._changed(images, share, "fake"), share.labels)
        real = self.discriminator(self._changed(share.images, share, "real"), share.labels)
        loss = discriminator_loss(real, fake)
        return {"loss": loss, "real": real.mean(), "fake": fake.mean(), "signs": real.sign().mean()}

    def regulariser_step(self, share: Share) -> dict[str, Tensor]:
        """Penalise the gradient at real images, as the discriminator sees them."""
        with torch.no_grad():
            images = self._changed(share.images, share, "regularised")
        penalty = r1(lambda seen: self.discriminator(seen, share.labels), images)
        weight = self.config.r1_gamma / 2 * self.config.r1_every
        return {"loss": penalty * weight, "r1": penalty}

    def generator_step(self, share: Share) -> dict[str, Tensor]:
        """Score generated images."""
        images, w = self._generate(share)
        self._follow_w(w)
        fake = self.discriminator(self._changed(images, share, "fake"), share.labels)
        return {"loss": generator_loss(fake)}

    def decay(self, step: int) -> float:
        """Return the decay whose half-life is in images, and short at first."""
        seen = step * self.facts.batch_size
        half_life = float(self.config.ema_half_life)
        if self.config.ema_ramp:
            half_life = min(half_life, seen * self.config.ema_ramp)
        return 0.5 ** (self.facts.batch_size / max(half_life, 1e-8))

    def adapt(self, step: int, terms: Mapping[str, float]) -> None:
        """Move the augmentation's strength towards its target."""
        if not self.adaptive:
            return
        seen = step - int(self.adaptive.get("adapted_at", 0))
        self.adaptive["augment_strength"] = ada.next_strength(
            self.adaptive["augment_strength"],
            terms["signs"],
            target=self.config.ada_target,
            images=seen * self.facts.batch_size,
            speed=self.config.ada_images,
        )
        self.adaptive["adapted_at"] = step

    def sample(self, averages: Mapping[str, nn.Module], numbers: range) -> np.ndarray:
        """Draw samples with the network's own noise; classes come in turns."""
        samples = []
        for start in range(numbers.start, numbers.stop, ROWS):
            rows = range(start, min(start + ROWS, numbers.stop))
            shape = (self.config.latent,)
            drawn = rng.normal(self.facts.seed, rows, 0, "adversarial-grid", shape)
            labels = None
            if self.facts.classes:
                labels = torch.tensor(rows, device=self.facts.device) % self.facts.classes
            z = torch.from_numpy(drawn).to(self.facts.device)
            with torch.inference_mode():
                images, _ = averages["generator"](z, labels, "const")
            samples.append(to_uint8(images).cpu().numpy())
        return np.concatenate(samples)

    def export(
        self, averages: Mapping[str, nn.Module], folder: Path, *, dtype: torch.dtype
    ) -> tuple[Path, ...]:
        """Write `network-snapshot.pkl`."""
        average = cast(TrainedGenerator, averages["generator"])
        layout = self.generator.layout
        networks = {"G_ema": export.named_generator(average.network, layout, dtype=dtype)}
        if self.config.export_discriminator:
            own = self.discriminator
            networks["D"] = export.named_discriminator(own.network, own.layout, dtype=dtype)
        return (export.write_snapshot(folder, networks),)

    def _generate(self, share: Share) -> tuple[Tensor, Tensor]:
        z = share.normal("z", self.config.latent)
        layers = self.generator.network.synthesis.noisy_layers()
        cells = [layer.side**2 for layer in layers]
        drawn = share.normal("layers", sum(cells)).split(cells, 1)
        noise = [
            each.view(-1, 1, layer.side, layer.side)
            for each, layer in zip(drawn, layers, strict=True)
        ]
        return self.generator(z, share.labels, noise)

    def _changed(self, images: Tensor, share: Share, name: str) -> Tensor:
        """Return images as the discriminator sees them."""
        if self.config.augment == "diffaugment":
            drawn = share.uniform(f"diffaugment-{name}", NUMBERS)
            return diffaugment(images, drawn, policies=self.config.diffaugment_policies)
        strength = self.adaptive.get("augment_strength", 0.0)
        if not strength:
            return images
        return ada.adaptive(images, share.uniform(f"ada-{name}", ada.NUMBERS), strength=strength)

    @torch.no_grad()
    def _follow_w(self, w: Tensor) -> None:
        mean = summed(w.detach().mean(0)) / rank_count()
        average = cast(Tensor, self.generator.network.mapping.w_avg)
        average.copy_(mean.lerp(average, W_DECAY))

    def _lazy(self, name: str) -> int:
        return self.regularise_every if name == "discriminator" else 0


def layouts(
    config: StyleGAN2Config, side: int, classes: int
) -> tuple[GeneratorLayout, DiscriminatorLayout]:
    """Return the architectures that settings describe.

    Args:
        config: of the method.
        side: of the images (pixels).
        classes: (count), 0 for none.
    """
    sides = [2**power for power in range(2, side.bit_length())]
    width = {each: min(config.channel_base // each, config.channel_max) for each in sides}
    latent, told = config.latent, {"multiplier": MULTIPLIER, "activation": "lrelu"}
    embed = latent if classes else 0
    inner = [latent] * config.mapping_layers
    common = {"activation": "lrelu", "clamp": None}
    generator = GeneratorLayout(
        mapping=MappingLayout(
            latent=latent, classes=classes, features=0, widths=(latent + embed, *inner),
            embeds=(embed, 0), **told,
        ),
        channels=tuple(width.items()), style=latent, architecture="skip", noise=True, **common,
    )  # fmt: skip
    last, mapping = width[4], None
    if classes:
        mapping = MappingLayout(
            latent=0, classes=classes, features=0, widths=(last,) * (CLASS_LAYERS + 1),
            embeds=(last, 0), **told,
        )  # fmt: skip
    down = list(itertools.pairwise(reversed(sides)))
    discriminator = DiscriminatorLayout(
        mapping=mapping, channels=tuple((high, width[high], width[low]) for high, low in down),
        width=last, outputs=last if classes else 1, architecture="orig",
        group=config.statistics_group, statistics=1, **common,
    )  # fmt: skip
    return generator, discriminator


def _built(config: StyleGAN2Config, facts: Facts) -> tuple[TrainedGenerator, TrainedDiscriminator]:
    told, judged = layouts(config, facts.side, facts.classes)
    generator = TrainedGenerator(told, seed=facts.seed, half=facts.half)
    discriminator = TrainedDiscriminator(judged, seed=facts.seed + 1, half=facts.half)
    return on_device(generator, facts.device), on_device(discriminator, facts.device)


def _adam(
    network: nn.Module, rate: float, betas: list[float], *, every: int, fused: bool | None
) -> Adam:
    """Return Adam; turns of a lazy regulariser are steps, too, so that each weighs a little less.

    Source: StyleGAN2, appendix B.
    """
    share = every / (every + 1) if every else 1.0
    powers = tuple(beta**share for beta in betas)
    return Adam(network.parameters(), lr=rate * share, betas=powers, eps=1e-8, fused=fused)  # pyright: ignore
