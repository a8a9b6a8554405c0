"""Relate a feature extractor's parameters to those of the whole timm network.

timm renames parameters where it takes a network apart (`stages.0.x` becomes `stages_0.x`). Layer
decay, freezing and export speak of the whole network's names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distill.students.backbones import construct, is_ours
from dreamshard.errors import ConfigError, Problem

if TYPE_CHECKING:
    from distill.configs.student import StudentConfig


WRAPPERS = ("model", "body")
"""Under which timm's feature extractors hold a network that they leave whole."""


def whole_network(
    config: StudentConfig, *, image_size: tuple[int, int] | None = None, device: str = "meta"
) -> nn.Module:
    """Build the whole network that a backbone is a part of, without a classifier.

    Args:
        config: name and settings.
        image_size: (H, W) in pixels, as for the backbone.
        device: "meta" for names and shapes alone.
    """
    with torch.device(device):
        return construct(config, out_indices=None, image_size=image_size)


def full_names(part: Iterable[str], whole: Iterable[str]) -> dict[str, str]:
    """Map a feature extractor's names to the whole network's.

    Args:
        part: names of the extractor's parameters and buffers.
        whole: names of the whole network's.

    Returns:
        Extractor's name to whole name, for every name that both have.
    """
    known = set(part)
    full = {}
    for name in whole:
        pieces = name.split(".")
        for count in range(1, len(pieces)):
            renamed = ".".join(["_".join(pieces[:count]), *pieces[count:]])
            if renamed in known:
                full[renamed] = name
        for wrapper in WRAPPERS:
            if f"{wrapper}.{name}" in known:
                full[f"{wrapper}.{name}"] = name
    return full


def exempt_names(
    backbone: nn.Module, config: StudentConfig, *, image_size: tuple[int, int] | None = None
) -> set[str]:
    """Name a backbone's parameters that the whole network says must not decay.

    Where timm takes a network apart (Swin, MaxViT, CoAtNet, ...), nobody is left to ask.

    Args:
        backbone: as built from the config.
        config: name and settings.
        image_size: (H, W) in pixels, as the backbone was built for.
    """
    whole = backbone if is_ours(config.name) else whole_network(config, image_size=image_size)
    exempt = exempt_in(whole)
    if whole is backbone:
        return exempt
    names = [name for name, _ in backbone.named_parameters(remove_duplicate=False)]
    return {name for name, full in full_names(names, exempt).items() if full in exempt}


def exempt_in(module: nn.Module) -> set[str]:
    """Name the parameters that networks inside a module say must not decay (timm's convention)."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, inner in module.named_modules()
        if callable(getattr(inner, "no_weight_decay", None))
        for name in inner.no_weight_decay()  # pyright: ignore[reportCallIssue, reportGeneralTypeIssues]
    }


def aliases(module: nn.Module) -> dict[str, list[str]]:
    """List all names of each parameter of a module, under every one of them (tied weights)."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: same for same in names.values() for name in same}


def layer_numbers(
    backbone: nn.Module,
    config: StudentConfig,
    *,
    image_size: tuple[int, int] | None = None,
    coarse: bool = False,
) -> dict[str, int]:
    """Number a backbone's layers by depth, as timm groups them.

    Args:
        backbone: as built from the config.
        config: name and settings.
        image_size: (H, W) in pixels, as the backbone was built for.
        coarse: number stages instead of blocks.

    Returns:
        The backbone's parameter names to 0 (the stem), 1, 2, ...

    Raises:
        ConfigError: a network that timm does not know the layers of.
    """
    from timm.models._manipulate import group_parameters

    names = [name for name, _ in backbone.named_parameters()]
    whole: Any = backbone if is_ours(config.name) else whole_network(config, image_size=image_size)
    matcher = getattr(whole, "group_matcher", None)
    if matcher is None:
        allowed = "a network with timm's group_matcher, for layer decay and frozen stages"
        raise ConfigError(Problem("student.name", repr(config.name), allowed))
    numbers: Mapping[str, int] = group_parameters(whole, matcher(coarse=coarse), reverse=True)
    order = {number: place for place, number in enumerate(sorted(set(numbers.values())))}
    if whole is backbone:
        return {name: order[numbers[name]] for name in names}
    full = full_names(names, numbers)
    tied = [name for name in names if name not in full]  # timm counts tied weights under one name
    if tied:
        same = aliases(backbone)  # under names of its own where it was taken apart
        full |= {name: full[other] for name in tied for other in same[name] if other in full}
    return {name: order[numbers[full[name]]] for name in names}


def freeze(
    backbone: nn.Module, config: StudentConfig, *, image_size: tuple[int, int] | None
) -> list[nn.Module]:
    """Freeze the leading parts of a backbone.

    Args:
        backbone: as built from the config.
        config: how many parts, `frozen_stages`.
        image_size: (H, W) in pixels, as the backbone was built for.

    Returns:
        The modules all of whose parameters are frozen.

    Raises:
        ConfigError: more stages than the backbone has, or none left to train.
    """
    numbers = layer_numbers(backbone, config, image_size=image_size, coarse=True)
    stages = len(set(numbers.values()))
    if config.frozen_stages >= stages:
        got, allowed = (
            str(config.frozen_stages),
            f"0..{stages - 1}, as {config.name!r} has {stages}",
        )
        raise ConfigError(Problem("student.frozen_stages", got, f"{allowed} with the stem"))
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(numbers[name] >= config.frozen_stages)
    return [
        module
        for module in backbone.modules()
        if (weights := list(module.parameters())) and not any(w.requires_grad for w in weights)
    ]
