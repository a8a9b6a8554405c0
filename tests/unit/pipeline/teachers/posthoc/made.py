"""Generators of random weights, and the folder of an untrained encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.learning.pretraining.adversarial.objective import Facts
from pipeline.learning.pretraining.encoding.config import PosthocConfig
from pipeline.learning.pretraining.encoding.frozen import find_target, open_perceptual
from pipeline.learning.pretraining.encoding.objective import EncoderObjective


def generator(folder: Path, kind: str) -> Path:
    """Write a generator of 16 pixels and its discriminator; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "stylegan2":
        from tests.unit.pipeline.teachers.gan.stylegan2.stylegan2_reference import Reference

        Reference(classes=3, clamp=256.0).write(folder / "network-snapshot.pkl")
    elif kind == "ssgan":
        from tests.unit.pipeline.teachers.gan.ssgan.ssgan_reference import Mimicry

        made = Mimicry()
        torch.save({"model_state_dict": made.g}, folder / "netG_1_steps.pth")
        torch.save({"model_state_dict": made.d}, folder / "netD_1_steps.pth")
    else:
        from tests.unit.pipeline.teachers.gan.biggan.biggan_reference import Reference as BigGAN
        from tests.unit.pipeline.teachers.gan.biggan.discriminator_reference import Discriminator

        torch.save(BigGAN(attention=(0,)).state, folder / "G_ema.pth")
        torch.save(Discriminator(attention=(0,)).state, folder / "D.pth")
    return folder


def objective(folder: Path, **told: Any) -> EncoderObjective:
    """Build what trains a small encoder of the generator in a folder."""
    config = PosthocConfig(width=8, **told)
    target = find_target(str(folder), config)
    facts = Facts(
        side=target.side, classes=target.classes, batch_size=4, seed=0, device=torch.device("cpu")
    )
    perceptual = open_perceptual(config, target, facts.device)
    return EncoderObjective(config, facts, target, perceptual)


def encoder(folder: Path, kind: str = "stylegan2", **told: Any) -> Path:
    """Write the folder of an encoder of random weights; return it."""
    made = objective(generator(folder / "of", kind), **told)
    (folder / "encoder").mkdir()
    made.export(made.networks, folder / "encoder", dtype=torch.float32)
    return folder / "encoder"
