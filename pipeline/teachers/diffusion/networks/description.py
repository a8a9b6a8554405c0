"""What is known of a diffusion network before loading it, and how diffusers builds it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.errors import Problem, TeacherError
from dreamshard.foreign import trusted
from pipeline.teachers import weights
from pipeline.teachers.diffusion.networks.accepted import TABLES, check_size
from pipeline.teachers.diffusion.schedules import Schedule
from pipeline.teachers.recording.teacher import NetworkDescription

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Network(ABC):
    """A loaded network in its own space: pixels in [-1, 1], or latents of an autoencoder."""

    def __init__(self, module: Any, vae: Any = None) -> None:
        self.module, self._vae = module, vae

    @abstractmethod
    def __call__(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Run one forward pass: x (N, C, H, W), time (N,), labels int64 (N,) -> raw output."""

    def to_space(self, pixels: Tensor) -> Tensor:
        """Turn pixels (N, 3, H, W) in [-1, 1] into x_0."""
        return pixels if self._vae is None else self._vae.to_space(pixels)

    def to_pixels(self, x0: Tensor) -> Tensor:
        """Turn x_0 into pixels (N, 3, H, W), nominally in [-1, 1]."""
        return x0 if self._vae is None else self._vae.to_pixels(x0)


@dataclass(frozen=True, kw_only=True)
class Description(NetworkDescription):
    """Everything known about a diffusion network before its weights are loaded.

    `load` returns a `Network`.
    """

    schedule: Schedule
    space: tuple[int, int, int]
    """Shape of x_t per sample (C, H, W)."""
    null_class: int | None = None
    """Label that means "no class", where training used one."""
    latent: bool = False
    """Whether x_0 is a VAE's latent instead of pixels."""
    vae: str = ""
    """What identifies the autoencoder whose latents x_0 is, for latents that are kept."""
    clean: bool = False
    """Whether it reads clean images, without noise and at no timestep."""
    exact: bool = False
    """Whether float32 keeps the official code's order of operations (and its slower layout)."""

    @property
    def num_timesteps(self) -> int | None:
        """Return the diffusion steps (count); None for a clean teacher, which is told none."""
        return None if self.clean else len(self.schedule)

    def summary(self) -> list[str]:
        """Say what it predicts, and what it works on."""
        if self.clean:
            return ["reads clean images in one pass: no noise, no timestep"]
        lines = [f"{self.schedule.prediction}, timesteps 0..{len(self.schedule) - 1}"]
        if self.latent:
            channels, rows, columns = self.space
            lines.append(f"works on latents of {channels}x{rows}x{columns}")
        return lines

    def example(self, device: str) -> tuple[Tensor | None, ...]:
        """Return x_t, time and labels of one sample."""
        import torch

        labels = torch.zeros(1, dtype=torch.int64, device=device) if self.classes else None
        return torch.zeros((1, *self.space), device=device), torch.zeros(1, device=device), labels


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what a library version writes into a config: it does not decide the computation."""
    kept = {key: value for key, value in config.items() if not key.startswith("_")}
    return {**kept, "class": config.get("_class_name")}


def build(
    name: str,
    config: Mapping[str, Any],
    files: tuple[Path, ...],
    dtype: torch.dtype,
    *,
    state: Mapping[str, Tensor] | None = None,
) -> Any:
    """Build a model of diffusers from its config and weights, frozen, without random weights.

    Args:
        name: of the class in diffusers.
        config: of the model.
        files: its weights; the first one names it in errors.
        dtype: of the computation.
        state: the weights, where the files have them under other names.

    Raises: TeacherError if config and weights do not fit, or the weights are damaged.
    """
    from accelerate import init_empty_weights

    if state is None:
        state = weights.modern_names(weights.read(files))
    check_size(config, sum(value.numel() for value in state.values()), where=str(files[0]))
    try:
        with init_empty_weights():
            module = _class(name).from_config(dict(config))
    # What diffusers raises on a config that contradicts itself depends on where it notices.
    except Exception as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise TeacherError(f"{files[0]}: its config cannot be built ({why}).") from error
    return weights.load_into(module, state, where=str(files[0]), dtype=dtype)


def _class(name: str) -> Any:
    """Return a class of diffusers, or ours that extends one."""
    import diffusers

    from pipeline.teachers.diffusion.networks import conditioned

    owner = conditioned if name == conditioned.CONDITIONED else diffusers
    return trusted.attribute(owner, name, allowed=TABLES)


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
