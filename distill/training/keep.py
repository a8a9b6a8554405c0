"""Keep what a finished run has trained: the student's folder, its figures, the next command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from distill.students.card import STUDENT_FOLDER
from distill.students.export import export_student
from dreamshard.redact import redact

if TYPE_CHECKING:
    from distill.configs.student import StudentConfig
    from distill.data.sets import TrainingSet
    from distill.students.student import Student
    from distill.training.runlog import RunLog


def keep_student(
    student: Student,
    *,
    config: StudentConfig,
    summary: Mapping[str, object],
    training_set: TrainingSet,
    log: RunLog,
) -> None:
    """Write a finished run's student, figures and next command into its folder.

    Args:
        student: to keep.
        config: what it was built from.
        summary: how it was trained, see `TrainConfig.summary`.
        training_set: what it was trained on.
        log: of the run.
    """
    assert log.record is not None
    source, run_dir = training_set.source, log.record.path
    content = source.recipe.content
    folder = export_student(
        student,
        run_dir / STUDENT_FOLDER,
        config=config,
        levels=[level.name for level in training_set.levels],
        image_size=training_set.image_size,
        seed=training_set.seed,
        provenance={
            **summary,
            "dataset": redact(source.url),
            "content_key": source.recipe.content_key,
            "snapshot": source.version,
            "samples": source.num_valid,
            "source": content.get("source"),
            "teacher": content.get("teacher"),
            "licence": source.licence,
        },
        metrics=log.figures,
    )
    passes = summary["student_images"]
    log.record.stats(
        steps=summary["steps"], student=str(folder), student_images=passes, **log.figures
    )
    log.record.finish(_next_command(run_dir, source=content.get("source")))


def _next_command(run_dir: Path, *, source: object) -> str:
    """Spell how to judge the student; only of the digits we know where held-out images are."""
    command = f"dreamshard evaluate --student {run_dir}"
    kind = source.get("kind") if isinstance(source, dict) else None
    if kind == "digits":
        return command
    images = f"--train_images.kind {kind} --train_images.path TRAIN" if kind != "latents" else ""
    images = images or "--train_images.kind folder --train_images.path TRAIN"
    held = images.replace("train_images", "heldout_images").replace("TRAIN", "HELDOUT")
    return f"{command} --baselines [random] {images} {held}"
