"""Any network of timm as a teacher: convolutional, plain or hierarchical transformers.

    teacher:
      kind: timm
      path: weights/vit_small_patch14_reg4_dinov2   # config.json and model.safetensors
      levels: [s14, cls]

Images get the network's own normalisation; `settings.input_size` resizes them for it, so that it
joins teachers of another resolution on the same samples. Taps are timm's intermediates by number
(`stage.2`, of plain transformers `block.7`), without the final norm; the last features as a map
behind it (`final`); the class token (`cls`); what the classifier would see (`pooled`). Class and
register tokens are no part of maps.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dreamshard.errors import ConfigError, Problem, TeacherError
from pipeline.teachers.base import Flag, Scalar
from pipeline.teachers.recording.looking import LookingRequest, LookingTeacher
from pipeline.teachers.recording.teacher import NetworkDescription, PlainNetwork
from pipeline.teachers.timm.choice import LOCAL, SETTINGS, Choice, choose
from pipeline.teachers.timm.outline import Outline, list_taps, outline, own_size

if TYPE_CHECKING:
    from torch import Tensor

MAX_SIDE = 8192


@dataclass(frozen=True, kw_only=True)
class TimmDescription(NetworkDescription):
    """Everything known about a network of timm before its weights are loaded."""

    choice: Choice
    seen: tuple[int, int]
    """Height and width that the network sees, in pixels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per channel, of pixels in 0..1."""

    @property
    def fingerprint(self) -> dict[str, object]:
        """Return what identifies the network; random weights are their seed."""
        identity = super().fingerprint
        if not self.choice.files:
            identity["weights"] = f"random, seed {self.choice.seed}"
        return identity

    @property
    def licence(self) -> str:
        """Return the licence of the weights."""
        return self.choice.licence

    def summary(self) -> list[str]:
        """Say which network it is, and how it is told images."""
        height, width = self.seen
        told = ", ".join(f"{value:g}" for value in (*self.mean, *self.std))
        return [f"{self.choice.name}", f"sees {height}x{width} pixels, mean and std {told}"]

    def costs(self, network: Any, told: Sequence[Tensor | None]) -> dict[str, int]:
        """Count the operations to reach each tap: those of the pass that computes it alone."""
        from torch.utils.flop_counter import FlopCounterMode

        spent, module = {}, network.module
        for names in (*((tap.name,) for tap in self.taps), [tap.name for tap in self.taps]):
            module.wanted = set(names)
            with FlopCounterMode(display=False) as counter:
                network(*told)
            spent["output" if len(names) > 1 else names[0]] = counter.get_total_flops()
        return spent

    def example(self, device: str) -> tuple[Tensor | None, ...]:
        """Return one normalised image."""
        import torch

        return (torch.zeros((1, 3, *self.seen), device=device),)


@dataclass(kw_only=True)
class TimmRequest(LookingRequest):
    """A checked request to a network of timm."""

    def mode_settings(self) -> dict[str, object]:
        """Return what changes recorded bytes and is not the network: the size that it sees."""
        return {"seen": list(self.description.seen)}

    def warnings(self) -> tuple[str, ...]:
        """Say that weights are random, where they are."""
        choice = self.description.choice
        if choice.files:
            return ()
        said = f"{choice.name} has random weights of seed {choice.seed}, as settings.random_weights"
        return (f"{said} asks: its features are of an untrained network.",)


class TimmTeacher(LookingTeacher):
    """Run a network of timm; see the module's text."""

    SETTINGS = SETTINGS
    LOWEST: Mapping[str, float] = {"seed": 0, "input_size": 0}
    request_class = TimmRequest

    @classmethod
    def find(cls, path: Path) -> tuple[Mapping[str, Scalar], Any]:
        """Return what describes a path; see `NetworkTeacher.find`."""
        return {}, functools.partial(describe, path)

    def load(self, pins: Any) -> None:
        """Load the network, which computes what the levels need and no more."""
        super().load(pins)
        self.network.module.wanted = {level.tap for level in self.levels}

    def prepare(self, images: Tensor) -> Tensor:
        """Turn uint8 (N, H, W, 3) into what the network takes: (N, 3, h, w), normalised."""
        return normalised(images, self.description).to(self.dtype)

    def fit(self, images: Tensor) -> Tensor:
        """Turn images (N, 3, H, W) in [-1, 1] into the same; gradients go through."""
        return _fitted((images.float() + 1) / 2, self.description).to(self.dtype)


