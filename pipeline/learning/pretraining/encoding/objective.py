"""A post-hoc encoder as an objective of the adversarial trainer: one player, the encoder.

A generated image is to be found again: its latent, its pixels and its look, through the frozen
generator. Of a real image nobody knows the latent: only the reconstruction counts.

Source: Squeeze-and-Span, eq. 3 and baseline "Encoding".
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from dreamshard.owner.parts import part_of
from dreamshard.permissions import apply_umask
from dreamshard.runfolder import write_text
from pipeline.learning.checkpoint import flush
from pipeline.learning.device import on_device
from pipeline.learning.precise import in_float32
from pipeline.learning.pretraining.adversarial.norms import BatchNorm
from pipeline.learning.pretraining.adversarial.objective import Facts, Share
from pipeline.learning.pretraining.encoding import losses
from pipeline.learning.pretraining.encoding.config import PosthocConfig
from pipeline.learning.pretraining.encoding.frozen import Generator, Perceptual, Target
from pipeline.learning.ranks import rank_count
from pipeline.teachers.pixels import to_uint8
from pipeline.teachers.posthoc.layout import GENERATOR, MARK, WEIGHTS
from pipeline.teachers.posthoc.network import PosthocEncoder

REFERENCE_BATCH = 256
"""Images of the batch that the learning rate is told for (count)."""
PART = 64
"""Images of a pass where errors are measured (count)."""
SIDECARS = ("*.json", "state_dict*.pth")
"""Files beside a generator's weights that may say what the weights do not."""


