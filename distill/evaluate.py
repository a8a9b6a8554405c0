"""Measure what a student has learned, beside pixels, its teacher and itself before training.

dreamshard evaluate --config recipes/digits/evaluate.yaml
python distill/evaluate.py --config recipes/digits/evaluate.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: import our packages, not the files beside this script
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import contextlib
import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from distill.configs.evaluate import EvaluateConfig
from dreamshard.config import flatten, load_config, to_dict
from dreamshard.errors import ConfigError, Problem, run_main
from dreamshard.owner.alone import only_one
from dreamshard.progress import Progress, begin, stage
from dreamshard.runfolder import RunFolder, write_text
from pipeline.learning.launcher import check_one
from storage.schema import canonical_json

if TYPE_CHECKING:
    import torch

    from distill.bench.bench import StudentBench
    from distill.bench.representations import Extractor
    from distill.students.card import StudentCard
    from distill.students.student import Student

DESCRIPTION = "Measure what a student has learned, beside pixels, its teacher and itself untrained."
RESULTS = "results.json"
FREE = ("run_dir", "device", "micro_batch")
"""Settings that two evaluations in one folder may differ in."""
READ_OUTS = "read-outs"
"""What is kept of trained read-outs until the evaluation is whole, under its folder."""


def main(argv: Sequence[str]) -> int | None:
    """Run the command; see `dreamshard evaluate --help`."""
    told = "--json" in argv
    words = [word for word in argv if word != "--json"]
    config = load_config(EvaluateConfig, words, prog="dreamshard evaluate", description=DESCRIPTION)
    check_one("evaluate")
    begin(f"evaluate: {', '.join(config.tasks)} of {config.student}; loading PyTorch")
    if not told:
        evaluate(config)
        return None
    from storage.verbs.as_json import SCHEMA
    from storage.verbs.commands import print_json

    with contextlib.redirect_stdout(sys.stderr):  # tables are for people
        results = evaluate(config)
    print_json({"schema": SCHEMA, "run_dir": config.run_dir, **results})
    return None


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Run the tasks on a student and its baselines; write and show the results.

    Returns:
        What results.json holds: "student", "student_digest", "levels", "seed", per task its result,
        and in "tables" what was printed; where features were extracted also "images", "dimensions".

    Raises:
        ConfigError: a teacher that is not the student's, or images it cannot be probed on.
        DataError: no trained student, or images that cannot be read.
    """
    with only_one(Path(config.run_dir)):
        return _evaluate(config)


def _evaluate(config: EvaluateConfig) -> dict[str, Any]:
    from distill.bench.bench import ReadOuts, StudentBench
    from distill.modules.heads import head_folder
    from distill.students.card import student_digest
    from distill.students.export import load_student

    began = time.perf_counter()
    student, card = load_student(Path(config.student), own=config.own_class)
    size = judged_size(config, student=student, card=card)
    tasks = open_tasks(config)
    device = choose_device(config)
    baselines = choose_baselines(config, card=card, device=device, image_size=size)
    folder = Path(config.run_dir)
    known = {
        "student": config.student,
        "student_digest": student_digest(Path(config.student)),
        "levels": card.levels,
        "seed": config.seed,
    }
    bench = StudentBench(
        student=student,
        card=card,
        baselines=baselines,
        sources={"train": config.train_images, "heldout": config.heldout_images},
        classes=config.classifies,
        image=config.image,
        random="random" in config.baselines,
        pool=config.pool,
        seed=config.seed,
        micro_batch=config.micro_batch,
        image_size=size,
        folder=folder,
        device=device,
        head=head_folder(Path(config.student)),
        read_outs=ReadOuts(folder / READ_OUTS, evaluation_key(config, student)),
    )
    bench.check(images=config.reads_images)
    for task in tasks.values():
        if hasattr(task, "check"):  # one of the user's own may have none
            task.check(bench)
    record = RunFolder(folder, config=config, of=whose(config))
    results = run_tasks(tasks, bench, out=record.path / RESULTS, known=known)
    shutil.rmtree(record.path / READ_OUTS, ignore_errors=True)
    record.stats(seconds=time.perf_counter() - began)
    record.propose(shlex.join(["dreamshard", "report", str(record.path)]))
    return results


