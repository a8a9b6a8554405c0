"""Construct backbones by name: timm's or torchvision's, our small ones, the user's own class."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distill.tables import load_part
from dreamshard.errors import ConfigError, DataError, DreamshardError, Problem
from dreamshard.foreign.networks import bounded, one_reason
from dreamshard.foreign.text import read_json

if TYPE_CHECKING:
    from distill.configs.student import StudentConfig

BACKBONES = {
    "cifar_resnet": "pipeline.teachers.timm.small_resnet:CifarResNet",
    "cifar_resnet18": "pipeline.teachers.timm.small_resnet:cifar_resnet18",
}
"""Backbones that timm does not have; any other name without a colon is asked of timm.

Such a class takes `out_indices` beside its own settings, and has timm's `feature_info`.
"""
RESERVED = (
    "features_only", "out_indices", "pretrained", "num_classes", "in_chans", "checkpoint_path",
    "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict",
)  # fmt: skip
"""Settings that other settings stand for, or by which timm would read further files."""
TORCHVISION = "torchvision/"


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


def timm_name(name: str) -> str:
    """Return timm's name of a network; torchvision's ResNets are the same there, keys included."""
    return name.removeprefix(TORCHVISION)


def is_ours(name: str) -> bool:
    """Tell whether a backbone is ours or the user's own, rather than timm's."""
    return name in BACKBONES or ":" in name


def available_maps(
    config: StudentConfig, *, image_size: tuple[int, int] | None = None
) -> list[MapInfo]:
    """List the maps a backbone itself can give, without initialising its weights.

    Args:
        config: its name and settings.
        image_size: (H, W) in pixels, for networks that are built for one size.

    Raises:
        ConfigError: unknown name, or settings the network does not take.
    """
    with torch.device("meta"):
        network = construct(config, out_indices=None, image_size=image_size)
    info: Any = getattr(network, "feature_info", None)
    if not info:
        allowed = "a network that records its feature maps (timm's feature_info)"
        raise ConfigError(Problem("student.name", repr(config.name), allowed))
    entries: list[dict[str, Any]] = info if isinstance(info, list) else info.get_dicts()
    return [
        MapInfo(index, int(entry["reduction"]), int(entry["num_chs"]))
        for index, entry in enumerate(entries)
    ]


def is_plain(maps: Sequence[MapInfo]) -> bool:
    """Tell a plain transformer, all of whose maps have one stride, from a hierarchy."""
    return len(maps) > 1 and len({info.stride for info in maps}) == 1


def construct(
    config: StudentConfig,
    *,
    out_indices: tuple[int, ...] | None,
    image_size: tuple[int, int] | None = None,
    plain: bool = False,
) -> nn.Module:
    """Build a network: whole (without classifier) if `out_indices` is None, else its maps.

    Args:
        config: name and settings.
        out_indices: numbers of the maps it shall return.
        image_size: (H, W) in pixels, given to networks that are built for one size.
        plain: it is a plain transformer: its last map is returned, after the final norm.

    Raises:
        ConfigError: unknown name, or settings the network does not take.
    """
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in config.settings.items()}
    reserved = [key for key in RESERVED if key in settings]
    if reserved:
        key, hint = reserved[0], "student.strides chooses maps, student.pretrained weights."
        if key == "in_chans":
            hint = "Images have three channels here; grey ones have three alike."
        allowed = "settings of the network itself"
        raise ConfigError(Problem(f"student.settings.{key}", repr(settings[key]), allowed, hint))
    if config.drop_path:
        settings["drop_path_rate"] = config.drop_path
    _check_no_address(config.name)
    if config.pretrained and is_ours(config.name):
        hint = "Start from weights of your own with --student.weights."
        allowed = f"false with {config.name!r}, of which timm has none"
        raise ConfigError(Problem("student.pretrained", "true", allowed, hint))
    own = _class(config.name) if is_ours(config.name) else None
    try:
        with bounded(settings):
            if own is not None:
                return own(out_indices=out_indices, **settings)
            _check_name(config.name)
            sized = image_size is not None and takes_size(config.name, image_size=image_size)
            if sized and "img_size" not in settings:
                settings["img_size"] = image_size
            return _construct_timm(config, settings=settings, out_indices=out_indices, plain=plain)
    except (DreamshardError, OSError, MemoryError):
        raise
    except Exception as error:  # what a constructor makes of settings that it does not know
        key = "student.settings" if settings else "student.name"
        got = f"{settings if settings else config.name!r} ({one_reason(error)})"
        hint = "See the network's constructor for their names."
        raise ConfigError(
            Problem(key, got, f"settings that {config.name!r} takes", hint)
        ) from error


def _class(name: str) -> type:
    """Import a class of our table or of the user's own.

    Raises:
        ConfigError: the path leads to none.
    """
    try:
        return load_part(name, table=BACKBONES)
    except (ImportError, AttributeError) as error:
        what = f"{name!r} ({error})"
        raise ConfigError(Problem("student.name", what, "module:Class to import")) from error


def _check_no_address(name: str) -> None:
    """Refuse addresses of weights: a name says which network, another setting which weights.

    Raises:
        ConfigError: with the two settings.
    """
    kind, colon, where = name.partition(":")
    hub = "hf-hub" if kind == "hf_hub" else kind
    if colon and hub == "local-dir":
        hint = f"Set --student.weights {name} and --student.name {_architecture(where)}."
    elif (colon and hub == "hf-hub") or (not colon and name.startswith("timm/")):
        owner, _, model = (where or name).partition("/")
        hint = f"Set --student.name {model} and --student.pretrained true."
        if owner != "timm":
            hint = "Download it and set --student.weights FOLDER and --student.name NETWORK."
    else:
        return
    raise ConfigError(Problem("student.name", repr(name), "the name of a network", hint))


def _architecture(folder: str) -> str:
    """Return the network that a folder's config.json names."""
    try:
        return str(read_json(Path(folder) / "config.json")["architecture"])
    except (DataError, KeyError, TypeError):
        return "NETWORK"


