"""What is known of a feature interpreter before its weights are loaded; no torch here."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from dreamshard.errors import ConfigError, DataError, Problem, TeacherError
from pipeline.teachers import weights
from storage.schema import RESERVED_NAMES, Level, canonical_json, check_name

CARD, WEIGHTS = "interpreter.json", "interpreter.safetensors"
FORMAT_VERSION = 1
Target = Literal["mask", "label"]


@dataclass(kw_only=True)
class InterpreterCard:
    """Describe a trained interpreter.

    Args:
        name: first part of the names of its soft labels.
        target: "mask", a class per cell, or "label", one per image.
        classes: names of the classes, in order of their numbers.
        ignore: value of masks and labels that stands for no class.
        levels: the teacher's levels it reads, as `Level.to_dict` gives them, coarsest first.
        width: channels inside.
        dropout: share of features dropped before the last layer in training.
        teacher: fingerprint of the teacher.
        mode_settings: what else decides the teacher's features of given images.
        training: what it was trained on and how well it does; not part of its identity.
        format_version: of this description.
    """

    name: str
    target: Target
    classes: list[str]
    ignore: int
    levels: list[dict[str, Any]]
    width: int
    dropout: float
    teacher: dict[str, Any]
    mode_settings: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def inputs(self) -> list[Level]:
        """The levels it reads, coarsest first."""
        return [Level.from_dict(level) for level in self.levels]


def coarse_to_fine(levels: Sequence[Level]) -> list[Level]:
    """Sort levels as an interpreter reads them; of one stride, the noisier first.

    Raises:
        ConfigError: a level that is no feature map, or of a later noise draw.
    """
    problems = [
        Problem("teacher.levels", level.name, "feature maps (teacher.pool: none)")
        for level in levels
        if level.kind != "feature" or len(level.shape) != 3
    ]
    if any(level.draw for level in levels):
        problems.append(
            Problem("teacher.draws", "several", "1: an interpreter reads one at a time")
        )
    if problems:
        raise ConfigError(problems)
    return sorted(levels, key=lambda level: (-level.stride, -level.timestep))


def check_interpreter_name(name: str) -> Problem | None:
    """Say what is wrong with a name that is to begin the names of levels."""
    try:
        check_name(name, what="name")
    except DataError:
        return Problem("name", repr(name), "letters, digits, '_', '.', '-', no leading dot")
    if name in RESERVED_NAMES:
        return Problem("name", repr(name), f"none of {', '.join(sorted(RESERVED_NAMES))}")
    return None


def read_interpreter_card(folder: Path) -> InterpreterCard:
    """Read an interpreter's description.

    Raises:
        ConfigError: nothing at that path.
        TeacherError: something else than a card this version reads.
    """
    path = folder / CARD
    if not path.is_file():
        hint = "Train one with `dreamshard interpret`."
        raise ConfigError(Problem("interpreter", str(folder), f"a folder with {CARD}", hint))
    raw = weights.read_json(path)
    known = {item.name for item in fields(InterpreterCard)}
    try:
        if raw.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"format_version {raw.get('format_version')}, not {FORMAT_VERSION}")
        card = InterpreterCard(**{key: value for key, value in raw.items() if key in known})
        if check_interpreter_name(card.name) or card.target not in ("mask", "label"):
            raise ValueError(f"name {card.name!r:.40}, target {card.target!r:.40}")
        if not card.inputs or len(card.classes) < 2:
            raise ValueError("no levels, or fewer than two classes")
    except (TypeError, ValueError, DataError) as error:
        raise TeacherError(f"{path}: got {error}, allowed an interpreter's card.") from error
    return card


def interpreter_digest(folder: Path, card: InterpreterCard) -> str:
    """Return the SHA-256 of all that decides what an interpreter says: weights and shape."""
    identity = asdict(card)
    del identity["training"]
    text = f"{weights.digest([folder / WEIGHTS])}/{canonical_json(identity)}"
    return hashlib.sha256(text.encode()).hexdigest()
