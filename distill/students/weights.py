"""Weights of one's own to start a student from: another run's student, timm's folder, a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from distill.students.backbones import is_ours, timm_name
from distill.students.card import CARD, STUDENT_FOLDER
from distill.students.timm_names import full_names, whole_network
from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.foreign.arrays import read_safetensors
from dreamshard.foreign.text import read_json
from dreamshard.foreign.trusted import is_import_path

if TYPE_CHECKING:
    from distill.configs.student import StudentConfig

LOCAL = "local-dir:"
WEIGHTS, PYRAMID = "model.safetensors", "pyramid.safetensors"
KEY = "student.weights"


@dataclass(frozen=True)
class StartWeights:
    """Hold what a student starts from.

    Args:
        path: of the file.
        tensors: of the backbone, under the whole network's names.
        pyramid: of the maps of a plain transformer, if there are any.
        name: of the network they are of; "": the file does not say.
        mean, std: of its images per channel, pixels in 0..1; empty: not known.
    """

    path: Path
    tensors: dict[str, Tensor]
    pyramid: dict[str, Tensor] = field(default_factory=dict)
    name: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def read_weights(where: str) -> StartWeights:
    """Read weights to start from.

    Args:
        where: a run folder, a student's folder, timm's folder (with or without `local-dir:` before
            it) or a .safetensors file.

    Raises:
        ConfigError: nothing of the kind is there, or it cannot be read.
    """
    path = Path(where.removeprefix(LOCAL))
    if path.is_dir() and (path / STUDENT_FOLDER / CARD).exists():
        path = path / STUDENT_FOLDER
    file = path / WEIGHTS if path.is_dir() else path
    if file.suffix != ".safetensors" or not file.is_file():
        allowed = f"a run folder, a folder with {WEIGHTS}, or a .safetensors file"
        hint = "Other formats become one by safetensors.torch.save_file(state_dict, FILE)."
        raise ConfigError(Problem(KEY, repr(where), allowed, hint))
    try:
        about = _about(path) if path.is_dir() else {}
        pyramid = path / PYRAMID
        return StartWeights(
            path=file,
            tensors=read_safetensors(file),
            pyramid=read_safetensors(pyramid) if path.is_dir() and pyramid.exists() else {},
            **about,
        )
    except (OSError, DataError, ValueError, KeyError, TypeError, AttributeError) as error:
        got = f"{where!r}, which cannot be read ({error})"
        raise ConfigError(Problem(KEY, got, "whole files")) from error


def load_weights(
    given: StartWeights,
    backbone: nn.Module,
    neck: nn.Module | None,
    *,
    config: StudentConfig,
    image_size: tuple[int, int] | None,
) -> None:
    """Put weights into a student's backbone and pyramid, all of them or none.

    Of a classifier, and of stages deeper than the student's maps, nothing is taken.

    Args:
        given: what is there.
        backbone, neck: of the student.
        config: what it was built from.
        image_size: (H, W) in pixels, as for the backbone.

    Raises:
        ConfigError: weights of another network, missing ones, ones of another shape, or ones that
            nobody knows.
    """
    ours, asked = is_ours(config.name), timm_name(config.name).partition(".")[0]
    if given.name and asked != timm_name(given.name).partition(".")[0]:
        # A file may name any code: only what cannot be any is worth copying from it.
        hint = "" if is_import_path(given.name) else f"Set --student.name {given.name}."
        raise ConfigError(Problem(KEY, f"those of {given.name!r}", f"those of {asked!r}", hint))
    mine = backbone.state_dict()
    whole = backbone if ours else whole_network(config, image_size=image_size)
    names = {n: n for n in mine} if ours else full_names(mine, whole.state_dict())
    taken = {name: given.tensors[full] for name, full in names.items() if full in given.tensors}
    lines = _differences(mine, taken)
    known = {*names.values(), *(() if ours else whole.state_dict())}
    heads = _classifiers(whole)
    odd = [n for n in given.tensors if n not in known and not n.startswith(heads)]
    lines += [f"{name}: not in {config.name}" for name in odd]
    if neck is not None and given.pyramid:
        lines += _differences(neck.state_dict(), given.pyramid)
    if lines:
        more = f", and {len(lines) - 4} more" if len(lines) > 4 else ""
        got = f"{given.path}, whose weights are not this student's ({'; '.join(lines[:4])}{more})"
        hint = "Set student.name, student.settings and the image size that they were made with."
        raise ConfigError(Problem(KEY, got, f"those of {config.name!r}", hint))
    backbone.load_state_dict(taken, strict=False)  # counters of batch norm may be missing
    if neck is not None and given.pyramid:
        neck.load_state_dict(given.pyramid)


def _differences(mine: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    lines = []
    for name, value in mine.items():
        if name not in given:
            if not name.endswith("num_batches_tracked"):
                lines.append(f"{name}: missing")
        elif given[name].shape != value.shape:
            given_shape, own_shape = (list(tensor.shape) for tensor in (given[name], value))
            lines.append(f"{name}: {given_shape} there, {own_shape} here")
    return lines


def _classifiers(network: nn.Module) -> tuple[str, ...]:
    """Return beginnings of the names of a network's classifiers."""
    cfg = getattr(network, "pretrained_cfg", None) or {}
    named = cfg.get("classifier") or ("fc", "head", "classifier")
    return tuple(f"{name}." for name in ((named,) if isinstance(named, str) else named))


def _about(folder: Path) -> dict[str, Any]:
    """Return name, mean and std as our card or timm's config.json has them."""
    if (folder / CARD).exists():
        student = read_json(folder / CARD, infinite=True)["student"]
        return {
            "name": str(student["name"]),
            "mean": tuple(student["mean"]),
            "std": tuple(student["std"]),
        }
    if not (folder / "config.json").exists():
        return {}
    config = read_json(folder / "config.json")
    cfg = config.get("pretrained_cfg", config)
    return {
        "name": str(config.get("architecture", "")),
        "mean": tuple(cfg.get("mean", ())),
        "std": tuple(cfg.get("std", ())),
    }
