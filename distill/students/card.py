"""A student's description: what it is rebuilt from, and where it comes from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distill.configs.student import OwnClassConfig, StudentConfig
from dreamshard.config.check import check
from dreamshard.errors import DataError, Problem
from dreamshard.foreign.text import read_json
from dreamshard.foreign.trusted import is_import_path, plain_name

STUDENT_FOLDER, CARD = "student", "student.json"
FORMAT_VERSION = 2
MAX_SIDE, MAX_MAPS = 1 << 14, 64


@dataclass(kw_only=True)
class StudentCard:
    """Describe a trained student.

    Args:
        student: name and settings of the backbone, normalisation filled in.
        strides, channels: of its maps, finest first.
        levels: names of the teacher's levels it was trained on.
        image_size: (H, W) it was trained at, in pixels.
        seed: of its initial weights.
        provenance: method, dataset, recipe keys, teacher, licence, steps.
        metrics: the run's last figures by name.
        untrained: parameters of the whole network that training did not touch.
        format_version: of this description.
    """

    student: dict[str, Any]
    strides: list[int]
    channels: list[int]
    levels: list[str]
    image_size: list[int]
    seed: int
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    untrained: list[str] = field(default_factory=list)
    format_version: int = FORMAT_VERSION

    @property
    def config(self) -> StudentConfig:
        """The student's settings, to build it from scratch and whole."""
        return replace(
            StudentConfig(**self.student),
            pretrained=False,
            weights="",
            frozen_stages=0,
            grad_checkpointing=False,
            compile="off",
        )

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        problems = []
        if len(self.image_size) != 2 or not all(0 < side <= MAX_SIDE for side in self.image_size):
            allowed = f"height and width, 1..{MAX_SIDE}"
            problems.append(Problem("image_size", str(self.image_size)[:80], allowed))
        if not 0 < len(self.strides) == len(self.channels) <= MAX_MAPS or min(self.strides) < 1:
            got = f"{str(self.strides)[:80]} with channels {str(self.channels)[:80]}"
            problems.append(Problem("strides", got, f"1..{MAX_MAPS} of them, as many channels"))
        return problems

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its training images, in pixels."""
        return self.image_size[0], self.image_size[1]


def read_card(path: Path, *, own: OwnClassConfig | None = None) -> tuple[StudentCard, Path]:
    """Read a student's description.

    Args:
        path: the student's folder, or the run folder that holds it.
        own: the class that its card may name.

    Returns:
        The description, and the folder it is in.

    Raises:
        DataError: no student there, not one this version reads, or one of a class of somebody's
            own that `own` does not name.
    """
    folder = _folder(path)
    path = folder / CARD
    try:
        raw = read_json(path, infinite=True)
        if raw.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"format_version {raw.get('format_version')}, not {FORMAT_VERSION}")
        card, problems = check(StudentCard, raw)
        if card is not None:
            problems = check(StudentConfig, card.student)[1]
        if card is None or problems:
            raise ValueError("; ".join(map(str, problems[:3])))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: got {error}, allowed a student's card.") from error
    _check_class(card, own or OwnClassConfig(), where=str(path))
    return card, folder


def student_digest(path: Path) -> str:
    """Return what tells a student from any other: SHA-256 of its card and its weights, hex.

    Args:
        path: the student's folder, or the run folder that holds it.

    Raises:
        DataError: no student there.
        OSError: its files cannot be read.
    """
    folder, digest = _folder(path), hashlib.sha256()
    for file in (folder / CARD, *sorted(folder.glob("*.safetensors"))):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with open(file, "rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _folder(path: Path) -> Path:
    folder = next((f for f in (path, path / STUDENT_FOLDER) if (f / CARD).exists()), None)
    if folder is None:
        raise DataError(
            f"{path}: got no trained student, allowed a run folder of `dreamshard train` or the "
            "folder of an exported student. Is the training finished?"
        )
    return folder


def _check_class(card: StudentCard, own: OwnClassConfig, *, where: str) -> None:
    """Refuse a class that the user has not named, and settings the user has not given for one."""
    name, settings = card.student.get("name"), card.student.get("settings") or {}
    plain_name(name, where=where, key="student.name", flag="--own_class.name", said=own.name)
    if is_import_path(str(name)) and dict(settings) != dict(own.settings):
        raise DataError(
            f"{where}: student.settings: got {settings}, allowed those that you give yourself for "
            f"a class of your own: --own_class.settings '{json.dumps(settings)}'"
        )
