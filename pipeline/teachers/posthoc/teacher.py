"""Encoders trained for a generator that has none: `dreamshard pretrain --kind encoder`.

    teacher:
      kind: encoder
      path: teachers/my-encoder       # encoder.json, encoder.safetensors, generator/
      levels: [s4, e.avepool, e.w, rec.b16, rec.image]

Taps: the outputs of the encoder's four stages (`e.block1` ... `e.block4`), their pooled features
(`e.avepool`) and the latent found: `e.w`, `e.ws` (one for each layer) or `e.z`. Of the generator
G(E(x)): its maps by their own names (`rec.b16`, `rec.blocks.2`) or strides (`rec.s4`), and the
reconstruction itself (`rec.image`, in [-1, 1]). A conditional generator whose z was found is told
`settings.class_label`; StyleGAN2's class is in w. `layout.py` describes the folder.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamshard.errors import ConfigError, Problem
from pipeline.teachers import weights
from pipeline.teachers.base import Scalar
from pipeline.teachers.gan.bigbigan.encoder import generator_taps, stage_taps
from pipeline.teachers.gan.teacher import GeneratorDescription
from pipeline.teachers.posthoc import layout as layouts
from pipeline.teachers.posthoc.layout import EncoderLayout
from pipeline.teachers.recording import taps
from pipeline.teachers.recording.looking import LookingRequest, LookingTeacher
from pipeline.teachers.recording.taps import Tap
from pipeline.teachers.recording.teacher import NetworkDescription, PlainNetwork

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipeline.teachers.recording.teacher import Records

REBUILT = "rec."
NAMES = {"z": "e.z", "w": "e.w", "w_plus": "e.ws"}
"""What an encoder finds -> name of its level."""


@dataclass(frozen=True, kw_only=True)
class EncoderDescription(NetworkDescription):
    """Everything known about an encoder and its generator before they are loaded."""

    layout: EncoderLayout
    generator: GeneratorDescription

    def summary(self) -> list[str]:
        """Say what it is, and which generator belongs to it."""
        shape = "x".join(map(str, layouts.latent_shape(self.generator, self.layout.latent)))
        told = f"an encoder ({self.layout.network}) of {self.layout.latent}, {shape} numbers"
        return [told, f"of the {self.layout.kind} generator {self.layout.file.name}"]

    def example(self, device: str) -> tuple[Tensor | None, ...]:
        """Return an image, and its class where the generator is told one."""
        import torch

        labels = torch.zeros(1, dtype=torch.int64, device=device) if self.classes else None
        return (*super().example(device), labels)


@dataclass(kw_only=True)
class EncoderRequest(LookingRequest):
    """A checked request to an encoder."""

    description: EncoderDescription

    @property
    def label(self) -> int | None:
        """Return the class that the generator is told, None for none."""
        label = self.settings["class_label"]
        usual = self.description.generator.usual_class
        chosen = usual if label is None else label
        return int(chosen) if chosen is not None and self.description.classes else None

    def check(self) -> list[Problem | str]:
        """Settle levels and the class; return what is wrong."""
        problems, label = super().check(), self.settings["class_label"]
        classes = self.description.classes
        if label is not None and not (type(label) is int and 0 <= label < classes):
            allowed = f"0..{classes - 1}" if classes else "nothing: its generator is told no class"
            problems.append(Problem("settings.class_label", str(label), allowed))
        rebuilt = [level.tap for level in self.levels if level.tap.startswith(REBUILT)]
        if rebuilt and classes and label is None and self.label is None:
            allowed = f"0..{classes - 1}, which the generator is told for {rebuilt[0]}"
            hint = "Encode the images of each class apart, or record e.* alone."
            problems.append(Problem("settings.class_label", "nothing", allowed, hint))
        return problems

    def mode_settings(self) -> dict[str, object]:
        """Return what changes recorded bytes; the generator is part of the fingerprint."""
        return {"class_label": self.label} if self.description.classes else {}


class EncoderTeacher(LookingTeacher):
    """Run an encoder and, as far as levels ask for it, its generator."""

    SETTINGS: Mapping[str, Scalar] = {"class_label": None}
    request_class = EncoderRequest

    @classmethod
    def find(cls, path: Path) -> tuple[Mapping[str, Scalar], Any]:
        """Return what describes a folder; see `NetworkTeacher.find`."""
        return {}, functools.partial(describe, path)

    def record_images(self, records: Records, images: Tensor, indices: np.ndarray) -> None:
        """Run the networks on images uint8 (N, H, W, 3) and keep what they give."""
        import torch

        told = [self.prepare(images)]
        if (label := self.request.label) is not None:
            told.append(torch.full((len(images),), label, device=self.device))
        self.keep(records, self.activations(*told))


def describe(
    path: Path, settings: Mapping[str, Scalar], image_size: tuple[int, int] | None = None
) -> EncoderDescription:
    """Describe the encoder of a folder and its generator.

    Raises:
        ConfigError: none there, or images of another size than the generator's.
        TeacherError: unusable files.
    """
    layout = layouts.read_layout(path)
    generator = layouts.describe_generator(layout.kind, layout.file, layout.settings)
    shape = layouts.latent_shape(generator, layout.latent)
    size = generator.image_size
    if image_size not in (None, size):
        got, own = (f"{each[0]}x{each[1]}" for each in (image_size, size))
        raise ConfigError(Problem("image_size", got, f"{own}, the generator's", "Leave it out."))
    own_taps = tuple(encoder_taps(layout, shape))
    maps = tuple(tap for tap in generator.taps if not tap.form)
    rebuilt = generator_taps(dataclasses.replace(generator, taps=maps), size)
    strides = {f"{REBUILT}{name}": REBUILT + tap for name, tap in generator.aliases.items()}
    told = {name: value for name, value in layout.to_dict().items() if name != "generator"}
    return EncoderDescription(
        family="encoder",
        image_size=size,
        taps=(*own_taps, *rebuilt),
        aliases={**taps.stride_aliases(own_taps), **strides},
        weights=(path / layouts.WEIGHTS, *generator.weights),
        architecture={"encoder": told, "generator": dict(generator.architecture)},
        load=lambda dtype: PlainNetwork(load(path / layouts.WEIGHTS, layout, generator, dtype)),
        classes=layouts.classes_told(generator, layout.latent),
        flags=generator.flags,
        layout=layout,
        generator=generator,
    )


def load(
    file: Path, layout: EncoderLayout, generator: GeneratorDescription, dtype: torch.dtype
) -> nn.Module:
    """Read both networks and make them ready; the head stays in float32.

    Raises: TeacherError for weights that are damaged or of another shape.
    """
    from pipeline.teachers.posthoc.network import PosthocEncoder, Reconstructor

    shape = layouts.latent_shape(generator, layout.latent)
    encoder = weights.unbuilt(lambda: PosthocEncoder(layout, shape), where=str(file))
    state = weights.read((file,))
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    weights.load_into(encoder, state, where=str(file))
    encoder.backbone.to(dtype)
    return Reconstructor(encoder, generator.load(dtype).module, layout.latent)


def encoder_taps(layout: EncoderLayout, shape: tuple[int, ...]) -> list[Tap]:
    """List what can be recorded of the encoder, in the order it is computed."""
    modules = [f"encoder.backbone.layer{stage + 1}" for stage in range(len(layout.widths))]
    listed = stage_taps(layout.widths, modules, first_stride=layout.first_stride)
    listed.append(taps.vector(NAMES[layout.latent], "encoder.latents", *shape, kind="latent"))
    return listed
