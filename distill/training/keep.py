"""Keep what a finished run has trained: the student's folder, its figures, the next command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.students.card import CARD, STUDENT_FOLDER
from distill.students.export import export_student
from dreamshard.config.words import command_line
from dreamshard.errors import DataError
from dreamshard.foreign.text import read_json
from dreamshard.owner.parts import sweep
from dreamshard.redact import redact

if TYPE_CHECKING:
    from distill.configs.student import StudentConfig
    from distill.data.sets import TrainingSet
    from distill.data.source import Source
    from distill.students.student import Student
    from distill.training.runlog import RunLog
    from dreamshard.runfolder import RunFolder


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
    export_student(
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
            **_joined(source),
            "licence": source.licence,
        },
        metrics=log.figures,
    )
    _keep_record(log.record, {**summary, "source": content.get("source")}, log.figures)


def _joined(source: Source) -> dict[str, object]:
    """Say which further datasets, and teachers, it learned from; nothing where there was one."""
    told = [
        {"content_key": recipe.content_key, "teacher": recipe.content.get("teacher")}
        for recipe in source.joined
    ]
    return {"joined": told} if told else {}


def kept_steps(run_dir: Path) -> int | None:
    """Return the steps that a run's student was trained for; None if there is no student.

    Raises:
        DataError: its card cannot be read.
    """
    path = run_dir / STUDENT_FOLDER / CARD
    if not path.exists():
        return None
    return _told(path).get("steps")


def complete_record(run_dir: Path, open_record: Callable[[], RunFolder]) -> None:
    """Write what a run had not written when it was killed after its student was in place.

    Args:
        run_dir: the run's folder.
        open_record: opens the run's record; called only if something is missing.
    """
    sweep(run_dir)
    card = run_dir / STUDENT_FOLDER / CARD
    told, stats = _told(card), run_dir / "stats.json"
    known = read_json(stats, infinite=True) if stats.exists() else {}
    if known.get("steps") == told.get("steps") and (run_dir / "README.txt").exists():
        return
    _keep_record(open_record(), told, read_json(card, infinite=True).get("metrics") or {})


def _told(card: Path) -> dict[str, Any]:
    """Return how a student was trained, as its card has it."""
    hint = f"Remove {card.parent}: the same command writes it again from the last checkpoint."
    content = read_json(card, infinite=True, hint=hint)
    told = content.get("provenance") if isinstance(content, dict) else None
    if not isinstance(told, dict):
        raise DataError(f"{card}: got no provenance, allowed a student's card. {hint}")
    return told


def _keep_record(record: RunFolder, told: Mapping[str, Any], figures: Mapping[str, float]) -> None:
    """Write the run's figures and what to do next; README.txt comes last."""
    student, passes = str(record.path / STUDENT_FOLDER), told.get("student_images")
    record.stats(steps=told.get("steps"), student=student, student_images=passes, **figures)
    record.propose(*_next_commands(record.path, source=told.get("source")))


def _next_commands(run_dir: Path, *, source: object) -> list[str]:
    """Spell what to do with a student; only of the digits we know where held-out images are."""
    report = command_line("dreamshard", "report", str(run_dir))
    words = ["dreamshard", "evaluate", "--student", str(run_dir), "--baselines", "[random]"]
    kind = source.get("kind") if isinstance(source, dict) else None
    if kind == "digits":
        words += ["--train_images.kind", "digits", "--heldout_images.kind", "digits"]
        return [command_line(*words), report]
    with_images = command_line(*words, "--train_images.path", "LABELLED")
    judge = f"{with_images} --heldout_images.path OTHERS   (class folders: see dreamshard init)"
    return [report, judge]
