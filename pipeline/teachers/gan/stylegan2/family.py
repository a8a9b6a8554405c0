"""StyleGAN2-ADA, and IC-GAN on it: `network-snapshot-*.pkl` of the official codes.

    teacher:
      kind: stylegan2
      path: checkpoints/network-snapshot-025000.pkl   # or the folder
      levels: [s32, s16, s8, s4, w]

The generator (`G_ema`) synthesizes. Taps: the blocks' features from before RGB (`b16`), their
layers (`b16.conv0`), the image so far (`b16.img`, where the architecture adds it up), and the
latents `z`, `w` (from before truncation) and `ws` (what every layer is told).

The discriminator (`part: discriminator`, the usual one of encode) looks at images: blocks
(`d.b32`, at half their resolution), the last map `d.b4`, the pooled feature `d.fc`, and the logits
under every class, `d.logits`. Its minibatch statistics never depend on the batch: see
`discriminator`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dreamshard import rng
from dreamshard.errors import ConfigError, DataError, Problem
from pipeline.teachers import weights
from pipeline.teachers.base import Scalar
from pipeline.teachers.gan.stylegan2.layout import (
    DiscriminatorLayout,
    GeneratorLayout,
    discriminator_layout,
    generator_layout,
)
from pipeline.teachers.gan.stylegan2.snapshot import facts, read_snapshot
from pipeline.teachers.gan.teacher import GeneratorDescription, GeneratorRequest, GeneratorTeacher
from pipeline.teachers.pixels import to_uint8
from pipeline.teachers.recording.looking import LookingTeacher
from pipeline.teachers.recording.outbox import Outbox
from pipeline.teachers.recording.taps import Tap, stride_aliases, vector
from pipeline.teachers.recording.teacher import NetworkDescription, PlainNetwork
from storage.schema import FeatureBatch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.teachers.gan.stylegan2.synthesis import Generator

SUFFIX = ".pkl"
NOISE_MODES = ("const", "none", "random")
GENERATOR, DISCRIMINATOR = "G_ema", "D"
MAX_STATISTIC = 1e4


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleGAN2Description(GeneratorDescription):
    """What is known of a generator of StyleGAN2 before its weights are loaded."""

    latent_layers: int
    """How many w an image is told (count)."""


@dataclasses.dataclass(kw_only=True)
class StyleGAN2Request(GeneratorRequest):
    """A checked request to a generator of StyleGAN2."""

    description: StyleGAN2Description

    @property
    def truncation(self) -> float:
        """Return 0: z is drawn whole, and w is what is truncated."""
        return 0.0

    @property
    def psi(self) -> float:
        """Return the share that w keeps of its distance to the mean."""
        return float(cast(float, self.settings["truncation_psi"]))

    @property
    def cutoff(self) -> int | None:
        """Return how many layers are truncated, None for all."""
        return cast("int | None", self.settings["truncation_cutoff"])

    def truncation_problems(self) -> list[Problem]:
        """List what is wrong with psi and cutoff."""
        problems, psi, cutoff = [], self.settings["truncation_psi"], self.cutoff
        if isinstance(psi, int | float) and not -2 <= psi <= 2:
            problems.append(Problem("settings.truncation_psi", str(psi), "-2 .. 2 (1: none)"))
        most = self.description.latent_layers
        if cutoff is not None and not (type(cutoff) is int and 1 <= cutoff <= most):
            allowed = f"1..{most}, or leave it out for all {most} layers"
            problems.append(Problem("settings.truncation_cutoff", str(cutoff), allowed))
        return problems

    def mode_settings(self) -> dict[str, object]:
        """Return the settings that change recorded bytes, defaults filled in."""
        told: dict[str, object] = {
            "truncation_psi": self.psi,
            "noise_mode": self.settings["noise_mode"],
            **self.conditions(),
        }
        if self.psi != 1 and self.cutoff is not None:
            told["truncation_cutoff"] = self.cutoff
        return told


class StyleGAN2Teacher(GeneratorTeacher):
    """Run a StyleGAN2 generator; see the module's text."""

    SETTINGS: Mapping[str, Scalar] = {
        "truncation_psi": 1.0,
        "truncation_cutoff": None,
        "noise_mode": "const",
        "class_label": None,
        "instance_features": "",
    }
    CHOICES: Mapping[str, tuple[str, ...]] = {"noise_mode": NOISE_MODES}
    request_class = StyleGAN2Request

    @classmethod
    def find(cls, path: Path) -> tuple[Mapping[str, Scalar], Any]:
        """Return what describes a file's generator; see `NetworkTeacher.find`."""
        return {}, functools.partial(describe_generator, path)

    @property
    def generator(self) -> Generator:
        """Return the loaded network."""
        return cast("Generator", self.network.module)

    def noise(self, indices: np.ndarray) -> Any:
        """Return what the layers of these samples add, as the request says; see `Generator`.

        Random noise belongs to a sample's index and the layer: whoever makes it, it is the same.
        """
        import torch

        mode = self.request.settings["noise_mode"]
        if mode != "random":
            return mode
        drawn = (
            rng.normal(self.seed, indices, number, "layer-noise", (1, layer.side, layer.side))
            for number, layer in enumerate(self.generator.synthesis.noisy_layers())
        )
        return [torch.from_numpy(each).to(self.device) for each in drawn]

    def extras(self, indices: np.ndarray) -> dict[str, Any]:
        """Return what else the generator is told of samples: their noise."""
        return {"noise": self.noise(indices)}

    def generate(
        self,
        z: np.ndarray,
        labels: np.ndarray | None,
        features: np.ndarray | None,
        *,
        noise: Any = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Run the network once; see `GeneratorTeacher.generate`.

        Args:
            z, features: as `inputs` draws them.
            labels: int64 (N,), or float32 (N, K) where classes are mixed.
            noise: const, none, or float32 (N, 1, H, W) of every layer; None for const.
        """
        truncation = {"psi": self.request.psi, "cutoff": self.request.cutoff}
        told = (self._told(z), self._told(labels), self._told(features))
        return self._run(lambda: self.generator(*told, **truncation, noise=self._noise(noise)))

    def from_w(self, w: np.ndarray, indices: np.ndarray | None = None) -> FeatureBatch:
        """Make images of given w and record features; neither truncation nor class changes them.

        Args:
            w: float32 (N, W) for all layers, or (N, layers, W), as the levels `w` and `ws`.
            indices: int64 (N,), of the samples, which select random noise; None for 0, 1 ...

        Raises: DataError for another shape, or where `z` is among the levels.
        """
        import torch

        layers, width = self.description.latent_layers, self.generator.layout.style
        w = np.asarray(w, np.float32)
        if w.ndim == 2:
            w = np.repeat(w[:, None], layers, 1)
        if w.shape[1:] != (layers, width):
            raise DataError(
                f"w: got shape {w.shape}, allowed (N, {width}) or (N, {layers}, {width})."
            )
        unknown = [level.name for level in self.levels if level.tap in ("z", "w")]
        if unknown:
            raise DataError(
                f"level {unknown[0]}: images made of given w have none. Record ws instead."
            )
        indices = np.arange(len(w)) if indices is None else indices
        noise = self._noise(self.noise(indices))
        records = Outbox(self.device)
        with torch.inference_mode():
            maps, images = self._run(lambda: self.generator.from_w(self._told(w), noise=noise))
            self.keep(records, maps)
            pixels = to_uint8(images).contiguous().cpu().numpy()
        return self.batch(indices, records.collect(), image=pixels)

    def _told(self, value: np.ndarray | None) -> Any:
        import torch

        if value is None:
            return None
        return torch.from_numpy(np.ascontiguousarray(value)).to(self.device)

    def _noise(self, noise: Any) -> Any:
        import torch

        if noise is None or isinstance(noise, str):
            return noise or "const"
        return [torch.as_tensor(each, device=self.device) for each in noise]

    def _run(self, call: Any) -> tuple[dict[str, Tensor], Tensor]:
        maps, images = self._recorder.run(call, stop=False)
        assert images is not None
        return maps, images


class StyleGAN2DiscriminatorTeacher(LookingTeacher):
    """Run a StyleGAN2 discriminator on images; see the module's text."""

    SETTINGS: Mapping[str, Scalar] = {"minibatch_std": 0.0}
    LOWEST: Mapping[str, float] = {"minibatch_std": 0}

    @classmethod
    def find(cls, path: Path) -> tuple[Mapping[str, Scalar], Any]:
        """Return what describes a file's discriminator; see `NetworkTeacher.find`."""
        return {}, functools.partial(describe_discriminator, path)

    def judge(
        self, images: Tensor, classes: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """Return official logits of a whole batch; see `Discriminator.judge`."""
        return self.network.module.judge(images, classes, features)


def describe_generator(
    path: Path, settings: Mapping[str, Scalar], _image_size: tuple[int, int] | None = None
) -> StyleGAN2Description:
    """Describe the generator in a file.

    Raises:
        ConfigError: no file there.
        TeacherError: an unusable file.
    """
    file = find_file(path)
    stored = facts(file, GENERATOR)
    layout = generator_layout(stored.shapes, stored.told, where=f"{file}: {GENERATOR}")
    listed = generator_taps(layout)
    return StyleGAN2Description(
        family="stylegan2",
        image_size=(layout.resolution, layout.resolution),
        taps=listed,
        aliases=stride_aliases(tap for tap in listed if "." not in tap.name),
        weights=(file,),
        architecture=dataclasses.asdict(layout),
        load=functools.partial(_load_generator, file, layout),
        classes=layout.mapping.classes,
        latent=layout.mapping.latent,
        features=layout.mapping.features,
        latent_layers=layout.layers,
    )


def describe_discriminator(
    path: Path, settings: Mapping[str, Scalar], image_size: tuple[int, int] | None = None
) -> NetworkDescription:
    """Describe the discriminator in a file; errors as `describe_generator`."""
    file = find_file(path)
    stored = facts(file, DISCRIMINATOR)
    layout = discriminator_layout(stored.shapes, stored.told, where=f"{file}: {DISCRIMINATOR}")
    own = (layout.resolution, layout.resolution)
    problems = []
    if image_size not in (None, own):
        got, allowed = (f"{size[0]}x{size[1]}" for size in (image_size, own))
        problems.append(Problem("image_size", got, f"{allowed}, the discriminator's"))
    statistic = float(cast(float, settings["minibatch_std"]))
    if statistic > MAX_STATISTIC:
        problems.append(Problem("settings.minibatch_std", f"{statistic:g}", "0 (none) .. 10000"))
    if problems:
        raise ConfigError(problems)
    listed = discriminator_taps(layout)
    return NetworkDescription(
        family="stylegan2.discriminator",
        image_size=own,
        taps=listed,
        aliases=stride_aliases(listed),
        weights=(file,),
        architecture=dataclasses.asdict(layout),
        load=functools.partial(_load_discriminator, file, layout, statistic),
    )


def generator_taps(layout: GeneratorLayout) -> tuple[Tap, ...]:
    """List what a generator can record, in the order it is computed."""
    told = layout.mapping
    listed = [
        vector("z", "z", told.latent, kind="latent"),
        vector("w", "w", layout.style, kind="latent"),
        vector("ws", "ws", layout.layers, layout.style, kind="latent"),
    ]
    for number, (side, channels) in enumerate(layout.channels):
        name, stride = f"b{side}", layout.resolution // side
        for layer in ("conv0", "conv1") if number else ("conv1",):
            module = f"synthesis.{name}.{layer}"
            listed.append(Tap(f"{name}.{layer}", module, channels, stride))
        listed.append(Tap(name, f"synthesis.{name}", channels, stride))
        if layout.architecture == "skip":
            listed.append(Tap(f"{name}.img", f"synthesis.{name}", 3, stride, item=1))
    return tuple(listed)


def discriminator_taps(layout: DiscriminatorLayout) -> tuple[Tap, ...]:
    """List what a discriminator can record, in the order it is computed."""
    listed = [
        Tap(f"d.b{side}", f"b{side}", outputs, 2 * layout.resolution // side)
        for side, _, outputs in layout.channels
    ]
    listed.append(Tap("d.b4", "b4.conv", layout.width, layout.resolution // 4))
    listed.append(vector("d.fc", "b4.fc", layout.width))
    told = layout.mapping
    if told is None or not told.features:
        listed.append(vector("d.logits", "logits", told.classes if told else 1))
    return tuple(listed)


def find_file(path: Path) -> Path:
    """Return the file of a path; a folder holds one .pkl.

    Raises: ConfigError if there is none, or more than one.
    """
    if path.is_file():
        if path.suffix != SUFFIX:
            raise ConfigError(Problem("path", str(path), f"a file of {SUFFIX}"))
        return path
    if not path.is_dir():
        hint = "Give network-snapshot-*.pkl of StyleGAN2-ADA, or its folder."
        raise ConfigError(Problem("path", str(path) or "''", "an existing path", hint))
    files = sorted(path.glob(f"*{SUFFIX}"))
    if len(files) != 1:
        got = ", ".join(file.name for file in files)[:200] or f"no *{SUFFIX} in {path}"
        raise ConfigError(Problem("path", got, f"one *{SUFFIX}", "Name the file."))
    return files[0]


def _load_generator(file: Path, layout: GeneratorLayout, dtype: torch.dtype) -> PlainNetwork:
    from pipeline.teachers.gan.stylegan2.baked import load_baked
    from pipeline.teachers.gan.stylegan2.synthesis import Generator

    module = weights.unbuilt(lambda: Generator(layout), where=str(file))
    stored = read_snapshot(file, GENERATOR)
    load_baked(
        module, stored.state(), mapping=layout.mapping, residual=layout.architecture == "resnet",
        filter_at="synthesis.filter.taps", dtype=dtype, where=stored.where,
    )  # fmt: skip
    return PlainNetwork(module)


def _load_discriminator(
    file: Path, layout: DiscriminatorLayout, statistic: float, dtype: torch.dtype
) -> PlainNetwork:
    from pipeline.teachers.gan.stylegan2.baked import load_baked
    from pipeline.teachers.gan.stylegan2.discriminator import ALONE, Discriminator

    module = weights.unbuilt(
        lambda: Discriminator(layout, statistic=statistic or ALONE), where=str(file)
    )
    stored = read_snapshot(file, DISCRIMINATOR)
    load_baked(
        module, stored.state(), mapping=layout.mapping, residual=layout.architecture == "resnet",
        filter_at="filter.taps", dtype=dtype, where=stored.where,
    )  # fmt: skip
    return PlainNetwork(module)
