"""Try an untrained student before anybody trains it: images it takes, names it can be kept under.

Shapes are tried on PyTorch's "meta" device, on which tensors have no values, and which takes no
time and memory worth mentioning. Networks that compute with values on the way are tried with them.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from distill.students.backbones import is_ours
from distill.students.export import write_timm_config
from distill.students.timm_names import full_names, whole_network
from dreamshard.errors import ConfigError, Problem
from dreamshard.foreign.networks import number_of_weights

if TYPE_CHECKING:
    from distill.configs.student import StudentConfig
    from distill.students.student import Student

REFUSALS = (AssertionError, RuntimeError, ValueError, TypeError, IndexError)
"""What networks raise at images they do not take."""


def without_values(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a module's parameters and buffers as tensors without values, and the former alone."""
    places: dict[str, Tensor] = {}
    empty: dict[int, Tensor] = {}
    for prefix, part in module.named_modules():  # a module used twice comes once
        for name, value in (*part._parameters.items(), *part._buffers.items()):
            if value is not None:
                if id(value) not in empty:  # tied weights stay tied
                    shape = torch.empty_like(value, device="meta")
                    empty[id(value)] = shape.requires_grad_(value.requires_grad)
                places[f"{prefix}.{name}" if prefix else name] = empty[id(value)]
    return places, {name: empty[id(value)] for name, value in module.named_parameters()}


def call_without_values(module: nn.Module, places: Mapping[str, Tensor], *inputs: object) -> Any:
    """Run a module's forward pass on what `without_values` made of its tensors."""
    # Told to tie weights, PyTorch leaves empty tensors behind in modules that are used twice.
    return functional_call(module, dict(places), inputs, tie_weights=False)


def reason_of(error: BaseException) -> str:
    """Return the first line of what a network raised."""
    return str(error).partition("\n")[0] or f"{type(error).__name__} without a word"


def check_takes(student: Student, *, name: str, image_size: tuple[int, int]) -> None:
    """Refuse a student that does not take two images of a size, while it is trained.

    Args:
        student: on the CPU; its mode and values are left as they were.
        name: of the backbone, for the message.
        image_size: (H, W) in pixels.

    Raises:
        ConfigError: with what the network says.
    """
    mode, shape = student.training, (2, 3, *image_size)
    student.train()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            try:
                places, _ = without_values(student)
                call_without_values(student, places, torch.zeros(*shape, device="meta"))
            except Exception:  # also that of a network that computes with values
                copy.deepcopy(student)(torch.zeros(*shape))
    except REFUSALS as error:
        height, width = image_size
        got = f"{name!r}, which does not take images of {height}x{width} ({reason_of(error)})"
        hint = (
            "Choose another student, or images of another size (--data.crop, or `dreamshard encode "
            "--image.size`)."
        )
        raise ConfigError(
            Problem("student.name", got, "a network that takes the dataset's images", hint)
        ) from error
    finally:
        student.train(mode)


def check_kept(student: Student, *, config: StudentConfig, image_size: tuple[int, int]) -> None:
    """Refuse a student that could not be exported once it is trained.

    Args:
        student: untrained.
        config: what it was built from.
        image_size: (H, W) in pixels.

    Raises:
        ConfigError: parameters that timm's whole network does not have, or has of another shape.
    """
    if is_ours(config.name):
        return
    mine = student.backbone.state_dict()
    whole = whole_network(config, image_size=image_size)
    theirs = whole.state_dict()
    names = full_names(mine, theirs)
    odd = [n for n in mine if n not in names or theirs[names[n]].shape != mine[n].shape]
    if odd:
        got = f"{config.name!r}, of which timm's whole network has not {', '.join(odd[:3])}"
        got += f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        allowed = "a network that can be exported under timm's names"
        raise ConfigError(Problem("student.name", got, allowed, "Choose another student."))
    with tempfile.TemporaryDirectory() as folder:
        try:
            write_timm_config(
                whole,
                Path(folder) / "config.json",
                size=image_size,
                mean=student.mean,
                std=student.std,
            )
        except (TypeError, ValueError) as error:
            got = f"{config.settings}, which config.json cannot hold ({reason_of(error)})"
            raise ConfigError(Problem("student.settings", got, "plain values")) from error


def untrained_share(
    student: Student,
    *,
    config: StudentConfig,
    image_size: tuple[int, int],
    idle: Collection[str] = (),
) -> float:
    """Return which share of the whole network's weights (0..1) nothing will train.

    Args:
        student: has what its maps need, and no more.
        config: what it was built from.
        image_size: (H, W) in pixels.
        idle: names of its parameters that get no gradient.
    """
    weights = dict(student.named_parameters())
    learning = sum(
        value.numel()
        for name, value in weights.items()
        if name.startswith("backbone.") and name not in idle
    )
    network: nn.Module = student.backbone
    if not is_ours(config.name):
        network = whole_network(config, image_size=image_size)
    total = number_of_weights(network)
    return 1 - learning / total if total else 0.0
