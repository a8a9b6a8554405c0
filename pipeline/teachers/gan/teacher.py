"""Generators that turn latents into images (GANs): draw, generate, keep the features on the way.

Everything a family of GANs has in common is here: settings, seeded draws of latents, classes and
instance features, taps, records. A family's file says how to describe and to load its networks; see
`biggan.py`. Generators cannot look at given images: they support `synthesize` alone.

Sample `index` gets the same latent, class and instance whoever computes it. Source: DreamTeacher
section 3.1 (features of synthesised images, recorded as they are generated).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from dreamshard import rng
from dreamshard.errors import ConfigError, Problem
from pipeline.teachers import weights
from pipeline.teachers.base import Mode, Scalar, TeacherConfig, TeacherSpec
from pipeline.teachers.gan.instances import Instances, read_instances
from pipeline.teachers.gan.latents import FORMS, truncated_normal
from pipeline.teachers.recording import taps
from pipeline.teachers.recording.outbox import Outbox, as_recorded
from pipeline.teachers.recording.taps import Tap
from pipeline.teachers.request import check_settings, expand_levels
from storage.schema import FeatureBatch, Level, Pins

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SETTINGS: dict[str, Scalar] = {
    "truncation": 0.0,
    "truncation_form": "scaled",
    "class_label": None,
    "instance_features": "",
}
"""Settings of every generator with their defaults; families add their own."""


class Generator(Protocol):
    """A loaded network."""

    module: nn.Module

    def __call__(self, z: Tensor, labels: Tensor | None, features: Tensor | None) -> Tensor:
        """Map z float32 (N, Z), labels int64 (N,), features float32 (N, D) to (N, 3, H, W)."""
        ...


@dataclass(frozen=True, kw_only=True)
class GeneratorDescription:
    """Everything known about a generator before its weights are loaded."""

    family: str
    image_size: tuple[int, int]
    """Height and width in pixels."""
    taps: tuple[Tap, ...]
    aliases: Mapping[str, str]
    """Further names of taps, `s8` -> `blocks.2`."""
    weights: tuple[Path, ...]
    """Files that decide the fingerprint."""
    architecture: Mapping[str, Any]
    """JSON-able facts that decide the computation, flags included."""
    latent: int
    """Numbers of z."""
    load: Callable[[torch.dtype], Generator]
    latent_std: float = 1.0
    """Standard deviation of z, where it is not truncated."""
    classes: int = 0
    """Number of class labels it is conditioned on; 0 = none."""
    usual_class: int | None = None
    """The one class that training used, where it used one."""
    features: int = 0
    """Width of the instance features it is conditioned on (IC-GAN); 0 = none."""
    licence: str = "unknown"
    notes: tuple[str, ...] = field(default=())
    """Sentences worth showing in an inspection."""


@dataclass(frozen=True)
class Request:
    """A checked request."""

    description: GeneratorDescription
    levels: tuple[Level, ...]
    settings: dict[str, Scalar]
    instances: Instances | None


class GeneratorTeacher(ABC):
    """Run a frozen generator; see the module's text.

    Args:
        config: the request; `path` is a checkpoint file or a folder that holds one.
        mode: synthesize.
        image_size: (height, width) in pixels, None for the network's own, the only one allowed.
        seed: selects latents, classes and instances, with the sample's index.
        pins: device, number format and threads of the forward pass.
    """

    modes: tuple[Mode, ...] = ("synthesize",)
    SETTINGS: Mapping[str, Scalar] = {}
    """The family's own settings with their defaults."""

    def __init__(
        self,
        config: TeacherConfig,
        *,
        mode: Mode,
        image_size: tuple[int, int] | None,
        seed: int,
        pins: Pins,
    ) -> None:
        import torch

        self.request = self._resolve(config, image_size)
        self.description = self.request.description
        self.levels, self.image_size = self.request.levels, self.description.image_size
        self.fingerprint = _fingerprint(self.description)
        self._seed, self.device = seed, torch.device(pins.device)
        if pins.threads > 0:
            torch.set_num_threads(pins.threads)
        self.network = self.description.load(getattr(torch, pins.compute_dtype))
        self.network.module.to(device=self.device)
        by_name = {tap.name: tap for tap in self.description.taps}
        wanted = dict.fromkeys(level.tap for level in self.levels)
        self._recorder = taps.Recorder(self.network.module, [by_name[name] for name in wanted])

    @classmethod
    @abstractmethod
    def describe_network(cls, path: Path, settings: Mapping[str, Scalar]) -> GeneratorDescription:
        """Describe the network at a path from small files and shapes.

        Raises:
            ConfigError: settings that contradict it or are missing.
            TeacherError: unusable files.
        """

    @classmethod
    def describe(
        cls, config: TeacherConfig, *, mode: Mode, image_size: tuple[int, int] | None
    ) -> TeacherSpec:
        """Resolve a request from small files; see `base.TeacherClass.describe`."""
        request = cls._resolve(config, image_size)
        return TeacherSpec(
            levels=request.levels,
            image_size=request.description.image_size,
            fingerprint=_fingerprint(request.description),
            mode_settings=_mode_settings(request),
            has_labels=request.description.classes > 0,
            licence=request.description.licence,
            notes=request.description.notes,
        )

    @classmethod
    def _resolve(cls, config: TeacherConfig, image_size: tuple[int, int] | None) -> Request:
        settings, found = check_settings(config, {**SETTINGS, **cls.SETTINGS})
        problems: list[Problem | str] = list(found)
        try:
            description = cls.describe_network(Path(config.path), settings)
        except ConfigError as error:
            raise ConfigError([*problems, *error.problems]) from error
        own = description.image_size
        if image_size not in (None, own):
            got = f"{image_size[0]}x{image_size[1]}"
            allowed = f"{own[0]}x{own[1]}, the generator's"
            problems.append(Problem("image_size", got, allowed, "Leave it out."))
        if config.draws != 1:
            problems.append(Problem("draws", str(config.draws), "1 (a sample is drawn once)"))
        if settings["class_label"] is None:
            settings["class_label"] = description.usual_class
        problems += _setting_problems(settings, description)
        instances = None
        try:
            levels = expand_levels(
                config,
                taps=taps.table(description.taps, own),
                aliases=description.aliases,
                num_timesteps=None,
            )
        except ConfigError as error:
            problems, levels = [*problems, *error.problems], ()
        if description.features and settings["instance_features"]:
            path = Path(str(settings["instance_features"]))
            instances, more = read_instances(path, description.features, description.classes)
            problems += more
        if problems:
            raise ConfigError(problems)
        return Request(description, levels, settings, instances)

    def synthesize(self, indices: np.ndarray) -> FeatureBatch:
        """Draw samples and record features; see `pipeline.teachers.base.Teacher.synthesize`."""
        import torch

        z, labels, features = self.inputs(indices)
        found = Outbox(self.device)
        with torch.inference_mode():
            maps, images = self.generate(z, labels, features)
            for level in self.levels:
                found[level.name] = as_recorded(maps[level.tap], level)
            pixels = ((images.float().clip(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            pictures = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        levels = found.collect()
        return FeatureBatch(
            index=np.asarray(indices, np.int64),
            key=[f"{index:08d}" for index in indices],
            valid=np.ones(len(indices), bool),
            image=pictures,
            levels={level.name: levels[level.name] for level in self.levels},
            label=labels,
        )

    def inputs(
        self, indices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Draw what the generator is told of each sample.

        Args:
            indices: int64 (N,).

        Returns:
            z float32 (N, Z); labels int64 (N,), None without classes; instance features float32
            (N, D) of length 1, None without them.
        """
        settings, rows = self.request.settings, None
        tau = float(cast(float, settings["truncation"]))
        shape = (self.description.latent,)
        if tau:
            form = str(settings["truncation_form"])
            z = truncated_normal(self._seed, indices, shape, tau=tau, form=form)
        else:
            z = rng.normal(self._seed, indices, 0, "latent", shape)
            z *= np.float32(self.description.latent_std)
        instances = self.request.instances
        if instances is not None:
            rows = rng.integers(self._seed, indices, 0, "instance", (), len(instances.features))
        features = None if instances is None else instances.features[rows]
        return z, self._labels(indices, instances, rows), features

    def _labels(
        self, indices: np.ndarray, instances: Instances | None, rows: np.ndarray | None
    ) -> np.ndarray | None:
        classes, fixed = self.description.classes, self.request.settings["class_label"]
        if not classes:
            return None
        if fixed is not None:
            return np.full(len(indices), int(cast(int, fixed)), np.int64)
        if instances is not None and instances.labels is not None:
            return instances.labels[rows]  # an instance's neighbours are mostly of its class
        return rng.integers(self._seed, indices, 0, "class", (), classes)

    def generate(
        self, z: np.ndarray, labels: np.ndarray | None, features: np.ndarray | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Run the network once.

        Args:
            z, labels, features: as `inputs` draws them, or of one's own.

        Returns:
            requested tap -> map (N, C, h, w), and images (N, 3, H, W) in about [-1, 1].
        """
        import torch

        told = [
            None if each is None else torch.from_numpy(np.ascontiguousarray(each)).to(self.device)
            for each in (z, labels, features)
        ]
        assert told[0] is not None
        maps, images = self._recorder.run(lambda: self.network(*told), stop=False)  # type: ignore[arg-type]
        assert images is not None
        return maps, images


def _fingerprint(description: GeneratorDescription) -> dict[str, object]:
    return weights.identity(description.family, description.weights, description.architecture)


def _mode_settings(request: Request) -> dict[str, object]:
    """Return the settings that change recorded bytes, defaults filled in."""
    tau = float(cast(float, request.settings["truncation"]))  # 1 and 1.0 are one recipe
    found: dict[str, object] = {"truncation": tau}
    if tau:
        found["truncation_form"] = request.settings["truncation_form"]
    if request.description.classes:
        found["class_label"] = request.settings["class_label"]
    if request.instances is not None:
        found["instance_features"] = request.instances.digest
    return found


def _setting_problems(
    settings: Mapping[str, Scalar], description: GeneratorDescription
) -> list[Problem]:
    found = []
    label, classes = settings["class_label"], description.classes
    if label is not None and not (type(label) is int and 0 <= label < classes):
        allowed = (
            f"0..{classes - 1}, or leave it out to draw them"
            if classes
            else "none: it has no classes"
        )
        found.append(Problem("settings.class_label", str(label), allowed))
    tau, form = settings["truncation"], settings["truncation_form"]
    if isinstance(tau, int | float) and not 0 <= tau <= 10:
        found.append(Problem("settings.truncation", str(tau), "0 (none) .. 10"))
    if form not in FORMS:
        found.append(Problem("settings.truncation_form", str(form), " | ".join(FORMS)))
    path = settings["instance_features"]
    if description.features and not path:
        hint = f"Give a file of (N, {description.features}) floats: .npy, .npz or .safetensors."
        found.append(Problem("settings.instance_features", "nothing", "a file", hint))
    if path and not description.features:
        allowed = "none: it is not conditioned on instances"
        found.append(Problem("settings.instance_features", str(path), allowed))
    return found
