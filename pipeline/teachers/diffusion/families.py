"""The table of diffusion families, and which of them a path holds.

A family is one file with a `describe(path, settings, image_size)` that reads only small files and
returns a `Description`; its `load` builds the `Network`. Everything else (noise, timesteps, draws,
inversion, sampling, pooling, dtypes) is written once, in `diffusion/teacher.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

from dreamshard.errors import ConfigError, Problem, TeacherError
from dreamshard.foreign import trusted
from pipeline.teachers import weights
from pipeline.teachers.base import Scalar
from pipeline.teachers.diffusion import checkpoints
from pipeline.teachers.diffusion.networks.description import Description
from pipeline.teachers.diffusion.siblings import check_siblings

FAMILIES: dict[str, str] = {
    "UNet2DModel": "pipeline.teachers.diffusion.networks.unet",
    "SelfConditionedUNet2DModel": "pipeline.teachers.diffusion.networks.unet",
    "UNet2DConditionModel": "pipeline.teachers.diffusion.networks.latent",
    "DiTTransformer2DModel": "pipeline.teachers.diffusion.networks.dit",
    "SD3Transformer2DModel": "pipeline.teachers.diffusion.networks.sd3",
    "FluxTransformer2DModel": "pipeline.teachers.diffusion.networks.flux",
}
"""`_class_name` of a diffusers config.json -> the module that describes it."""

MODULES = {name: name for name in (*FAMILIES.values(), *dict(checkpoints.MARKS).values())}
PARTS = ("unet", "transformer")
"""Subfolders of a pipeline folder that may hold the network."""


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
        config = path.parent / "config.json"
        if config.is_file() and weights.read_json(config).get("_class_name") in FAMILIES:
            return find_family(path.parent)  # saved by save_pretrained: the config tells all
    kind = checkpoints.kind_of(path)
    if kind != "diffusers":
        what = {"timm": "a network of timm", "student": "a student"}.get(kind, "a generator")
        raise TeacherError(f"{path}: it is {what}. Set teacher.kind to {kind}.")
    if path.is_file():
        return _module(checkpoints.family_of(path)), path
    for folder in (path, *(path / part for part in PARTS)):
        if (folder / "config.json").is_file():
            name = str(weights.read_json(folder / "config.json").get("_class_name"))
            if name in FAMILIES:
                check_siblings(folder, name, chosen=folder == path)
                return _module(FAMILIES[name]), folder
            raise TeacherError(
                f"{folder / 'config.json'}: _class_name: got {name}, "
                f"allowed {', '.join(FAMILIES)}. Point teacher.path at the denoising network."
            )
    raise TeacherError(
        f"{path}: no config.json here or in {', '.join(PARTS)}. "
        "Give a folder saved by save_pretrained, or a checkpoint file."
    )


def _module(name: str) -> Family:
    return cast(Family, trusted.listed(name, table=MODULES))
