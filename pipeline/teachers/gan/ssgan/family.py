"""SS-GAN's and SNGAN's generators: torch-mimicry's `netG_*.pth`, compare_gan's variables.

    teacher:
      kind: ssgan
      path: checkpoints/ssgan-64/netG_100000_steps.pth   # or the folder, or variables.npz
      levels: [s8, s4, s2, s1]

Taps are the outputs of the blocks by the names they have in the file (`block2` ..., `B1` ...), the
first map (`l1`, `fc_noise`) and the latent (`z`). 32, 48, 64 and 128 pixels are published; others
are read alike. What a file does not tell is set by name: `upsample`, and for compare_gan `BN_eps`
and `z_distribution`. See `discriminator.py` for `part: discriminator`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamshard import rng
from dreamshard.errors import ConfigError, Problem
from pipeline.teachers import weights
from pipeline.teachers.base import Flag, Scalar
from pipeline.teachers.gan.ssgan import compare_gan, files, mimicry
from pipeline.teachers.gan.ssgan.layout import UPSAMPLING, GeneratorLayout
from pipeline.teachers.gan.teacher import GeneratorDescription, GeneratorTeacher
from pipeline.teachers.recording import taps
from pipeline.teachers.recording.taps import Tap
from pipeline.teachers.recording.teacher import PlainNetwork

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.teachers.gan.ssgan.layout import DiscriminatorLayout

SETTINGS: dict[str, Scalar] = {"upsample": "", "BN_eps": 0.0, "z_distribution": ""}
"""What may be said of a generator; nothing and 0: as its code does by default."""
DISTRIBUTIONS = ("normal", "uniform")
"""Of z: standard normal, or uniform in [-1, 1], which is compare_gan's default."""
COMPARE_GAN_EPS = 1e-5
"""Of compare_gan's published configurations of SS-GAN; `standardize_batch` itself has 1e-3."""


class SSGANTeacher(GeneratorTeacher):
    """Run an SS-GAN or SNGAN generator; see the module's text."""

    @classmethod
    def find(cls, path: Path) -> tuple[Mapping[str, Scalar], Any]:
        """Return the settings and what describes a checkpoint; see `NetworkTeacher.find`."""
        return SETTINGS, functools.partial(describe, path)

    def inputs(
        self, indices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Draw latents; see `GeneratorTeacher.inputs`."""
        if self.description.architecture["z_distribution"] == "uniform":
            shape = (self.description.latent,)
            drawn = rng.uniform(self.seed, indices, 0, "latent", shape)
            return (2 * drawn - 1).astype(np.float32), None, None
        return super().inputs(indices)


def describe(
    path: Path, settings: Mapping[str, Scalar], _image_size: tuple[int, int] | None = None
) -> GeneratorDescription:
    """Describe the generator in a file from its shapes.

    Raises:
        ConfigError: settings that contradict it.
        TeacherError: unusable files.
    """
    problems = word_problems(settings, {"upsample": UPSAMPLING, "z_distribution": DISTRIBUTIONS})
    eps = settings["BN_eps"]
    if not isinstance(eps, int | float) or not 0 <= eps < 1:
        problems.append(Problem("settings.BN_eps", str(eps), "above 0, below 1 (0: find out)"))
    if problems:
        raise ConfigError(problems)
    network = files.open_network(path, "generator")
    layout, told = _read_layout(network, settings)
    drawn = str(settings["z_distribution"])
    if not drawn:
        drawn = "uniform" if network.tensorflow else "normal"
        if network.tensorflow:
            told.append(_default("z_distribution", drawn))
    else:
        told.append(Flag(name="z_distribution", value=drawn, source="user"))
    if drawn == "uniform" and settings.get("truncation"):
        got = str(settings["truncation"])
        allowed = "0: z is uniform (settings.z_distribution)"
        raise ConfigError(Problem("settings.truncation", got, allowed))
    listed = tuple(block_taps(layout, first="fc_noise" if network.tensorflow else "l1"))
    return GeneratorDescription(
        family="ssgan",
        image_size=(layout.image_size, layout.image_size),
        taps=listed,
        aliases=taps.stride_aliases(listed),
        weights=(network.file,),
        architecture={**dataclasses.asdict(layout), "z_distribution": drawn},
        latent=layout.latent,
        load=lambda dtype: PlainNetwork(load(network, layout, dtype)),
        flags=tuple(told),
    )


def word_problems(
    settings: Mapping[str, Scalar], words: Mapping[str, tuple[str, ...]]
) -> list[Problem | str]:
    """List settings that are none of their words, nor empty."""
    return [
        Problem(f"settings.{name}", str(settings[name]), " | ".join(allowed))
        for name, allowed in words.items()
        if settings[name] not in ("", *allowed)
    ]


def _default(name: str, value: Scalar) -> Flag:
    return Flag(name=name, value=value, source="default", whose="compare_gan's")


def _read_layout(
    network: files.Network, settings: Mapping[str, Scalar]
) -> tuple[GeneratorLayout, list[Flag]]:
    upsample, where = str(settings["upsample"]), str(network.file)
    told = [Flag(name="upsample", value=upsample, source="user")] if upsample else []
    eps = float(settings["BN_eps"] or 0.0)
    if eps:
        told.append(Flag(name="BN_eps", value=eps, source="user"))
    try:
        if not network.tensorflow:
            layout = mimicry.read_generator(network.shapes, upsample=upsample)
            return (dataclasses.replace(layout, eps=eps) if eps else layout), told
        if not eps:
            told.append(_default("BN_eps", COMPARE_GAN_EPS))
        layout = compare_gan.read_generator(
            network.shapes, eps=eps or COMPARE_GAN_EPS, upsample=upsample, where=where
        )
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise files.unknown(network.file, "generator", error, network.shapes) from error
    return layout, told


def load(
    network: files.Network, layout: GeneratorLayout | DiscriminatorLayout, dtype: torch.dtype
) -> nn.Module:
    """Read a network and make it ready; normalisation and what is pooled stay in float32.

    Raises: TeacherError for weights that are damaged or of another shape.
    """
    import torch

    from pipeline.teachers.gan.ssgan.network import SSGANDiscriminator, SSGANGenerator

    def make() -> nn.Module:
        if isinstance(layout, GeneratorLayout):
            return SSGANGenerator(layout)
        return SSGANDiscriminator(layout)

    module = weights.unbuilt(make, where=str(network.file))
    weights.load_into(module, network.read(layout), where=str(network.file))
    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.to(dtype)
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def block_taps(layout: GeneratorLayout, *, first: str) -> list[Tap]:
    """List what can be recorded, in the order it is computed."""
    stride = layout.image_size // layout.bottom
    listed = [
        taps.vector("z", "z", layout.latent, kind="latent"),
        Tap(first, "first", layout.blocks[0].inputs, stride),
    ]
    for block in layout.blocks:
        stride //= 2 if block.resample else 1
        listed.append(Tap(block.name, f"blocks.{block.name}", block.outputs, stride))
    return listed
