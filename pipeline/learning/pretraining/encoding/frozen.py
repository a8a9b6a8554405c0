"""The frozen networks beside an encoder: its generator, and what judges how alike images look."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from dreamshard.errors import ConfigError, Problem
from pipeline.learning.pretraining.encoding.config import DISCRIMINATOR, PosthocConfig
from pipeline.teachers.base import Part, TeacherConfig
from pipeline.teachers.diffusion.checkpoints import FOLDERS, kind_of
from pipeline.teachers.gan.teacher import GeneratorDescription, GeneratorTeacher
from pipeline.teachers.load import teacher_class
from pipeline.teachers.pixels import signed, to_uint8
from pipeline.teachers.posthoc import layout as layouts
from pipeline.teachers.posthoc.layout import SMALL, EncoderLayout
from pipeline.teachers.posthoc.network import images_of, latents_of
from pipeline.teachers.recording.looking import LookingTeacher
from storage.schema import Pins

LARGEST_SMALL = 64
"""Images up to this side (pixels) keep their resolution in the encoder's first stage."""


@dataclass(frozen=True)
class Target:
    """The generator that an encoder is for, known but not loaded.

    Args:
        layout: of the encoder to be trained.
        path: of the generator, as the user gave it.
        known: its description.
    """

    layout: EncoderLayout
    path: Path
    known: GeneratorDescription

    @property
    def side(self) -> int:
        """Return the side of its images (pixels)."""
        return self.known.image_size[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of a latent, per sample."""
        return layouts.latent_shape(self.known, self.layout.latent)

    @property
    def classes(self) -> int:
        """Return how many classes it wants to be told one of; 0: none, or always the same."""
        known = self.known
        return 0 if known.unconditional else layouts.classes_told(known, self.layout.latent)


def find_target(path: str, config: PosthocConfig) -> Target:
    """Find the generator that the settings name; small files only.

    Raises:
        ConfigError: nothing there, no generator, one that has an encoder, or latents it has not.
        TeacherError: unusable files.
    """
    place = Path(path)
    if not path or not place.exists():
        hint = "Give the folder or file of a generator."
        raise ConfigError(Problem("generator", path or "nothing", "an existing path", hint))
    kind = config.kind or kind_of(place)
    allowed = "a generator: " + " | ".join(layouts.FAMILIES)
    if kind == "encoder" or (place.is_dir() and any(place.glob(FOLDERS["bigbigan"][1]))):
        hint = f"Record it: dreamshard encode --teacher.path {path}."
        raise ConfigError(Problem("generator", f"{path}, which has an encoder", allowed, hint))
    if kind not in layouts.FAMILIES:
        hint = "" if config.kind else "Set encoder.kind if it is one."
        raise ConfigError(Problem("generator", f"{path}, a teacher of kind {kind}", allowed, hint))
    try:
        known = layouts.describe_generator(kind, place, config.settings)
    except ConfigError as error:
        raise _renamed(error, path="generator", settings="encoder.settings") from error
    if known.features:
        got = f"{path}, which is told features of instances"
        raise ConfigError(Problem("generator", got, "one that is told z and at most a class"))
    latent = config.latent
    if latent == "auto":
        latent = "w" if kind == "stylegan2" else "z"
    if not layouts.latent_shape(known, latent):
        raise ConfigError(Problem("encoder.latent", latent, f"z: {kind} generators have no w"))
    network = config.network
    if network == "auto":
        network = SMALL if known.image_size[0] <= LARGEST_SMALL else "resnet18"
    own = layouts.family(kind).find(place)[0]
    told = {  # a folder's name may have said some of it, and the copy's will not
        flag.name: flag.value for flag in known.flags if flag.source != "default"
    }
    layout = EncoderLayout(
        network=network, width=config.width, latent=latent, kind=kind, file=known.weights[0],
        settings={**{name: told[name] for name in own if name in told}, **config.settings},
    )  # fmt: skip
    return Target(layout, place, known)


class Generator:
    """The frozen generator: samples with the latents they were made from, images of latents.

    Args:
        target: which.
        seed: with a sample's index it decides its latent, as `dreamshard synthesize` draws it.
        device: where it runs, in float32.
    """

    def __init__(self, target: Target, *, seed: int, device: torch.device) -> None:
        layout = target.layout
        self.latent = layout.latent
        self._classes = layouts.classes_told(target.known, self.latent)
        first = next(iter(target.known.aliases.values()))
        config = TeacherConfig(
            kind=layout.kind, path=str(target.path), levels=[first], settings=dict(layout.settings)
        )
        pins = Pins(micro_batch=1, compute_dtype="float32", device=str(device), threads=0)
        self._teacher: GeneratorTeacher = layouts.family(layout.kind)(
            config, mode="synthesize", image_size=None, seed=seed, pins=pins
        )
        self._usual = target.known.usual_class
        self.device = device

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self._teacher.network.module

    @torch.no_grad()
    def draw(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Generate the samples of some indices.

        Returns:
            images (N, 3, H, W) of whole pixel values in [-1, 1], as `encode` shows them; latents;
            the classes to tell the generator again, int64 (N,), None for none.
        """
        z, labels, _ = self._teacher.inputs(np.asarray(indices, np.int64))
        told = None if labels is None else torch.from_numpy(labels).to(self.device)
        latents = latents_of(
            self.module, torch.from_numpy(z).to(self.device), told, latent=self.latent
        )
        told = told if self._classes else None
        return signed(to_uint8(self.images(latents, told))), latents, told

    def images(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Generate images of latents; gradients reach the latents and nothing else."""
        return images_of(self.module, latents, labels, latent=self.latent)

    def labels_of_real(self, labels: Tensor | None, count: int) -> Tensor | None:
        """Return what to tell the generator of real images: their class, or the only one."""
        if not self._classes:
            return None
        if self._usual is not None:
            return torch.full((count,), self._usual, device=self.device)
        return labels


class Perceptual:
    """Features by which images are compared, of a frozen network that looks at them."""

    def __init__(self, teacher: LookingTeacher) -> None:
        self._teacher = teacher

    @property
    def fingerprint(self) -> dict[str, object]:
        """Return what identifies the network and the levels compared."""
        levels = [level.name for level in self._teacher.levels]
        return {**self._teacher.fingerprint, "levels": levels}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return level -> features of images (N, 3, H, W) in about [-1, 1]."""
        return self._teacher.activations(self._teacher.fit(images))


def open_perceptual(
    config: PosthocConfig, target: Target, device: torch.device
) -> Perceptual | None:
    """Load the network of the perceptual distance; None where none is named.

    Raises:
        ConfigError: nothing there, a network that does not look at images, or not at this size.
        TeacherError: unusable files.
    """
    told = config.perceptual
    if not told.path:
        return None
    path, kind = Path(told.path), told.kind
    own = told.path == DISCRIMINATOR
    if own:
        path, kind = target.path, target.layout.kind
        path = path.parent if path.is_file() and kind != "stylegan2" else path
    elif not path.exists():
        raise ConfigError(Problem("encoder.perceptual.path", told.path, "a path that is there"))
    kind = kind or kind_of(path)
    part: Part = "discriminator" if own or kind in layouts.FAMILIES else ""
    size = target.known.image_size
    try:
        cls = teacher_class(kind, mode="encode", part=part)
        if not (isinstance(cls, type) and issubclass(cls, LookingTeacher)):
            allowed = "a network that looks at images: timm | student | a discriminator's"
            raise ConfigError(Problem("path", f"{path}, of kind {kind}", allowed))
        asked = TeacherConfig(
            kind=kind, path=str(path), part=part, levels=[], settings=dict(told.settings)
        )
        asked.levels = told.levels or list(
            dict.fromkeys(cls.look_up(asked, size)[0].aliases.values())
        )
        pins = Pins(micro_batch=1, compute_dtype="float32", device=str(device), threads=0)
        opened = cls(asked, mode="encode", image_size=size, seed=0, pins=pins)
    except ConfigError as error:
        raise error.under("encoder.perceptual") from error
    return Perceptual(cast(LookingTeacher, opened))


def _renamed(error: ConfigError, **keys: str) -> ConfigError:
    """Return an error whose keys are those of this command."""

    def renamed(problem: Problem | str) -> Problem | str:
        if isinstance(problem, str):
            return problem
        first, dot, rest = problem.key.partition(".")
        return dataclasses.replace(problem, key=f"{keys.get(first, first)}{dot}{rest}")

    return ConfigError([renamed(problem) for problem in error.problems])
