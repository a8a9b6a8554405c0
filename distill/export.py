"""Keep a trained backbone as weights plus a description that rebuilds it.

FOLDER/model.safetensors holds the backbone's own parameters, config.json its name and settings,
the levels it was trained on, the normalisation and where it came from.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from distill.config import StudentConfig
from distill.students import Student, build_student
from dreamshard.errors import DataError

if TYPE_CHECKING:
    from distill.config import TrainConfig
    from distill.data import TrainingSet
    from distill.runlog import RunLog

STUDENT_FOLDER = "student"
FORMAT_VERSION = 1


@dataclass(kw_only=True)
class StudentCard:
    """Describe a trained student.

    Args:
        student: name and settings of the backbone, normalisation filled in.
        strides, channels: of its maps, finest first.
        levels: names of the teacher's levels it was trained on.
        image_size: (H, W) it was trained at, in pixels.
        seed: of its initial weights.
        provenance: method, dataset, recipe keys, teacher, steps.
        format_version: of this description.
    """

    student: dict[str, Any]
    strides: list[int]
    channels: list[int]
    levels: list[str]
    image_size: list[int]
    seed: int
    provenance: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


def keep_student(
    student: Student, *, config: TrainConfig, training_set: TrainingSet, log: RunLog
) -> None:
    """Write a finished run's student, figures and next command into its folder."""
    assert log.record is not None
    recipe, run_dir = training_set.dataset.recipe, log.record.path
    provenance = {
        "method": config.method,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "dataset": training_set.dataset.url,
        "content_key": recipe.content_key,
        "snapshot": training_set.snapshot.version,
        "teacher": recipe.content.get("teacher"),
    }
    folder = export_student(
        student,
        run_dir / STUDENT_FOLDER,
        config=config.student,
        levels=[level.name for level in training_set.levels],
        image_size=training_set.dataset.image_size,
        seed=config.seed,
        provenance=provenance,
    )
    log.record.stats(steps=config.steps, student=str(folder), **log.figures)
    log.record.finish(f"dreamshard evaluate --student {run_dir}")


def export_student(
    student: Student,
    folder: Path,
    *,
    config: StudentConfig,
    levels: Sequence[str],
    image_size: tuple[int, int],
    seed: int,
    provenance: Mapping[str, Any],
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
    )
    part = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    weights = student.backbone.state_dict()
    weights = {name: value.cpu().contiguous() for name, value in weights.items()}
    save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps(asdict(card), indent=2)
    (part / "config.json").write_text(text + "\n", encoding="utf-8")
    for name in ("model.safetensors", "config.json"):
        with open(part / name, "rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return folder


def read_card(path: Path) -> tuple[StudentCard, Path]:
    """Read a student's description.

    Args:
        path: the student's folder, or the run folder that holds it.

    Returns:
        The description, and the folder it is in.

    Raises:
        DataError: no student there, or not one this version reads.
    """
    folder = next((f for f in (path, path / STUDENT_FOLDER) if (f / "config.json").exists()), None)
    if folder is None:
        raise DataError(
            f"{path}: got no trained student, allowed a run folder of `dreamshard train` or the "
            "folder of an exported student. Is the training finished?"
        )
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if raw.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"format_version {raw.get('format_version')}, not {FORMAT_VERSION}")
        return StudentCard(**raw), folder
    except (ValueError, TypeError, AttributeError) as error:
        path = folder / "config.json"
        raise DataError(f"{path}: got {error}, allowed a student's card.") from error


def load_student(path: Path) -> tuple[Student, StudentCard]:
    """Rebuild a trained student, in evaluation mode.

    Args:
        path: the student's folder, or the run folder that holds it.

    Raises:
        DataError: no student there, or weights that do not fit its description.
    """
    card, folder = read_card(path)
    student = untrained_student(card)
    try:
        student.backbone.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DataError(
            f"{folder / 'model.safetensors'}: got weights that do not fit config.json ({error})."
        ) from error
    return student.eval(), card


def untrained_student(card: StudentCard) -> Student:
    """Build the same backbone as it was before training, in evaluation mode.

    A student that started from published weights is built from scratch here.
    """
    config = replace(StudentConfig(**card.student), pretrained=False)
    return build_student(config, strides=card.strides, seed=card.seed).eval()
