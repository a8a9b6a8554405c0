"""Read the architecture of StyleGAN2-ADA's networks out of shapes and constructor's settings.

Shapes tell the sizes; the settings tell what leaves no trace in them: activation, clamp, learning
rate multiplier. A setting that is not known here is refused. Source: StyleGAN2-ADA's file format.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dreamshard.errors import TeacherError

Shapes = Mapping[str, tuple[int, ...]]
ACTIVATIONS = ("lrelu", "relu", "linear")
ARCHITECTURES = ("orig", "skip", "resnet")
SIZES = frozenset("z_dim c_dim h_dim w_dim cmap_dim img_resolution img_channels".split())
INERT = frozenset(
    "channel_base channel_max num_fp16_res fp16_channels_last channels_last w_avg_beta "
    "freeze_layers num_layers embed_features layer_features num_ws use_noise".split()
)
"""Settings that shapes tell as well, or that change training or number formats alone."""


@dataclass(frozen=True)
class MappingLayout:
    """The network from z, class and instance to w.

    Args:
        latent: numbers of z, 0 for none (a discriminator's).
        classes, features: it is told of, 0 for none.
        widths: inputs and outputs of its layers, in order.
        embeds: widths that class and instance are brought to, 0 for none.
        multiplier: of the learning rate, which weights are stored divided by.
        activation: one of `ACTIVATIONS`.
    """

    latent: int
    classes: int
    features: int
    widths: tuple[int, ...]
    embeds: tuple[int, int]
    multiplier: float
    activation: str


@dataclass(frozen=True)
class GeneratorLayout:
    """A generator: channels by resolution, and how its blocks are put together."""

    mapping: MappingLayout
    channels: tuple[tuple[int, int], ...]
    """(resolution in pixels, channels of the block), from 4 up."""
    style: int
    architecture: str
    activation: str
    clamp: float | None
    noise: bool

    @property
    def resolution(self) -> int:
        """Return the side of its images in pixels."""
        return self.channels[-1][0]

    @property
    def layers(self) -> int:
        """Return how many w an image is told: one a convolution, and the last for RGB."""
        return 2 * len(self.channels)


@dataclass(frozen=True)
class DiscriminatorLayout:
    """A discriminator: channels that each block takes and gives, from the finest down."""

    mapping: MappingLayout | None
    channels: tuple[tuple[int, int, int], ...]
    """(resolution in pixels, channels in, channels out); the last gives 4 x 4 cells."""
    width: int
    """Numbers of its pooled feature."""
    outputs: int
    """Numbers of its last layer: 1, or those compared with the class's."""
    architecture: str
    activation: str
    clamp: float | None
    group: int | None
    """Images that minibatch statistics are taken over; None for all."""
    statistics: int
    """Channels of minibatch statistics, 0 for none."""

    @property
    def resolution(self) -> int:
        """Return the side of the images it takes in pixels."""
        return self.channels[0][0]


def generator_layout(shapes: Shapes, told: Mapping[str, Any], *, where: str) -> GeneratorLayout:
    """Read a generator's architecture.

    Args:
        shapes: official name -> shape.
        told: arguments of its constructor.
        where: names it in errors.

    Raises: TeacherError if it is no generator of StyleGAN2-ADA, or has a setting not known here.
    """
    return _read(_generator, shapes, told, where)


def discriminator_layout(
    shapes: Shapes, told: Mapping[str, Any], *, where: str
) -> DiscriminatorLayout:
    """Read a discriminator's architecture; arguments and errors as `generator_layout`."""
    return _read(_discriminator, shapes, told, where)


def _read(read: Callable[..., Any], shapes: Shapes, told: Mapping[str, Any], where: str) -> Any:
    try:
        return read(shapes, told)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        keys = ", ".join(sorted(shapes)[:3])
        raise TeacherError(
            f"{where}: not as StyleGAN2-ADA builds it ({type(error).__name__}: {error}; its keys "
            f"begin {keys})."
        ) from error


def _generator(shapes: Shapes, told: Mapping[str, Any]) -> GeneratorLayout:
    facts = _Settings(told, ("mapping_kwargs", "synthesis_kwargs"))
    sides = _resolutions(shapes, r"synthesis\.b(\d+)\.conv1\.weight")
    channels = tuple((side, shapes[f"synthesis.b{side}.conv1.weight"][0]) for side in sides)
    if sides[0] != 4 or shapes["synthesis.b4.const"] != (channels[0][1], 4, 4):
        raise ValueError(f"blocks of {sides} pixels")
    has_rgb = [f"synthesis.b{side}.torgb.weight" in shapes for side in sides]
    if "synthesis.b8.skip.weight" in shapes:
        architecture = "resnet"
    else:
        architecture = "skip" if all(has_rgb) else "orig"
    if not has_rgb[-1]:
        raise ValueError("no layer that gives RGB")
    colours = shapes[f"synthesis.b{sides[-1]}.torgb.weight"][0]
    if colours != 3:
        raise ValueError(f"images of {colours} channels, allowed 3")
    synthesis = facts.section("synthesis_kwargs")
    return GeneratorLayout(
        mapping=_mapping(shapes, facts.section("mapping_kwargs"), latent=facts.count("z_dim")),
        channels=channels,
        style=shapes["synthesis.b4.conv1.affine.weight"][1],
        architecture=architecture,
        activation=_activation(synthesis),
        clamp=_clamp(synthesis),
        noise="synthesis.b4.conv1.noise_strength" in shapes,
    )


def _discriminator(shapes: Shapes, told: Mapping[str, Any]) -> DiscriminatorLayout:
    facts = _Settings(told, ("block_kwargs", "mapping_kwargs", "epilogue_kwargs"))
    sides = _resolutions(shapes, r"b(\d+)\.conv1\.weight")[::-1]
    weights = [shapes[f"b{side}.conv1.weight"] for side in sides]
    if not sides or sides[-1] != 8:
        raise ValueError(f"blocks of {sides} pixels")
    if shapes[f"b{sides[0]}.fromrgb.weight"][1] != 3:
        raise ValueError("images that are not of 3 channels")
    architecture = "skip" if "b4.fromrgb.weight" in shapes else "orig"
    architecture = "resnet" if "b8.skip.weight" in shapes else architecture
    width = shapes["b4.conv.weight"][0]
    blocks, epilogue = facts.section("block_kwargs"), facts.section("epilogue_kwargs")
    top = {"conv_clamp": facts.top.get("conv_clamp")}
    group = epilogue.get("mbstd_group_size", 4)
    if group is not None and (type(group) is not int or group < 1):
        raise ValueError(f"mbstd_group_size {group!r:.40}")
    activation = _activation(blocks)
    if _activation(epilogue) != activation:
        raise ValueError("an epilogue of another activation")
    mapping = None
    if "mapping.fc0.weight" in shapes:
        mapping = _mapping(shapes, facts.section("mapping_kwargs"), latent=0)
    return DiscriminatorLayout(
        mapping=mapping,
        channels=tuple((s, w[1], w[0]) for s, w in zip(sides, weights, strict=True)),
        width=width,
        outputs=shapes["b4.out.weight"][0],
        architecture=architecture,
        activation=activation,
        clamp=_clamp(top),
        group=group,
        statistics=shapes["b4.conv.weight"][1] - weights[-1][0],
    )


def _mapping(shapes: Shapes, told: Mapping[str, Any], *, latent: int) -> MappingLayout:
    count = sum(bool(re.fullmatch(r"mapping\.fc\d+\.weight", name)) for name in shapes)
    layers = [shapes[f"mapping.fc{number}.weight"] for number in range(count)]
    embed, classes = shapes.get("mapping.embed.weight", (0, 0))
    wide, features = shapes.get("mapping.embed_feats.weight", (0, 0))
    if not layers or latent + embed + wide != layers[0][1]:
        raise ValueError(f"a mapping of z {latent}, class {embed}, instance {wide}")
    multiplier = told.get("lr_multiplier", 0.01)
    if type(multiplier) not in (int, float) or not 0 < multiplier < 1e6:
        raise ValueError(f"lr_multiplier {multiplier!r:.40}")
    return MappingLayout(
        latent=latent,
        classes=classes,
        features=features,
        widths=(layers[0][1], *(shape[0] for shape in layers)),
        embeds=(embed, wide),
        multiplier=float(multiplier),
        activation=_activation(told),
    )


class _Settings:
    """A constructor's settings, every name known."""

    def __init__(self, told: Mapping[str, Any], sections: tuple[str, ...]) -> None:
        self.top, self._sections = told, sections
        known = SIZES | INERT | {"architecture", "conv_clamp", "resample_filter"}
        below = {"lr_multiplier", "activation", "mbstd_group_size", "mbstd_num_channels"}
        _check(told, known | set(sections), "")
        for name in sections:
            _check(self.section(name), known | below | {"block_kwargs"}, f"{name}.")

    def section(self, name: str) -> Mapping[str, Any]:
        """Return one section's settings, {} where there are none."""
        values = self.top.get(name) or {}
        if not isinstance(values, dict):
            raise ValueError(f"{name}: {type(values).__name__}")
        inner = values.get("block_kwargs")
        return {**values, **inner} if isinstance(inner, dict) else values

    def count(self, name: str) -> int:
        """Return a whole number."""
        value = self.top.get(name)
        if type(value) is not int or not 0 <= value <= 1 << 20:
            raise ValueError(f"{name} {value!r:.40}")
        return value


def _check(told: Mapping[str, Any], known: set[str] | frozenset[str], prefix: str) -> None:
    unknown = [str(name) for name in told if name not in known]
    if unknown:
        raise ValueError(f"the setting {prefix}{unknown[0]:.80}, not known")
    architecture = told.get("architecture", "orig")
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture {architecture!r:.40}")


def _activation(told: Mapping[str, Any]) -> str:
    name = told.get("activation", ACTIVATIONS[0])
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r:.40}, allowed {', '.join(ACTIVATIONS)}")
    return name


def _clamp(told: Mapping[str, Any]) -> float | None:
    limit = told.get("conv_clamp")
    if limit is not None and (type(limit) not in (int, float) or not limit > 0):
        raise ValueError(f"conv_clamp {limit!r:.40}")
    return None if limit is None else float(limit)


def _resolutions(shapes: Shapes, pattern: str) -> list[int]:
    """Return the blocks' resolutions, which double from one to the next."""
    sides = sorted(int(match[1]) for name in shapes if (match := re.fullmatch(pattern, name)))
    if not sides or any(b != 2 * a for a, b in itertools.pairwise(sides)):
        raise ValueError(f"blocks of {sides} pixels, not doubling")
    return sides
