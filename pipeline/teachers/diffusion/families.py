"""What a diffusion family must tell and do, and the table of families.

A family is one file with a `describe(path, settings, image_size)` that reads only small files and
returns a `Description`; its `load` builds the `Network`. Everything else (noise, timesteps, draws,
inversion, sampling, pooling, dtypes) is written once, in `diffusion.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from dreamshard.errors import ConfigError, Problem, TeacherError
from pipeline.teachers import weights
from pipeline.teachers.base import Scalar
from pipeline.teachers.diffusion import checkpoints
from pipeline.teachers.diffusion.schedules import Schedule
from pipeline.teachers.recording.taps import Tap

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

CARD = "teacher_card.json"
"""File beside the weights that says where they come from; its `licence` goes with every dataset."""

FAMILIES: dict[str, str] = {
    "UNet2DModel": "pipeline.teachers.diffusion.networks.unet",
    "UNet2DConditionModel": "pipeline.teachers.diffusion.networks.latent",
    "DiTTransformer2DModel": "pipeline.teachers.diffusion.networks.dit",
    "SD3Transformer2DModel": "pipeline.teachers.diffusion.networks.sd3",
    "FluxTransformer2DModel": "pipeline.teachers.diffusion.networks.flux",
}
"""`_class_name` of a diffusers config.json -> the module that describes it."""

PARTS = ("unet", "transformer")
"""Subfolders of a pipeline folder that may hold the network."""


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


class Family(Protocol):
    """A module in `FAMILIES`."""

    SETTINGS: Mapping[str, Scalar]

    def describe(
        self, path: Path, settings: Mapping[str, Scalar], image_size: tuple[int, int] | None
    ) -> Description:
        """Describe the network at a path, whose settings are checked by name already."""
        ...


def find_family(path: Path) -> tuple[Family, Path]:
    """Find out which family a path holds.

    Args:
        path: a folder saved by save_pretrained (a model or a whole pipeline), or a checkpoint file.

    Returns:
        the family's module, and the folder or file it reads.

    Raises:
        ConfigError: the path does not exist.
        TeacherError: it exists but holds no known network.
    """
    if not path.exists():
        hint = "Give a folder saved by save_pretrained or a checkpoint file."
        raise ConfigError(Problem("path", str(path) or "''", "an existing path", hint))
    if path.is_file():
        if path.suffix not in weights.SAFE + weights.PICKLED:
            allowed = ", ".join(weights.SAFE + weights.PICKLED)
            raise ConfigError(Problem("path", str(path), f"a folder, or a file of {allowed}"))
        if _holds_network(path.parent / "config.json"):  # saved by save_pretrained: it tells all
            return find_family(path.parent)
        _refuse_generator(path)
        return _module(checkpoints.family_of(path)), path
    _refuse_generator(path)
    for folder in (path, *(path / part for part in PARTS)):
        if (folder / "config.json").is_file():
            name = str(weights.read_json(folder / "config.json").get("_class_name"))
            if name in FAMILIES:
                return _module(FAMILIES[name]), folder
            raise TeacherError(
                f"{folder / 'config.json'}: _class_name: got {name}, "
                f"allowed {', '.join(FAMILIES)}. Point teacher.path at the denoising network."
            )
    raise TeacherError(
        f"{path}: no config.json here or in {', '.join(PARTS)}. "
        "Give a folder saved by save_pretrained, or a checkpoint file."
    )


def _refuse_generator(path: Path) -> None:
    kind = checkpoints.kind_of(path)
    if kind != "diffusers":
        raise TeacherError(f"{path}: it is a generator. Set teacher.kind to {kind}.")


def _holds_network(config: Path) -> bool:
    return config.is_file() and weights.read_json(config).get("_class_name") in FAMILIES


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


def licence(folder: Path) -> str:
    """Read the licence from the card beside the weights."""
    for place in (folder, folder.parent):
        if (place / CARD).is_file():
            return str(weights.read_json(place / CARD).get("licence", "unknown"))
    return "unknown"


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


def _module(name: str) -> Family:
    return cast(Family, importlib.import_module(name))