def normalised(images: Tensor, known: TimmDescription) -> Tensor:
    """Bring uint8 (N, H, W, 3) to the size a network sees and to its mean and spread, float32."""
    return _fitted(images.permute(0, 3, 1, 2).float() / 255, known)


def _fitted(pixels: Tensor, known: TimmDescription) -> Tensor:
    import torch
    from torch.nn import functional as F

    if tuple(pixels.shape[-2:]) != known.seen:
        pixels = F.interpolate(pixels, size=known.seen, mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (
        torch.tensor(values, device=pixels.device).view(1, 3, 1, 1)
        for values in (known.mean, known.std)
    )
    return (pixels - mean) / std


def describe(
    path: Path, settings: Mapping[str, Scalar], image_size: tuple[int, int] | None
) -> TimmDescription:
    """Describe the network of a path or a name from small files.

    Raises:
        ConfigError, TeacherError: as `choice.choose`; a size that the network does not take.
    """
    choice = choose(Path(str(path).removeprefix(LOCAL)), settings)
    if choice.untrained:
        raise TeacherError(
            f"{path}: {len(choice.untrained)} of its weights were never trained "
            f"({', '.join(choice.untrained[:3])}): it is a student's folder. Set teacher.kind to "
            "student, which records the maps that were."
        )
    size = image_size or own_size(choice.facts)
    seen = seen_size(size, cast(int, settings["input_size"]))
    known = outline(choice, seen)
    listed, aliases = list_taps(known, image_size=size, seen=seen)
    return description(choice, known, settings, size=size, seen=seen, taps=listed, aliases=aliases)


def description(
    choice: Choice,
    known: Outline | None,
    settings: Mapping[str, Scalar],
    *,
    size: tuple[int, int],
    seen: tuple[int, int],
    taps: Sequence[Any],
    aliases: Mapping[str, str],
    family: str = "timm",
    load: Any = None,
) -> TimmDescription:
    """Put a description together; see `TimmDescription`.

    Args:
        load: dtype -> the network with its weights; None for timm's own.
    """
    flags = (Flag(name="network", value=choice.name, source=_source(choice)),)
    flags += tuple(_normalisation(name, choice, settings) for name in ("mean", "std"))
    mean, std = (tuple(map(float, str(flag.value).split(","))) for flag in flags[1:])

    def load_whole(dtype: Any) -> PlainNetwork:
        from pipeline.teachers.timm import network

        assert known is not None
        return PlainNetwork(network.load(choice, known, seen, dtype))

    return TimmDescription(
        family=family,
        image_size=size,
        taps=tuple(taps),
        aliases=aliases,
        weights=choice.files,
        architecture={"name": choice.name, "arguments": dict(choice.arguments)},
        load=load or load_whole,
        flags=flags,
        choice=choice,
        seen=seen,
        mean=mean,
        std=std,
    )


def seen_size(size: tuple[int, int], asked: int) -> tuple[int, int]:
    """Return the (height, width) that a network sees of images of a size, in pixels.

    Args:
        asked: its height; 0 for the image's own.

    Raises: ConfigError for a height at which the width is no whole number.
    """
    if not asked:
        return size
    if asked > MAX_SIDE or asked * size[1] % size[0]:
        allowed = f"pixels up to {MAX_SIDE} that keep {size[0]}x{size[1]} in shape"
        raise ConfigError(Problem("settings.input_size", str(asked), allowed))
    return asked, asked * size[1] // size[0]


def _source(choice: Choice) -> Any:
    return "file" if choice.told == "file" else "user"


def _normalisation(name: str, choice: Choice, settings: Mapping[str, Scalar]) -> Flag:
    """Return the mean or spread that images are brought to, and who says so."""
    given = str(settings[name])
    if given:
        try:
            values = [float(part) for part in given.replace("[", "").replace("]", "").split(",")]
        except ValueError:
            values = []
        if len(values) != 3 or (name == "std" and min(values) <= 0):
            allowed = "three numbers of pixels in 0..1, such as 0.5,0.5,0.5"
            raise ConfigError(Problem(f"settings.{name}", given, allowed))
        return Flag(name=name, value=_shown(values), source="user")
    values = choice.facts.get(name) or ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))[name == "std"]
    if choice.told == "default" and choice.files:
        return Flag(name=name, value=_shown(values), source="default", whose="timm's first weights")
    return Flag(name=name, value=_shown(values), source="file" if choice.files else "user")


def _shown(values: Sequence[float]) -> str:
    return ",".join(repr(float(value)) for value in values)
