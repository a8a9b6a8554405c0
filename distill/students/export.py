"""Keep a trained student in a folder that timm, torchvision and the Hugging Face Hub understand.

FOLDER/model.safetensors  the backbone under timm's own names (torchvision's, for its ResNets)
FOLDER/config.json        timm's description: timm.create_model("local-dir:FOLDER") loads it
FOLDER/pyramid.safetensors  the maps of a plain transformer, if it has them
FOLDER/student.json       our description: what `load_student` rebuilds the student from
FOLDER/README.md          the model card
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from distill.students.backbones import construct, is_ours
from distill.students.card import CARD, StudentCard, read_card
from distill.students.model_card import model_card
from distill.students.student import Student, build_student
from distill.students.timm_names import full_names, whole_network
from dreamshard.errors import ConfigError, DataError
from dreamshard.foreign.arrays import read_safetensors
from dreamshard.foreign.guard import UnreadableError
from dreamshard.foreign.networks import number_of_weights
from dreamshard.foreign.text import read_json
from dreamshard.owner.parts import part_of
from dreamshard.permissions import apply_umask
from pipeline.learning.checkpoint import reason_of
from pipeline.learning.device import apart

if TYPE_CHECKING:
    from distill.configs.student import OwnClassConfig, StudentConfig

WEIGHTS, PYRAMID = "model.safetensors", "pyramid.safetensors"
SLACK = 2
"""A network may hold so many times the numbers of its file, as a pyramid's are in another."""


def export_student(
    student: Student,
    folder: Path,
    *,
    config: StudentConfig,
    levels: Sequence[str],
    image_size: tuple[int, int],
    seed: int,
    provenance: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
) -> Path:
    """Write a student's folder, whole or not at all, replacing an older one.

    Args:
        student: whose backbone is kept.
        folder: where to.
        config: what it was built from.
        levels: names of the levels it was trained on.
        image_size: (H, W) in pixels.
        seed: of its initial weights.
        provenance: whatever tells where it came from, fit for JSON.
        metrics: figures for the model card, fit for JSON.

    Raises:
        DataError: it could not be written, for want of room, say.
    """
    settings = asdict(config) | {"mean": list(student.mean), "std": list(student.std)}
    card = StudentCard(
        student=settings,
        strides=list(student.strides),
        channels=list(student.channels),
        levels=list(levels),
        image_size=list(image_size),
        seed=seed,
        provenance=dict(provenance),
        metrics=dict(metrics or {}),
    )
    part = part_of(folder)
    try:
        _write(student, part, card=card)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise DataError(
            f"{folder}: got {reason_of(error)}, allowed a disk that takes a student. Make room and "
            "run the same command again: what was trained is in the last checkpoint."
        ) from error
    return folder


def _write(student: Student, part: Path, *, card: StudentCard) -> None:
    """Write the files of a student's folder."""
    config, image_size, seed = card.config, card.size, card.seed
    part.mkdir(parents=True)
    weights = _weights(student.backbone)
    if not is_ours(config.name):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # parts that the student has not are the same every time
            network = whole_network(card.config, image_size=image_size, device="cpu")
        weights, card.untrained = _whole_weights(weights, network)
        write_timm_config(
            network, part / "config.json", size=image_size, mean=student.mean, std=student.std
        )
    save_file(weights, part / WEIGHTS, metadata={"format": "pt"})
    if student.neck is not None:
        save_file(_weights(student.neck), part / PYRAMID, metadata={"format": "pt"})
    (part / CARD).write_text(json.dumps(asdict(card), indent=2) + "\n", encoding="utf-8")
    (part / "README.md").write_text(model_card(card), encoding="utf-8")
    for path in part.iterdir():
        apply_umask(path)
        with path.open("rb") as file:
            os.fsync(file.fileno())


def load_student(path: Path, *, own: OwnClassConfig | None = None) -> tuple[Student, StudentCard]:
    """Rebuild a trained student, in evaluation mode.

    Args:
        path: the student's folder, or the run folder that holds it.
        own: the class of the user's own that its card may name.

    Raises:
        DataError: no student there, one of a class that `own` does not name, settings that its
            network does not take, or weights that do not fit its description.
    """
    card, folder = read_card(path, own=own)
    try:
        with torch.device("meta"):  # its settings are judged before its file is opened
            network = construct(card.config, out_indices=None, image_size=card.size)
    except ConfigError as error:
        raise DataError(f"{folder / CARD}: {error}") from error
    built = number_of_weights(network)
    try:
        weights = read_safetensors(folder / WEIGHTS)
        held = sum(value.numel() for value in weights.values())
        if built > SLACK * held + (1 << 20):
            raise RuntimeError(f"{held:,} numbers; the network described has {built:,}")
        student = untrained_student(card)
        if not is_ours(card.config.name):
            names = full_names(student.backbone.state_dict(), weights)
            weights = {name: weights[full] for name, full in names.items()}
        student.backbone.load_state_dict(weights)
        if student.neck is not None:
            student.neck.load_state_dict(read_safetensors(folder / PYRAMID))
    except (UnreadableError, OSError, RuntimeError) as error:
        raise DataError(
            f"{folder / WEIGHTS}: got weights that do not fit {CARD} ({error})."
        ) from error
    return student.eval(), card


def untrained_student(card: StudentCard) -> Student:
    """Build the same student as it was before training, in evaluation mode.

    A student that started from published weights is built from scratch here.
    """
    return build_student(
        card.config, strides=card.strides, seed=card.seed, image_size=card.size
    ).eval()


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return apart(module.state_dict(), device="cpu")


def _whole_weights(
    weights: Mapping[str, Tensor], network: nn.Module
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename to the whole network's names; fill what the student has not with its initial values.

    Returns:
        The whole network's weights, and the names of those filled in.
    """
    whole = _weights(network)
    names = full_names(weights, whole)
    missing = [name for name in weights if name not in names]
    assert not missing, f"not in timm's network: {missing[:4]}"  # see distill.students.trial
    trained = {full: weights[name] for name, full in names.items()}
    filled = {name: value for name, value in whole.items() if name not in trained}
    return trained | filled, sorted(filled)


def write_timm_config(
    network: nn.Module,
    path: Path,
    *,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Write timm's description of a network that was trained here.

    Args:
        network: whole, without a classifier.
        path: of config.json.
        size: (H, W) of its images, in pixels.
        mean, std: per channel, of pixels in 0..1.
    """
    from timm.models._hub import save_config_for_hf

    save_config_for_hf(network, path)  # type: ignore[arg-type]  # timm 1.0.29 takes no text
    description = read_json(path)
    data = {"input_size": [3, *size], "mean": list(mean), "std": list(std), "crop_pct": 1.0}
    description["pretrained_cfg"] |= data
    for key in ("tag", "license", "origin_url", "paper_ids"):
        # These are of the published weights that timm lists under this name; ours are others.
        description["pretrained_cfg"].pop(key, None)
    path.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
