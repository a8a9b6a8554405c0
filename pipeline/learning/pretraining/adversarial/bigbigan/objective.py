"""BigBiGAN as an objective of the adversarial trainer.

D sees (x, E(x)) and (G(z), z) and adds up the hinges of its scores; G and E are trained together,
by one optimiser with a rate each, on the scores themselves.
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
from pipeline.learning.pretraining.adversarial.bigbigan import export, networks
from pipeline.learning.pretraining.adversarial.bigbigan.config import ENCODING, BigBiGANConfig
from pipeline.learning.pretraining.adversarial.norms import (
    initialise,
    normalise_weights,
    settle,
    trainable,
)
from pipeline.learning.pretraining.adversarial.objective import Facts, Share
from pipeline.teachers.gan.bigbigan.network import BigBiGANEncoder
from pipeline.teachers.gan.biggan.network import OUTPUT_EPS, BigGANGenerator
from pipeline.teachers.pixels import to_uint8

WARM = 9
"""After s steps the average's decay is at most s / (WARM + s), as DDPM's code has it."""


class BigBiGANObjective:
    """Be BigBiGAN, or a row of its ablation; see `Objective` for what its parts are.

    Args:
        config: its settings.
        facts: what it is built for; its side is the encoder's.

    Raises: ConfigError: sides or latents that do not fit the published networks.
    """

    regularise_every = 0

    def __init__(self, config: BigBiGANConfig, facts: Facts) -> None:
        self.config, self.facts = config, facts
        self.side = config.generator_side or facts.side
        self.encodes = bool(set(config.scores) & set(ENCODING))
        if facts.side % self.side:
            allowed = f"a divisor of image.size ({facts.side})"
            raise ConfigError(Problem("bigbigan.generator_side", str(self.side), allowed))
        self.networks: Mapping[str, nn.Module] = {
            name: network.to(facts.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            for name, network in self._build().items()
        }
        self.averaged = ("generator", "encoder") if self.encodes else ("generator",)
        self.generator_sees_images = self.encodes
        self.discriminator_steps = config.discriminator_steps
        self.optimizers = self._optimizers()
        self.adaptive: dict[str, float] = {}

    def _build(self) -> dict[str, nn.Module]:
        config, seed = self.config, self.facts.seed
        up = networks.generator_layout(config, self.side)
        scores = networks.Scores(
            networks.image_layout(config, self.side),
            latent=config.latent,
            width=config.width,
            blocks=config.blocks,
            scores=config.scores,
        )
        for unused in scores.own_layers():
            unused.requires_grad_(False)
        generator = trainable(BigGANGenerator(up, eps=networks.EPS, output_eps=OUTPUT_EPS))
        initialise(generator, "orthogonal", seed=seed, modulations=True)
        built = {
            "generator": normalise_weights(generator, eps=networks.EPS),
            "discriminator": normalise_weights(
                initialise(scores, "orthogonal", seed=seed + 1), eps=networks.EPS
            ),
        }
        if self.encodes:
            encoder = BigBiGANEncoder(networks.encoder_layout(config, self.facts.side))
            built["encoder"] = initialise(trainable(encoder), "orthogonal", seed=seed + 2)
        return built

    def _optimizers(self) -> Mapping[str, Optimizer]:
        config, parts = self.config, self.networks
        groups = [{"params": list(parts["generator"].parameters()), "lr": config.lr}]
        if self.encodes:
            rate = config.lr * config.encoder_rate
            groups.append({"params": list(parts["encoder"].parameters()), "lr": rate})
        learned = [weight for weight in parts["discriminator"].parameters() if weight.requires_grad]
        betas = (config.betas[0], config.betas[1])
        return {
            "generator": Adam(groups, lr=config.lr, betas=betas, fused=self.facts.fused),
            "discriminator": Adam(
                learned, lr=config.discriminator_lr, betas=betas, fused=self.facts.fused
            ),
        }

    def discriminator_step(self, share: Share) -> Mapping[str, Tensor]:
        """Return the sum of all scores' hinges for (x, E(x)) and (G(z), z)."""
        with torch.no_grad():
            told = self._pairs(share)
        real, fake = self._score(*told)
        return {
            "loss": losses.joint_discriminator(real, fake),
            "real": torch.stack([value.mean() for value in real.values()]).mean(),
            "fake": torch.stack([value.mean() for value in fake.values()]).mean(),
            **{f"real_{name}": value.mean() for name, value in real.items()},
            **{f"fake_{name}": value.mean() for name, value in fake.items()},
        }

    def generator_step(self, share: Share) -> Mapping[str, Tensor]:
        """Return the scores of (x, E(x)) less those of (G(z), z)."""
        real, fake = self._score(*self._pairs(share))
        return {"loss": losses.joint_generator(real, fake)}

    def regulariser_step(self, share: Share) -> Mapping[str, Tensor]:
        """Raise: there is no lazy regulariser."""
        raise NotImplementedError("BigBiGAN has no lazy regulariser")

    def decay(self, step: int) -> float:
        """Return the decay of the averages after a step; see `Objective.decay`."""
        return min(self.config.ema, step / (WARM + step))

    def adapt(self, step: int, terms: Mapping[str, float]) -> None:
        """Change nothing: there is nothing that training adapts."""

    def sample(self, averages: Mapping[str, nn.Module], numbers: range) -> np.ndarray:
        """Draw numbered samples; see `Objective.sample`."""
        uniform, shape = self.config.posterior == "uniform", (self.config.latent,)
        draw = rng.uniform if uniform else rng.normal
        drawn = draw(self.facts.seed, numbers, 0, "adversarial-sample", shape)
        z = torch.from_numpy(drawn.astype(np.float32)).to(self.facts.device)
        network = settle(averages["generator"]).eval()
        with torch.inference_mode():
            return to_uint8(_generate(network, 2 * z - 1 if uniform else z)).cpu().numpy()

    def reconstruct(self, averages: Mapping[str, nn.Module], images: Tensor) -> Tensor:
        """Return G(E(x)) of images (N, 3, H, W) in [-1, 1], at the mean of E(x)."""
        generator, encoder = settle(averages["generator"]).eval(), averages["encoder"].eval()
        with torch.inference_mode():
            z = networks.latent_of(encoder(images), self.config.posterior, None)
            return _generate(generator, z)

    def export(
        self, averages: Mapping[str, nn.Module], folder: Path, *, dtype: torch.dtype
    ) -> tuple[Path, ...]:
        """Write generator, encoder and discriminators; see `export.py`."""
        settle(averages["generator"])
        whole = {**self.networks, **averages}
        return export.write(whole, folder, dtype, posterior=self.config.posterior)

    def _pairs(self, share: Share) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Return images and their latents, and generated images with theirs."""
        config = self.config
        x, told = networks.side_of(share.images, self.side), None
        if self.encodes:
            noise = None
            if config.posterior == "stochastic":
                noise = share.normal("posterior", config.latent)
            told = networks.latent_of(
                self.networks["encoder"](share.images), config.posterior, noise
            )
        if config.posterior == "uniform":
            z = 2 * share.uniform("latent", config.latent) - 1
        else:
            z = share.normal("latent", config.latent)
        return x, told, _generate(self.networks["generator"], z), z

    def _score(
        self, x: Tensor, told: Tensor | None, fake: Tensor, z: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Score both kinds of pairs in one pass."""
        latents = None if told is None else torch.cat([told, z])
        both = self.networks["discriminator"](torch.cat([x, fake.to(x.dtype)]), latents)
        count = len(x)
        real = {name: value[:count] for name, value in both.items()}
        return real, {name: value[count:] for name, value in both.items()}


def _generate(network: nn.Module, z: Tensor) -> Tensor:
    labels = torch.zeros(len(z), dtype=torch.int64, device=z.device)  # the one class there is
    return network(z, labels, None)
