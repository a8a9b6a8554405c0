"""Students: a backbone that maps images (B, 3, H, W) to feature maps, finest stride first.

Backbones are constructed by name in `distill.students.backbones`. A plain transformer, whose maps
all have one stride, gets a simple feature pyramid beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill.students.backbones import MapInfo, available_maps, construct, is_plain
from distill.students.timm_names import exempt_names, freeze
from distill.students.weights import load_weights, read_weights
from dreamshard.errors import ConfigError, Problem
from pipeline.teachers.timm.vit_pyramid import SimpleFeaturePyramid, pyramid_strides

if TYPE_CHECKING:
    from distill.configs.student import StudentConfig

HALF = (0.5, 0.5, 0.5)


class Student(nn.Module):
    """Wrap a backbone so that it gives exactly the maps asked for, finest first.

    Args:
        backbone: maps (B, 3, H, W) to a list of (B, C, h, w), or (B, h, w, C) if timm says NHWC.
        maps: what the backbone gives, in its order; with a neck, what the neck gives.
        mean, std: normalisation of the images it expects, per channel, of pixels in 0..1.
        neck: makes the maps out of the backbone's; None: the backbone's own.
        frozen: parts of the backbone that stay in evaluation mode.
        exempt: names of the backbone's parameters that must not decay.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        maps: Sequence[MapInfo],
        mean: Sequence[float],
        std: Sequence[float],
        neck: SimpleFeaturePyramid | None = None,
        frozen: Sequence[nn.Module] = (),
        exempt: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck
        self.strides = tuple(info.stride for info in maps)
        self.channels = tuple(info.channels for info in maps)
        self.mean, self.std = tuple(mean), tuple(std)
        self._exempt = frozenset(f"backbone.{name}" for name in exempt)
        self._channels_side = str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC")
        # By name: synchronised batch norm puts other modules in the places of some.
        self._frozen = tuple(n for n, m in backbone.named_modules() if any(m is f for f in frozen))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map normalised images (B, 3, H, W) to one (B, C, H/stride, W/stride) per stride."""
        maps = list(self.backbone(images))
        if self._channels_side:
            maps = [features.permute(0, 3, 1, 2) for features in maps]
        return maps if self.neck is None else self.neck(maps)

    def no_weight_decay(self) -> frozenset[str]:
        """Name the parameters that must not decay, in timm's convention."""
        return self._exempt

    def pooled(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to their deepest map's mean, float32 (B, C)."""
        return self(images)[-1].float().mean(dim=(2, 3))

    def train(self, mode: bool = True) -> Student:
        """Set training mode; frozen parts keep their statistics and stay in evaluation mode."""
        super().train(mode)
        for name in self._frozen:
            self.backbone.get_submodule(name).eval()
        return self


def build_student(
    config: StudentConfig,
    *,
    strides: Sequence[int],
    seed: int,
    image_size: tuple[int, int] | None = None,
) -> Student:
    """Build a student that gives one map per stride, with weights that depend on the seed only.

    Args:
        config: name, settings, pretrained or not, normalisation, what is frozen.
        strides: pixels per cell of the maps wanted, ascending.
        seed: of the initialisation; PyTorch's global generator is left as it was.
        image_size: (H, W) in pixels of the images to come; transformers are built for it. None:
            the network's own.

    Raises:
        ConfigError: unknown name, settings the network does not take, a stride it has not, or
            weights to start from that are not its own.
    """
    available = available_maps(config, image_size=image_size)
    plain = is_plain(available)
    maps = pick_maps(offered_maps(available), strides=strides, name=config.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        indices = tuple(info.index for info in maps)
        backbone = construct(config, out_indices=indices, image_size=image_size, plain=plain)
        neck = None
        if plain:
            last = available[-1]
            neck = SimpleFeaturePyramid(last.channels, patch=last.stride, strides=strides)
            maps = [
                replace(info, channels=width)
                for info, width in zip(maps, neck.channels, strict=True)
            ]
    if config.grad_checkpointing:
        _checkpoint_gradients(backbone, name=config.name)
    frozen = freeze(backbone, config, image_size=image_size) if config.frozen_stages else []
    pretrained_cfg: Mapping[str, Any] = _pretrained_cfg(backbone) if config.pretrained else {}
    own_mean, own_std = pretrained_cfg.get("mean"), pretrained_cfg.get("std")
    if config.weights:
        given = read_weights(config.weights)
        load_weights(given, backbone, neck, config=config, image_size=image_size)
        own_mean, own_std = given.mean, given.std
    mean, std = config.mean or own_mean or HALF, config.std or own_std or HALF
    return Student(
        backbone,
        maps=maps,
        mean=mean,
        std=std,
        neck=neck,
        frozen=frozen,
        exempt=exempt_names(backbone, config, image_size=image_size),
    )


def student_strides(
    config: StudentConfig, *, image_size: tuple[int, int] | None = None
) -> tuple[int, ...]:
    """Return every stride a student can give, ascending.

    Raises:
        ConfigError: unknown name, or settings the network does not take.
    """
    offered = offered_maps(available_maps(config, image_size=image_size))
    return tuple(sorted({info.stride for info in offered}))


def offered_maps(maps: Sequence[MapInfo]) -> list[MapInfo]:
    """Return the maps a student can give: its backbone's, or those of a pyramid on a plain one."""
    if not is_plain(maps):
        return list(maps)
    last = maps[-1]
    return [replace(last, stride=stride) for stride in pyramid_strides(last.stride)]


def pick_maps(maps: Sequence[MapInfo], *, strides: Sequence[int], name: str) -> list[MapInfo]:
    """Choose the deepest map of each stride.

    Args:
        maps: what the student can give.
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
            "`dreamshard encode`, choose another student with --student.name, or let the method "
            "resize (--dreamteacher.bridge interpolate)."
        )
        raise ConfigError(Problem("student.name", got, f"the student's strides: {have}", hint))
    return [deepest[stride] for stride in strides]


def nearest_strides(wanted: Sequence[int], *, offered: Sequence[int]) -> tuple[int, ...]:
    """Return the offered stride nearest to each one wanted, by ratio; of equals the finer.

    Args:
        wanted: strides of the levels.
        offered: strides of the student, ascending.

    Returns:
        One of `offered` per entry of `wanted`.
    """
    return tuple(
        min(offered, key=lambda have: (max(have / want, want / have), have)) for want in wanted
    )


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


def size_refusal(student: nn.Module, *, image_size: tuple[int, int]) -> Exception | None:
    """Return why a student does not take images of (H, W) pixels; None if it does."""
    try:
        output_shapes(student, image_size=image_size)
    except (AssertionError, RuntimeError, ValueError) as error:
        return error
    return None


def _checkpoint_gradients(backbone: nn.Module, *, name: str) -> None:
    inner = getattr(
        backbone, "model", backbone
    )  # timm's wrapper of a transformer passes nothing on
    switch = getattr(inner, "set_grad_checkpointing", None)
    if switch is None:
        allowed = f"false, as {name!r} cannot checkpoint its activations"
        raise ConfigError(Problem("student.grad_checkpointing", "true", allowed))
    switch(True)


def _pretrained_cfg(backbone: nn.Module) -> Mapping[str, Any]:
    inner = getattr(backbone, "model", backbone)
    return getattr(inner, "pretrained_cfg", None) or {}


def _listing(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
