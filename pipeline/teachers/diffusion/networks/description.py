"""What is known of a diffusion network before loading it, and how diffusers builds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dreamshard.errors import Problem, TeacherError
from pipeline.teachers import weights
from pipeline.teachers.diffusion.schedules import Schedule
from pipeline.teachers.recording.taps import Tap

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Network(Protocol):
    """A loaded network in its own space: pixels in [-1, 1] or latents."""

    module: nn.Module

    def __call__(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Run one forward pass: x (N, C, H, W), time (N,), labels int64 (N,) -> raw output."""
        ...

    def to_space(self, pixels: Tensor) -> Tensor:
        """Turn pixels (N, 3, H, W) in [-1, 1] into x_0."""
        ...

    def to_pixels(self, x0: Tensor) -> Tensor:
        """Turn x_0 into pixels (N, 3, H, W), nominally in [-1, 1]."""
        ...


@dataclass(frozen=True, kw_only=True)
class Description:
    """Everything known about a teacher before its weights are loaded."""

    family: str
    image_size: tuple[int, int]
    """Height and width in pixels."""
    taps: tuple[Tap, ...]
    aliases: Mapping[str, str]
    """Further names of taps, `s8` -> `up.1`."""
    schedule: Schedule
    weights: tuple[Path, ...]
    """Files that decide the fingerprint."""
    architecture: Mapping[str, Any]
    """JSON-able facts that decide the computation, flags included."""
    space: tuple[int, int, int]
    """Shape of x_t per sample (C, H, W)."""
    load: Callable[[torch.dtype], Network]
    classes: int = 0
    """Number of class labels the network is conditioned on; 0 = none."""
    null_class: int | None = None
    """Label that means "no class", where training used one."""
    latent: bool = False
    """Whether x_0 is a VAE's latent instead of pixels."""
    exact: bool = False
    """Whether float32 keeps the official code's order of operations (and its slower layout)."""
    licence: str = "unknown"
    notes: tuple[str, ...] = field(default=())
    """Sentences worth showing in an inspection."""


def scheduler_config(folder: Path) -> dict[str, Any]:
    """Read the scheduler's config beside a network; {} (DDPM's defaults) if there is none."""
    for place in (folder / "scheduler", folder.parent / "scheduler", folder):
        if (place / "scheduler_config.json").is_file():
            return weights.read_json(place / "scheduler_config.json")
    return {}


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what a library version writes into a config: it does not decide the computation."""
    kept = {key: value for key, value in config.items() if not key.startswith("_")}
    return {**kept, "class": config.get("_class_name")}


def build(cls: Any, config: Mapping[str, Any], files: tuple[Path, ...], dtype: torch.dtype) -> Any:
    """Build a diffusers model from its config and weights, in eval mode, without random weights.

    Raises: TeacherError if config and weights do not fit, or the weights are damaged.
    """
    state = weights.modern_names(weights.read(files))
    return build_from(cls, config, state, dtype, where=str(files[0]))


def build_from(
    cls: Any,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    dtype: torch.dtype,
    *,
    where: str,
) -> Any:
    """Build a diffusers model from its config and a state dict; `where` names it in errors."""
    import torch
    from accelerate import init_empty_weights

    try:
        with init_empty_weights():
            module = cls.from_config(dict(config))
    except (TypeError, ValueError, KeyError) as error:
        raise TeacherError(f"{where}: its config cannot be built: {error}") from error
    weights.load_into(module, state, where=where)
    # torch's own `to`: that of diffusers warns about modules it would keep in float32, even none.
    return torch.nn.Module.to(module, dtype=dtype).eval().requires_grad_(False)


def fit_image_size(
    asked: tuple[int, int] | None, own: object, multiple: int
) -> tuple[tuple[int, int], list[Problem]]:
    """Choose the image size and check that the network's strides divide it.

    Args:
        asked: (height, width) in pixels, or None for the model's own.
        own: the model's own size as its config spells it: int, pair or None.
        multiple: coarsest stride of the network, in pixels.
    """
    if asked is None and isinstance(own, int):
        asked = (own, own)
    if asked is None and isinstance(own, (list, tuple)) and len(own) == 2:
        asked = (int(own[0]), int(own[1]))
    if asked is None:
        hint = "The model does not say its own: set the image size."
        return (multiple, multiple), [Problem("image_size", "nothing", "pixels", hint)]
    if any(side % multiple or side < multiple for side in asked):
        allowed = f"multiples of {multiple} (the network's coarsest stride)"
        return asked, [Problem("image_size", f"{asked[0]}x{asked[1]}", allowed)]
    return asked, []
