"""Generators that turn latents into images (GANs): draw, generate, keep the features on the way.

Everything a family of GANs has in common is here: settings, seeded draws of latents, classes and
instance features. A family's file says how to find and to load its networks; see
`biggan/family.py`. Generators cannot look at given images: they support `synthesize` alone.

Sample `index` gets the same latent, class and instance whoever computes it. Source: DreamTeacher
section 3.1 (features of synthesised images, recorded as they are generated).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from dreamshard import rng
from dreamshard.errors import Problem
from pipeline.teachers.base import Mode, Scalar, TeacherConfig
from pipeline.teachers.gan.instances import Instances, read_instances
from pipeline.teachers.gan.latents import FORMS, truncated_normal
from pipeline.teachers.pixels import to_uint8
from pipeline.teachers.recording.outbox import Outbox
from pipeline.teachers.recording.teacher import NetworkDescription, NetworkRequest, NetworkTeacher
from pipeline.teachers.request import drawn_once
from storage.schema import FeatureBatch

if TYPE_CHECKING:
    from torch import Tensor, nn


class Generator(Protocol):
    """A loaded network."""

    module: nn.Module

    def __call__(self, z: Tensor, labels: Tensor | None, features: Tensor | None) -> Tensor:
        """Map z float32 (N, Z), labels int64 (N,), features float32 (N, D) to (N, 3, H, W)."""
        ...


@dataclass(frozen=True, kw_only=True)
class GeneratorDescription(NetworkDescription):
    """Everything known about a generator before its weights are loaded.

    `load` returns a `Generator`.
    """

    latent: int
    """Numbers of z."""
    latent_std: float = 1.0
    """Standard deviation of z, where it is not truncated."""
    usual_class: int | None = None
    """The one class that training used, where it used one."""
    unconditional: bool = False
    """Whether its classes mean nothing: none is recorded."""
    features: int = 0
    """Width of the instance features it is conditioned on (IC-GAN); 0 = none."""

    def summary(self) -> list[str]:
        """Say what it draws from, and what else it is told."""
        lines = [f"a generator of latents of {self.latent}"]
        if self.features:
            needs = f"(N, {self.features}) numbers (settings.instance_features)"
            lines.append(f"conditioned on instances: {needs}")
        return lines

    def example(self, device: str) -> tuple[Tensor | None, ...]:
        """Return z, labels and instance features of one sample."""
        import torch

        labels = torch.zeros(1, dtype=torch.int64, device=device) if self.classes else None
        features = torch.zeros((1, self.features), device=device) if self.features else None
        return torch.zeros((1, self.latent), device=device), labels, features


@dataclass(kw_only=True)
class GeneratorRequest(NetworkRequest):
    """A checked request to a generator."""

    description: GeneratorDescription
    instances: Instances | None = None

    @property
    def has_labels(self) -> bool:
        """Return whether samples have classes."""
        return self.description.classes > 0 and not self.description.unconditional

    @property
    def truncation(self) -> float:
        """Return tau, 0 for none."""
        return float(cast(float, self.settings["truncation"]))  # 1 and 1.0 are one recipe

    def check(self) -> list[Problem | str]:
        """Settle the levels, the class and the instances; return what is wrong."""
        known, settings, problems = self.description, self.settings, []
        problems += drawn_once(self.config)
        if settings["class_label"] is None:
            settings["class_label"] = known.usual_class
        problems += [*self.truncation_problems(), *_setting_problems(settings, known)]
        problems += super().check()
        if known.features and settings["instance_features"]:
            path = Path(str(settings["instance_features"]))
            self.instances, wrong = read_instances(path, known.features, known.classes)
            problems += wrong
        return problems

    def truncation_problems(self) -> list[Problem]:
        """List what is wrong with how latents are truncated."""
        problems, tau, form = [], self.settings["truncation"], self.settings["truncation_form"]
        if isinstance(tau, int | float) and not 0 <= tau <= 10:
            problems.append(Problem("settings.truncation", str(tau), "0 (none) .. 10"))
        if form not in FORMS:
            problems.append(Problem("settings.truncation_form", str(form), " | ".join(FORMS)))
        return problems

    def mode_settings(self) -> dict[str, object]:
        """Return the settings that change recorded bytes, defaults filled in."""
        told: dict[str, object] = {"truncation": self.truncation}
        if self.truncation:
            told["truncation_form"] = self.settings["truncation_form"]
        return {**told, **self.conditions()}

    def conditions(self) -> dict[str, object]:
        """Return the part of the settings that says what the generator is conditioned on."""
        told: dict[str, object] = {}
        if self.description.classes:
            told["class_label"] = self.settings["class_label"]
        if self.instances is not None:
            told["instance_features"] = self.instances.digest
        return told


class GeneratorTeacher(NetworkTeacher):
    """Run a frozen generator; see the module's text.

    `path` is a checkpoint file or a folder that holds one; the seed selects latents, classes and
    instances, with the sample's index.
    """

    modes: tuple[Mode, ...] = ("synthesize",)
    SETTINGS: Mapping[str, Scalar] = {
        "truncation": 0.0,
        "truncation_form": "scaled",
        "class_label": None,
        "instance_features": "",
    }
    request_class = GeneratorRequest

    @classmethod
    def look_up(
        cls, config: TeacherConfig, image_size: tuple[int, int] | None
    ) -> tuple[Any, dict[str, Scalar], list[Problem | str]]:
        """Describe the network of a request, whose image size is the only one allowed."""
        description, settings, problems = super().look_up(config, image_size)
        if image_size not in (None, description.image_size):
            got, own = (f"{size[0]}x{size[1]}" for size in (image_size, description.image_size))
            problems.append(Problem("image_size", got, f"{own}, the generator's", "Leave it out."))
        return description, settings, problems

    def synthesize(self, indices: np.ndarray) -> FeatureBatch:
        """Draw samples and record features; see `pipeline.teachers.base.Teacher.synthesize`."""
        import torch

        z, labels, features = self.inputs(indices)
        records = Outbox(self.device)
        with torch.inference_mode():
            maps, images = self.generate(z, labels, features, **self.extras(indices))
            self.keep(records, maps)
            pixels = to_uint8(images).contiguous().cpu().numpy()
        kept = labels if self.request.has_labels else None
        return self.batch(indices, records.collect(), image=pixels, label=kept)

    def extras(self, indices: np.ndarray) -> dict[str, Any]:
        """Return what else `generate` is told of samples; families that need more say it."""
        return {}

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
        tau, rows = self.request.truncation, None
        shape = (self.description.latent,)
        if tau:
            form = str(self.request.settings["truncation_form"])
            z = truncated_normal(self.seed, indices, shape, tau=tau, form=form)
        else:
            z = rng.normal(self.seed, indices, 0, "latent", shape)
            z *= np.float32(self.description.latent_std)
        instances = self.request.instances
        if instances is not None:
            rows = rng.integers(self.seed, indices, 0, "instance", (), len(instances.features))
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
        return rng.integers(self.seed, indices, 0, "class", (), classes)

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


def _setting_problems(
    settings: Mapping[str, Scalar], description: GeneratorDescription
) -> list[Problem]:
    problems = []
    label, classes = settings["class_label"], description.classes
    if label is not None and not (type(label) is int and 0 <= label < classes):
        allowed = (
            f"0..{classes - 1}, or leave it out to draw them"
            if classes
            else "none: it has no classes"
        )
        problems.append(Problem("settings.class_label", str(label), allowed))
    path = settings["instance_features"]
    if description.features and not path:
        hint = f"Give a file of (N, {description.features}) floats: .npy, .npz or .safetensors."
        problems.append(Problem("settings.instance_features", "nothing", "a file", hint))
    if path and not description.features:
        allowed = "none: it is not conditioned on instances"
        problems.append(Problem("settings.instance_features", str(path), allowed))
    return problems