class EncoderObjective:
    """Be a post-hoc encoder; see `Objective` for what its parts are.

    Args:
        config: its settings.
        facts: what it is built for.
        target: the generator, described.
        perceptual: what says how alike images look; None: that term is off.
    """

    regularise_every = 0
    discriminator_steps = 0
    generator_sees_images = True
    averaged: tuple[str, ...] = ("encoder",)

    def __init__(
        self, config: PosthocConfig, facts: Facts, target: Target, perceptual: Perceptual | None
    ) -> None:
        self.config, self.facts, self.target = config, facts, target
        self.generator = Generator(target, seed=facts.seed, device=facts.device)
        self.perceptual = perceptual
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(facts.seed)
            encoder: nn.Module = PosthocEncoder(target.layout, target.shape)
        if rank_count() > 1:
            share_statistics(encoder)
        self.networks: Mapping[str, nn.Module] = {"encoder": on_device(encoder, facts.device)}
        self.optimizers: Mapping[str, Optimizer] = {"encoder": self._optimizer()}
        self.adaptive: dict[str, float] = {}

    def _optimizer(self) -> Optimizer:
        config, weights = self.config, self.networks["encoder"].parameters()
        if config.optimizer == "adam":
            return Adam(weights, lr=config.lr, weight_decay=config.weight_decay)
        decay, momentum = config.weight_decay, config.momentum
        return SGD(weights, lr=config.lr, momentum=momentum, weight_decay=decay)

    def rate(self, progress: float) -> float:
        """Return the learning rate after a share of the run, 0..1."""
        peak = self.config.lr * self.facts.batch_size / REFERENCE_BATCH
        return peak * (1 + math.cos(math.pi * progress)) / 2

    def generator_step(self, share: Share) -> Mapping[str, Tensor]:
        """Return the losses of generated and of real images, and their weighted sum."""
        for group in self.optimizers["encoder"].param_groups:
            group["lr"] = self.rate(share.progress)
        encoder, part = self.networks["encoder"], self.config.real_share
        terms: dict[str, Tensor] = {}
        sums = []
        if len(share.positions):
            images, latents, labels = self.generator.draw(share.positions)
            predicted = encoder(images)
            own = self.distances(images, predicted, labels, latents)
            sums.append((1 - part) * own["loss"])
            terms |= {name: value for name, value in own.items() if name != "loss"}
        if len(share.images):
            told = self.generator.labels_of_real(share.labels, len(share.images))
            predicted = encoder(share.images)
            own = self.distances(share.images, predicted, told, None)
            sums.append(part * own["loss"])
            terms |= {f"{name}_real": value for name, value in own.items() if name != "loss"}
        return {"loss": torch.stack(sums).sum(), **terms}

    def distances(
        self, images: Tensor, predicted: Tensor, labels: Tensor | None, latents: Tensor | None
    ) -> dict[str, Tensor]:
        """Return l1, perceptual and latent distances, those there are, and "loss", their sum.

        Args:
            images: (N, 3, H, W) in [-1, 1].
            predicted: the encoder's latents of them.
            labels: what the generator is told beside.
            latents: that they were made from; None for real images.
        """
        return in_float32(self._distances)(images, predicted, labels, latents)

    def _distances(
        self, images: Tensor, predicted: Tensor, labels: Tensor | None, latents: Tensor | None
    ) -> dict[str, Tensor]:
        config, again = self.config, self.generator.images(predicted, labels)
        terms = {"l1": losses.pixel_distance(images, again)}
        loss = config.l1_weight * terms["l1"]
        if self.perceptual is not None:
            with torch.no_grad():
                own = self.perceptual(images)
            terms["perceptual"] = losses.perceptual_distance(own, self.perceptual(again))
            loss = loss + config.perceptual.weight * terms["perceptual"]
        if latents is not None:
            terms["latent"] = losses.latent_distance(latents, predicted)
            loss = loss + config.latent_weight * terms["latent"]
        return {"loss": loss, **terms}

    def discriminator_step(self, share: Share) -> Mapping[str, Tensor]:
        """Raise: there is no discriminator."""
        raise NotImplementedError("an encoder is trained without a discriminator")

    def regulariser_step(self, share: Share) -> Mapping[str, Tensor]:
        """Raise: there is no lazy regulariser."""
        raise NotImplementedError("an encoder has no lazy regulariser")

    def decay(self, step: int) -> float:
        """Return the decay of the average after a step; see `Objective.decay`."""
        return min(self.config.ema, step / (9 + step))

    def adapt(self, step: int, terms: Mapping[str, float]) -> None:
        """Change nothing: there is nothing that training adapts."""

    def sample(self, averages: Mapping[str, nn.Module], numbers: range) -> np.ndarray:
        """Reconstruct numbered samples that training never sees; see `Objective.sample`."""
        return self.pairs(averages, numbers)[1]

    def pairs(
        self, averages: Mapping[str, nn.Module], numbers: range
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return held-out samples and their reconstructions, uint8 (N, H, W, 3) each."""
        images, _, labels = self.generator.draw(held_out(numbers))
        again = self.reconstruct(averages, images, labels)[1]
        return tuple(to_uint8(each).cpu().numpy() for each in (images, again))  # type: ignore[return-value]

    @torch.no_grad()
    def reconstruct(
        self, averages: Mapping[str, nn.Module], images: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return latents found in images (N, 3, H, W), and what the generator makes of them."""
        predicted = averages["encoder"].eval()(images)
        return predicted, self.generator.images(predicted, labels).clip(-1, 1)

    def export(
        self, averages: Mapping[str, nn.Module], folder: Path, *, dtype: torch.dtype
    ) -> tuple[Path, ...]:
        """Write the encoder, and beside it the generator's own files; see `posthoc.layout`."""
        from safetensors.torch import save_file

        (folder / GENERATOR).mkdir(exist_ok=True)
        files = [_copied(file, folder / GENERATOR) for file in files_of(self.target)]
        state = {
            name: value.to("cpu", dtype if value.is_floating_point() else None).contiguous()
            for name, value in averages["encoder"].state_dict().items()
        }
        part = part_of(folder / WEIGHTS)
        save_file(state, part, metadata={"format": "pt"})
        apply_umask(part)
        flush(part)
        part.replace(folder / WEIGHTS)
        write_text(folder / MARK, json.dumps(self.target.layout.to_dict(), indent=2) + "\n")
        return (folder / WEIGHTS, folder / MARK, *files)


def share_statistics(module: nn.Module) -> nn.Module:
    """Let batch norms see the whole batch of all processes; their names in files stay."""
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                norm = BatchNorm(child, lambda norm: (norm.weight[None], norm.bias[None]))
                part.add_module(name, norm)
    return module


def held_out(numbers: range) -> range:
    """Return indices of samples that no training comes to."""
    first = 1 << 40
    return range(first + numbers.start, first + numbers.stop)


def files_of(target: Target) -> list[Path]:
    """Return the files that a generator's copy needs: weights, and what lies beside them."""
    folder = target.known.weights[0].parent
    beside = [file for pattern in SIDECARS for file in sorted(folder.glob(pattern))]
    return [*target.known.weights, *(file for file in beside if file.is_file())]


def _copied(file: Path, folder: Path) -> Path:
    part = part_of(folder / file.name)
    shutil.copyfile(file, part)
    flush(part)
    part.replace(folder / file.name)
    return folder / file.name