def _check_name(name: str) -> None:
    import timm

    if timm.is_model(timm_name(name).partition(".")[0]):
        return
    close = difflib.get_close_matches(timm_name(name), [*BACKBONES, *timm.list_models()], n=3)
    hint = f"Did you mean {' or '.join(close)}?" if close else "See timm.list_models()."
    allowed = f"a timm network, {', '.join(BACKBONES)}, or module:Class"
    raise ConfigError(Problem("student.name", repr(name), allowed, hint))


def takes_size(name: str, *, image_size: tuple[int, int]) -> bool:
    """Tell whether a timm network is built for one image size, as most transformers are.

    Args:
        name: timm's or torchvision's.
        image_size: (H, W) in pixels to try it with.
    """
    import timm

    cfg = timm.get_pretrained_cfg(timm_name(name), allow_unregistered=True)
    if cfg is None or not cfg.fixed_input_size:
        return False
    try:
        with torch.device("meta"):
            timm.create_model(timm_name(name), pretrained=False, img_size=image_size)
    except TypeError:
        return False
    return True


def _without_dead_end(network: nn.Module) -> nn.Module:
    """Drop the stages after the deepest map, which timm's EfficientNets and MobileNetV3s keep.

    They would run forward at every step and get no gradient, with which DDP stops.
    """
    stages: Mapping[int, int] | None = getattr(network, "_stage_out_idx", None)
    blocks = getattr(network, "blocks", None)
    if stages and isinstance(blocks, nn.Sequential):
        network.blocks = blocks[: max(stages)]
    return network


def _construct_timm(
    config: StudentConfig,
    *,
    settings: Mapping[str, Any],
    out_indices: tuple[int, ...] | None,
    plain: bool,
) -> nn.Module:
    import timm
    from timm.models._features import FeatureGetterNet

    name = timm_name(config.name)
    if out_indices is None:
        return timm.create_model(name, pretrained=False, num_classes=0, **settings)
    try:
        if plain:  # the whole network, so that what is exported has its trained final norm
            network = timm.create_model(
                name, pretrained=config.pretrained, num_classes=0, **settings
            )
            return FeatureGetterNet(network, out_indices=1, norm=True)
        network = timm.create_model(
            name,
            pretrained=config.pretrained,
            features_only=True,
            out_indices=out_indices,
            **settings,
        )
        return _without_dead_end(network)
    except (OSError, RuntimeError) as error:
        if not config.pretrained:
            raise
        reason = str(error).partition("\n")[0]
        hint = "Try --student.pretrained false, or make the weights available to timm."
        allowed = f"false, as the weights of {config.name!r} cannot be had ({reason})"
        raise ConfigError(Problem("student.pretrained", "true", allowed, hint)) from error
