"""Student backbones: any timm network by name, our small-image networks, or the user's own class.

A student maps images (B, 3, H, W) to a list of feature maps, finest stride first.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill.tables import load_part
from dreamshard.errors import ConfigError, Problem

if TYPE_CHECKING:
    from distill.config import StudentConfig

STUDENTS = {"cifar_resnet": "distill.small_resnet:CifarResNet"}
"""Backbones that timm does not have; any other name without a colon is asked of timm.

Such a class takes `out_indices` beside its own settings, and has timm's `feature_info`.
"""
RESERVED = ("features_only", "out_indices", "pretrained")
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class MapInfo:
    """Describe one feature map a backbone can give.

    Args:
        index: the backbone's own number for the map, finest first.
        stride: pixels of the image per cell of the map.
        channels: channels of the map.
    """

    index: int
    stride: int
    channels: int


class Student(nn.Module):
    """Wrap a backbone so that it gives exactly the maps asked for, finest first.

    Args:
        backbone: maps (B, 3, H, W) to a list of (B, C, h, w).
        maps: what the backbone gives, in its order.
        mean, std: normalisation of the images it expects, per channel, of pixels in 0..1.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        maps: Sequence[MapInfo],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.strides = tuple(info.stride for info in maps)
        self.channels = tuple(info.channels for info in maps)
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map normalised images (B, 3, H, W) to one (B, C, H/stride, W/stride) per stride."""
        return list(self.backbone(images))


def build_student(config: StudentConfig, *, strides: Sequence[int], seed: int) -> Student:
    """Build a backbone that gives one map per stride, with weights that depend on the seed only.

    Args:
        config: name, settings, pretrained or not, normalisation.
        strides: pixels per cell of the maps wanted, ascending.
        seed: of the initialisation; PyTorch's global generator is left as it was.

    Raises:
        ConfigError: unknown name, settings the network does not take, or a stride it has not.
    """
    maps = pick_maps(available_maps(config), strides=strides, name=config.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = _construct(config, out_indices=tuple(info.index for info in maps))
    pretrained_cfg: Mapping[str, Any] = getattr(backbone, "pretrained_cfg", None) or {}
    own = pretrained_cfg if config.pretrained else {}
    mean = config.mean or own.get("mean") or HALF
    std = config.std or own.get("std") or HALF
    return Student(backbone, maps=maps, mean=mean, std=std)


def available_maps(config: StudentConfig) -> list[MapInfo]:
    """List the maps a backbone can give, without initialising its weights.

    Raises:
        ConfigError: unknown name, or settings the network does not take.
    """
    with torch.device("meta"):
        network = _construct(config, out_indices=None)
    info: Any = getattr(network, "feature_info", None)
    if not info:
        allowed = "a network that records its feature maps (timm's feature_info)"
        raise ConfigError(Problem("student.name", repr(config.name), allowed))
    entries: list[dict[str, Any]] = info if isinstance(info, list) else info.get_dicts()
    return [
        MapInfo(index, int(entry["reduction"]), int(entry["num_chs"]))
        for index, entry in enumerate(entries)
    ]


def pick_maps(maps: Sequence[MapInfo], *, strides: Sequence[int], name: str) -> list[MapInfo]:
    """Choose the deepest map of each stride.

    Args:
        maps: what the backbone has.
        strides: what is wanted, ascending.
        name: the backbone's name, for the message.

    Raises:
        ConfigError: listing both sides, if a stride is missing.
    """
    deepest = {info.stride: info for info in maps}
    missing = [stride for stride in strides if stride not in deepest]
    if missing:
        got = f"teacher levels of stride {_listing(strides)} for student {name!r}"
        have = ", ".join(f"{info.stride} ({info.channels} channels)" for info in deepest.values())
        hint = (
            "Choose levels of those strides with --data.levels, record others with "
            "`dreamshard encode`, or choose another student with --student.name."
        )
        raise ConfigError(Problem("student.name", got, f"the student's strides: {have}", hint))
    return [deepest[stride] for stride in strides]


def output_shapes(student: nn.Module, *, image_size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """Return the (C, h, w) of every map the student really gives for an image of this size.

    Args:
        student: any student; its mode and buffers are left as they were.
        image_size: (H, W) in pixels.
    """
    was_training = student.training
    parameter = next(student.parameters())
    image = torch.zeros(1, 3, *image_size, device=parameter.device, dtype=parameter.dtype)
    student.eval()
    with torch.inference_mode():
        maps = student(image)
    student.train(was_training)
    return [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]


def _construct(config: StudentConfig, *, out_indices: tuple[int, ...] | None) -> nn.Module:
    """Build the network: whole if `out_indices` is None, else as a feature extractor."""
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in config.settings.items()}
    reserved = [key for key in RESERVED if key in settings]
    if reserved:
        raise ConfigError(
            Problem(
                f"student.settings.{reserved[0]}",
                repr(settings[reserved[0]]),
                "settings of the network itself",
                "Maps follow from the dataset's levels; use student.pretrained for weights.",
            )
        )
    try:
        if config.name in STUDENTS or ":" in config.name:
            return load_part(config.name, table=STUDENTS)(out_indices=out_indices, **settings)
        return _construct_timm(config, settings=settings, out_indices=out_indices)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        key = "student.settings" if settings else "student.name"
        got = f"{config.settings if settings else config.name!r} ({error})"
        hint = "See the network's constructor for their names."
        allowed = f"settings that {config.name!r} takes"
        raise ConfigError(Problem(key, got, allowed, hint)) from error
    except (ImportError, AttributeError) as error:
        what = f"{config.name!r} ({error})"
        raise ConfigError(Problem("student.name", what, "module:Class to import")) from error


def _construct_timm(
    config: StudentConfig, *, settings: Mapping[str, Any], out_indices: tuple[int, ...] | None
) -> nn.Module:
    import timm

    if not timm.is_model(config.name.partition(".")[0]):
        known = [*STUDENTS, *timm.list_models()]
        close = difflib.get_close_matches(config.name, known, n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else "See timm.list_models()."
        allowed = f"a timm network, {', '.join(STUDENTS)}, or module:Class"
        raise ConfigError(Problem("student.name", repr(config.name), allowed, hint))
    if out_indices is None:
        return timm.create_model(config.name, pretrained=False, **settings)
    try:
        return timm.create_model(
            config.name,
            pretrained=config.pretrained,
            features_only=True,
            out_indices=out_indices,
            **settings,
        )
    except (OSError, RuntimeError) as error:
        if not config.pretrained:
            raise
        reason = str(error).partition("\n")[0]
        hint = "Try --student.pretrained false, or make the weights available to timm."
        allowed = f"false, as the weights of {config.name!r} cannot be had ({reason})"
        raise ConfigError(Problem("student.pretrained", "true", allowed, hint)) from error


def _listing(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
