"""Measure what a student has learned, beside pixels, its teacher and itself before training.

dreamshard evaluate --config recipes/digits/evaluate.yaml
python distill/evaluate.py --config recipes/digits/evaluate.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: import our packages, not the files beside this script
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill.evaluate_config import EvaluateConfig
from dreamshard.config import load_config
from dreamshard.errors import run_main
from dreamshard.progress import Progress, stage
from dreamshard.runfolder import RunFolder, write_text

if TYPE_CHECKING:
    import numpy as np

    from distill.export import StudentCard
    from distill.representations import Extractor
    from distill.students import Student
    from distill.tasks.few_label import Features

DESCRIPTION = "Measure what a student has learned, beside pixels, its teacher and itself untrained."
RESULTS = "results.json"


def main(argv: Sequence[str]) -> int | None:
    """Run the command; see `dreamshard evaluate --help`."""
    config = load_config(EvaluateConfig, argv, prog="dreamshard evaluate", description=DESCRIPTION)
    evaluate(config)
    return None


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Extract every representation of the probe images, run the tasks, write and show the results.

    Returns:
        What results.json holds: "student", "levels", "dimensions", and per task its result.

    Raises:
        ConfigError: a teacher that is not the student's, or images it cannot be probed on.
        DataError: no trained student, or images that cannot be read.
    """
    from distill.export import load_student
    from distill.tables import load_part
    from distill.tasks import TASKS

    began = time.perf_counter()
    student, card = load_student(Path(config.student))
    extractors = choose_extractors(config, student=student, card=card)
    record = RunFolder(config.run_dir, config=config)
    features, labels = extract_splits(config, card=card, extractors=extractors)
    results: dict[str, Any] = {
        "student": config.student,
        "levels": card.levels,
        "seed": config.seed,
        "images": {"train": len(labels[0]), "heldout": len(labels[1])},
        "dimensions": {name: both.train.shape[1] for name, both in features.items()},
    }
    for name in config.tasks:
        task = load_part(name, table=TASKS)(config.task_settings(name), seed=config.seed)
        stage(f"evaluate: {task.describe()}")
        with Progress(name, total=task.count(features), unit="fit") as progress:
            results[name] = task.run(
                features, train_labels=labels[0], heldout_labels=labels[1], report=progress.update
            )
        task.show(results[name])
    write_text(record.path / RESULTS, json.dumps(results, indent=2) + "\n")
    record.stats(seconds=time.perf_counter() - began)
    record.finish("dreamshard report")
    return results


def choose_extractors(
    config: EvaluateConfig, *, student: Student, card: StudentCard
) -> dict[str, Extractor]:
    """Build what turns images into the representations asked for; the student's comes last.

    Raises:
        ConfigError, TeacherError: a teacher that cannot be loaded or is not the student's.
    """
    import torch

    from distill import representations as kinds
    from distill.export import untrained_student
    from pipeline.teachers.base import load_teacher
    from storage.schema import Pins

    cuda = config.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    chosen: dict[str, Extractor] = {}
    if "pixels" in config.baselines:
        chosen["pixels"] = kinds.pixels
    if "teacher" in config.baselines:
        pins = Pins(
            micro_batch=config.micro_batch,
            compute_dtype=config.teacher.compute_dtype,
            device=device.type,
            threads=torch.get_num_threads(),
        )
        size = (card.image_size[0], card.image_size[1])
        teacher = load_teacher(
            config.teacher, mode="encode", seed=config.seed, pins=pins, image_size=size
        )
        chosen["teacher"] = kinds.teacher_extractor(teacher, card=card)
    if "random" in config.baselines:
        chosen["random student"] = kinds.student_extractor(untrained_student(card), device=device)
    chosen["distilled student"] = kinds.student_extractor(student, device=device)
    return chosen


def extract_splits(
    config: EvaluateConfig, *, card: StudentCard, extractors: Mapping[str, Extractor]
) -> tuple[dict[str, Features], list[np.ndarray]]:
    """Run the extractors over the training and the held-out images of the probe.

    Returns:
        Features by representation, and the labels of both splits.
    """
    from distill.representations import extract_all
    from distill.tasks.few_label import Features
    from pipeline.images import open_source
    from pipeline.inputs import ImageInput

    size = (card.image_size[0], card.image_size[1])
    inputs = [
        ImageInput(open_source(split), config=config.image, image_size=size, seed=config.seed)
        for split in (config.train_images, config.heldout_images)
    ]
    counts = [source.num_samples or 0 for source in inputs]
    with Progress("features", total=sum(counts)) as progress:
        (train, train_labels), (heldout, heldout_labels) = (
            extract_all(
                source,
                extractors=extractors,
                micro_batch=config.micro_batch,
                first_index=first,  # no two images get the same noise from the teacher
                progress=progress,
            )
            for source, first in zip(inputs, (0, counts[0]), strict=True)
        )
    features = {name: Features(train[name], heldout[name]) for name in extractors}
    return features, [train_labels, heldout_labels]


if __name__ == "__main__":
    raise SystemExit(run_main(main, sys.argv[1:]))
