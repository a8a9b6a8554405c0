"""Small teachers of every family, saved as users have them, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.teachers.base import Teacher, TeacherConfig
from pipeline.teachers.load import load_teacher
from storage.schema import FeatureBatch, Pins
from tests.unit.pipeline.teachers.conftest import UNET, randomize
from tests.unit.pipeline.teachers.diffusion.networks.test_latent_families import (
    save_prompt,
    save_vae,
    sd,
)
from tests.unit.pipeline.teachers.diffusion.official import adm_reference
from tests.unit.pipeline.teachers.gan.biggan import biggan_reference

ROWS = np.arange(4)


def unet(folder: Path) -> TeacherConfig:
    from diffusers import DDPMScheduler, UNet2DModel

    module = UNet2DModel(**UNET)  # type: ignore[arg-type]
    randomize(module)
    module.save_pretrained(folder)
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(folder / "scheduler")
    return TeacherConfig(path=str(folder), levels=["s1", "s2", "s4"], timesteps=[40, 300])


def adm(folder: Path) -> TeacherConfig:
    structure = adm_reference.Structure(head_channels=16)
    reference = adm_reference.Reference(structure)
    reference(torch.zeros(1, 3, 32, 32), torch.zeros(1), None)  # makes the weights it meets
    torch.save(reference.state, folder / "model.pt")
    flags: dict[str, Any] = structure.flags(32)
    return TeacherConfig(
        path=str(folder / "model.pt"), levels=["s1", "s2"], timesteps=[40], settings=flags
    )


def latent(folder: Path) -> TeacherConfig:
    sd(folder)
    save_prompt(folder, 12)
    return TeacherConfig(path=str(folder), levels=["s4", "s8", "mid"], timesteps=[300])


def dit(folder: Path) -> TeacherConfig:
    from diffusers import DDIMScheduler, DiTTransformer2DModel

    module = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=4, sample_size=8, out_channels=8,
        num_embeds_ada_norm=10, norm_num_groups=4,
    )  # fmt: skip
    randomize(module)
    module.save_pretrained(folder / "transformer")
    DDIMScheduler().save_pretrained(folder / "scheduler")
    save_vae(folder, 4)
    return TeacherConfig(path=str(folder), levels=["d25", "d100"], timesteps=[200])


def biggan(folder: Path) -> TeacherConfig:
    torch.save(biggan_reference.Reference(attention=(0,)).state, folder / "G_ema.pth")
    return TeacherConfig(kind="biggan", path=str(folder), levels=["s1", "s2"])


FAMILIES: dict[str, Callable[[Path], TeacherConfig]] = {
    "unet": unet, "adm": adm, "latent": latent, "dit": dit, "biggan": biggan,
}  # fmt: skip


def load(config: TeacherConfig, device: str) -> Teacher:
    """Load a teacher as the pipeline does, on a device."""
    mode = "synthesize" if config.kind == "biggan" else "encode"
    pins = Pins(len(ROWS), config.compute_dtype, device, 1)
    return load_teacher(config, mode=mode, seed=0, pins=pins, image_size=None)


def record(teacher: Teacher, rows: np.ndarray = ROWS) -> FeatureBatch:
    """Record four smooth images, or four samples of a generator."""
    if "encode" not in type(teacher).modes:
        return teacher.synthesize(rows)
    height, width = teacher.image_size
    coarse = np.random.default_rng(0).integers(0, 256, (len(rows), 4, 4, 3), np.uint8)
    images = coarse.repeat(height // 4, 1).repeat(width // 4, 2)
    return teacher.encode(images, rows)


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the relative L2 distance, computed in float64."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