def open_tasks(config: EvaluateConfig) -> dict[str, Any]:
    """Open the tasks asked for, by name, each with its settings."""
    from distill.configs.tasks import TASKS
    from distill.tables import load_part

    return {
        name: load_part(name, table=TASKS)(config.task_settings(name), seed=config.seed)
        for name in config.tasks
    }


def run_tasks(
    tasks: Mapping[str, Any], bench: StudentBench, *, out: Path, known: Mapping[str, Any]
) -> dict[str, Any]:
    """Run tasks one after the other; write down and print what each found when it is done."""
    from distill.bench.layout import print_tables

    results: dict[str, Any] = {**known, "tables": {}}
    for name, task in tasks.items():
        stage(f"evaluate: {task.describe()}")
        with Progress(name, total=task.count(bench), unit="step") as progress:
            results[name] = task.run(bench, report=progress.update)
        tables = task.tables(results[name])
        results["tables"][name] = [asdict(table) for table in tables]
        print_tables(tables)
        write_text(out, json.dumps(results | bench.facts(), indent=2) + "\n")
    return results | bench.facts()


def whose(config: EvaluateConfig) -> dict[str, object]:
    """Say what an evaluation is of: all settings but those that decide no figure."""
    settings = flatten(to_dict(config))
    return {key: value for key, value in settings.items() if key not in FREE}


def evaluation_key(config: EvaluateConfig, student: Student) -> str:
    """Return what evaluations share that train the same read-outs: settings and the weights."""
    digest = hashlib.sha256()
    digest.update(canonical_json(whose(config)).encode())
    for name, value in student.state_dict().items():
        digest.update(name.encode() + value.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def judged_size(config: EvaluateConfig, *, student: Student, card: StudentCard) -> tuple[int, int]:
    """Return height and width of the images that judge: `image.size`, or those of training.

    Raises:
        ConfigError: a student that takes images of one size only.
    """
    from distill.students.student import size_refusal

    size = config.image.shape or card.size
    error = size_refusal(student, image_size=size) if size != card.size else None
    if error is not None:
        got, own = (f"{height}x{width}" for height, width in (size, card.size))
        hint = f"This student is built for its size ({error}): leave image.size out."
        raise ConfigError(Problem("image.size", got, own, hint)) from error
    return size


def choose_device(config: EvaluateConfig) -> torch.device:
    """Return where networks run.

    Raises:
        ConfigError: CUDA is asked for and not there.
    """
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        hint = "Try --device auto."
        raise ConfigError(Problem("device", "'cuda'", "cpu, as no CUDA device is visible", hint))
    has_gpu = config.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if has_gpu else "cpu")


def choose_baselines(
    config: EvaluateConfig,
    *,
    card: StudentCard,
    device: torch.device,
    image_size: tuple[int, int],
) -> dict[str, Extractor]:
    """Build what turns images into the representations to compare students with.

    Raises:
        ConfigError, TeacherError: a teacher that cannot be loaded or is not the student's.
    """
    import torch

    from distill.bench import representations as kinds
    from pipeline.teachers.base import say
    from pipeline.teachers.load import describe_teacher, load_teacher
    from storage.schema import Pins

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
        teacher = load_teacher(
            config.teacher, mode="encode", seed=config.seed, pins=pins, image_size=image_size
        )
        say(describe_teacher(config.teacher, mode="encode", image_size=image_size).notes)
        chosen["teacher"] = kinds.teacher_extractor(teacher, card=card)
    return chosen


if __name__ == "__main__":
    raise SystemExit(run_main(main, sys.argv[1:]))
