"""SS-GAN and its baselines as an objective of the adversarial trainer.

D is trained on rotations of real images alone, G on those of its own: a turn of D holds no
generated rotation, and in a turn of G the parameters of D require no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from dreamshard import rng
from dreamshard.errors import ConfigError, Problem
from pipeline.learning.pretraining.adversarial import losses
from pipeline.learning.pretraining.adversarial.norms import (
    initialise,
    normalise_weights,
    trainable,
)
from pipeline.learning.pretraining.adversarial.objective import Facts, Share
from pipeline.learning.pretraining.adversarial.ssgan import export, networks
from pipeline.learning.pretraining.adversarial.ssgan.config import ROTATING, SSGANConfig
from pipeline.teachers.gan.biggan.discriminator_network import BigGANDiscriminator
from pipeline.teachers.gan.biggan.network import OUTPUT_EPS, BigGANGenerator
from pipeline.teachers.gan.ssgan.network import SSGANDiscriminator, SSGANGenerator
from pipeline.teachers.pixels import to_uint8

WARM = 9
"""After s steps the average's decay is at most s / (WARM + s), as DDPM's code has it."""


class SSGANObjective:
    """Be SS-GAN, or a baseline of it; see `Objective` for what its parts are.

    Args:
        config: its settings.
        facts: what it is built for.

    Raises: ConfigError: images of a side that no network is published for, or no classes.
    """

    averaged = ("generator",)
    regularise_every = 0
    generator_sees_images = False

    def __init__(self, config: SSGANConfig, facts: Facts) -> None:
        networks.check_size(config, facts.side)
        self.config, self.facts = config, facts
        self.conditional, self.rotates = config.method == "conditional", config.method in ROTATING
        if self.conditional and not facts.classes:
            hint = "Set class_conditional true, and use a source with labels."
            raise ConfigError(Problem("ssgan.method", "conditional without classes", "ssgan", hint))
        self.uniform = (
            config.z_distribution or ("uniform" if config.variant == "compare_gan" else "normal")
        ) == "uniform"
        generator, discriminator = self._build()
        generator = initialise(trainable(generator), config.initialisation, seed=facts.seed)
        discriminator = initialise(discriminator, config.initialisation, seed=facts.seed + 1)
        if config.regularisation == "spectral_norm":
            normalise_weights(discriminator)
        self.networks: Mapping[str, nn.Module] = {
            "generator": generator.to(facts.device, memory_format=torch.channels_last),  # type: ignore[call-overload]
            "discriminator": discriminator.to(facts.device, memory_format=torch.channels_last),  # type: ignore[call-overload]
        }
        self.optimizers: Mapping[str, Optimizer] = {
            name: Adam(
                network.parameters(), lr=config.lr, betas=(config.betas[0], config.betas[1]),
                fused=facts.fused,
            )
            for name, network in self.networks.items()
        }  # fmt: skip
        self.discriminator_steps = config.discriminator_steps
        self.adaptive: dict[str, float] = {}

    def _build(self) -> tuple[nn.Module, nn.Module]:
        config, facts = self.config, self.facts
        if self.conditional:
            up, down = networks.conditional_layouts(config, facts.side, facts.classes)
            generator = BigGANGenerator(up, eps=networks.EPS, output_eps=OUTPUT_EPS)
            return generator, BigGANDiscriminator(down)
        return (
            SSGANGenerator(networks.generator_layout(config, facts.side)),
            SSGANDiscriminator(networks.discriminator_layout(config, facts.side)),
        )

    def discriminator_step(self, share: Share) -> Mapping[str, Tensor]:
        """Return the hinge of upright images and, times beta, the rotations of real ones."""
        with torch.no_grad():
            fake = self._generate(share)
        images, labels = share.images, None
        if self.rotates:
            images, labels = losses.rotate(images)
        real_logits, fake_logits, rotations = self._look(images, fake, share)
        terms = {"real": real_logits.mean(), "fake": fake_logits.mean()}
        hinge = losses.hinge_real(real_logits) + losses.hinge_fake(fake_logits)
        loss = hinge * (self.config.method != "rotation_only")
        if rotations is not None and labels is not None:
            terms["rotation"] = losses.rotation_loss(rotations, labels)
            loss = loss + self.config.beta * terms["rotation"]
        if self.config.regularisation == "gradient_penalty":
            mix = share.uniform("mix", 1, 1, 1)
            terms["penalty"] = losses.gradient_penalty(
                self.networks["discriminator"], share.images, fake, mix
            )
            loss = loss + self.config.penalty * terms["penalty"]
        return {"loss": loss, **terms}

    def generator_step(self, share: Share) -> Mapping[str, Tensor]:
        """Return minus the score of generated images and, times alpha, their rotations."""
        config = self.config
        fake, labels = self._generate(share), None
        alpha = config.alpha if self.rotates else 0.0
        if config.anneal_alpha:
            alpha = losses.annealed(alpha, share.progress)
        images = fake
        if alpha:
            images, labels = losses.rotate(fake)
        score, _, rotations = self._look(images, None, share)
        loss = -score.mean() * (config.method != "rotation_only")
        if rotations is None or labels is None:
            return {"loss": loss}
        rotation = losses.rotation_loss(rotations, labels)
        return {"loss": loss + alpha * rotation, "rotation": rotation}

    def regulariser_step(self, share: Share) -> Mapping[str, Tensor]:
        """Raise: there is no lazy regulariser."""
        raise NotImplementedError("SS-GAN has no lazy regulariser")

    def decay(self, step: int) -> float:
        """Return the decay of the averages after a step; see `Objective.decay`."""
        return min(self.config.ema, step / (WARM + step))

    def adapt(self, step: int, terms: Mapping[str, float]) -> None:
        """Change nothing: there is nothing that training adapts."""

    def sample(self, averages: Mapping[str, nn.Module], numbers: range) -> np.ndarray:
        """Draw numbered samples; see `Objective.sample`. Classes are taken in turns."""
        draw = rng.uniform if self.uniform else rng.normal
        shape = (self.config.latent,)
        drawn = draw(self.facts.seed, numbers, 0, "adversarial-sample", shape)
        z = torch.from_numpy(drawn.astype(np.float32)).to(self.facts.device)
        labels = torch.arange(numbers.start, numbers.stop, device=self.facts.device)
        labels = labels % self.facts.classes if self.conditional else None
        network = averages["generator"].eval()
        with torch.inference_mode():
            images = network(2 * z - 1 if self.uniform else z, labels, None)
        return to_uint8(images).cpu().numpy()

    def export(
        self, averages: Mapping[str, nn.Module], folder: Path, *, dtype: torch.dtype
    ) -> tuple[Path, ...]:
        """Write both networks as their variant's code does; see `export.py`."""
        pair = {**self.networks, **averages}
        if self.conditional:
            return export.write_biggan(pair["generator"], pair["discriminator"], folder, dtype)
        write = (
            export.write_compare_gan
            if self.config.variant == "compare_gan"
            else (export.write_mimicry)
        )
        return write(pair["generator"], pair["discriminator"], folder, dtype)

    def _generate(self, share: Share) -> Tensor:
        """Draw images of a share's positions, as many as it has."""
        if self.uniform:
            z = 2 * share.uniform("latent", self.config.latent) - 1
        else:
            z = share.normal("latent", self.config.latent)
        labels = share.labels if self.conditional else None
        return self.networks["generator"](z, labels, None)

    def _look(
        self, images: Tensor, fake: Tensor | None, share: Share
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Let D look once at upright images, rotated ones after them, and generated ones.

        Returns:
            Scores of the upright images, those of `fake`, and the logits of all but `fake`.
        """
        network = self.networks["discriminator"]
        whole = images if fake is None else torch.cat([images, fake.to(images.dtype)])
        pooled = network.pooled(whole)  # type: ignore[operator]
        count, upright = len(images), len(share.images)
        if self.conditional:
            assert share.labels is not None, "a conditional run has labels"
            table = network.embed.weight[share.labels.repeat(1 if fake is None else 2)]  # type: ignore[union-attr,index]
            scores = network.linear(pooled) + (pooled * table).sum(1, keepdim=True)  # type: ignore[operator]
        else:
            scores = network.logit(pooled)  # type: ignore[operator]
        rotations = network.rotation(pooled[:count]) if self.rotates else None  # type: ignore[operator]
        return scores[:upright], scores[count:], rotations
