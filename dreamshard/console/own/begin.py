"""`dreamshard init PHOTOS`: look at images, and write the recipes of their whole road."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.owner.home import expanded
from dreamshard.owner.urls import local_folder
from dreamshard.progress import stage
from dreamshard.runfolder import write_text

if TYPE_CHECKING:
    from dreamshard.console.own.look import Seen
    from dreamshard.console.own.presets import Choice
    from storage.dataset import Dataset

SHIPPED_NAME, PRETRAIN = "cifar10", "pretrain"


def main(argv: Sequence[str]) -> int:
    """Run the command; see `dreamshard init --help`."""
    options = _parser().parse_args(argv)
    command = shlex.join(["dreamshard", "init", *argv])
    stage(f"init: looking at {options.photos}")
    dataset = _dataset(options.photos)
    if dataset is None:
        texts, said, out = _of_images(options, command)
    else:
        texts, said, out = _of_dataset(options, dataset, command)
    _check(texts)
    _write(texts, out, force=options.force)
    from dreamshard.console.own.look import shown

    folder = shlex.quote(shown(out))
    lines = [*said, "", f"recipes, each a command of its own (`dreamshard run {folder}` = all):"]
    width = max(len(verb) for verb in texts)
    for verb in texts:
        path = shlex.quote(shown(out / f"{verb}.yaml"))
        command = "encode" if verb == "soft_labels" else verb
        lines.append(f"  {verb:<{width}}  dreamshard {command} --config {path}")
    sys.stdout.write("\n".join(lines) + f"\nnext: dreamshard run {folder}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dreamshard init",
        description="Look at images and write recipes to encode, train and evaluate, every choice "
        "with its reason. Nothing is asked, and nothing is computed yet.",
        epilog="dreamshard init photos; dreamshard run runs/photos",
        allow_abbrev=False,
    )
    parser.add_argument("photos", help="folder, tar, Parquet or pattern of images; or a dataset")
    parser.add_argument(
        "--out", type=local_folder, help="folder of recipes, data and runs (runs/NAME)"
    )
    parser.add_argument("--name", help="of the dataset (that of PHOTOS)")
    parser.add_argument("--heldout", default="", help="labelled images to judge on (a fifth)")
    parser.add_argument(
        "--teacher",
        default="",
        help="folder or checkpoint of a network; cifar10, the small one that comes along; or "
        "pretrain, to train one on these images (what fits the images' size)",
    )
    parser.add_argument("--kind", default="", help="kind of teacher (told from its files)")
    parser.add_argument("--size", type=int, default=0, help="pixels (the teacher's own)")
    parser.add_argument("--student", default="", help="timm name of the student (resnet18)")
    parser.add_argument(
        "--labels", type=int, default=0, help="use so many labels: soft labels join the features"
    )
    parser.add_argument(
        "--images", default="", help="of a dataset: the labelled images it was made of, to judge"
    )
    parser.add_argument("--force", action="store_true", help="replace recipes that are there")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser


def _of_images(options: argparse.Namespace, command: str) -> tuple[dict[str, str], list[str], Path]:
    """Look at images; return the recipes by verb, what to say, and their folder."""
    from dreamshard.console.own import writing
    from dreamshard.console.own.look import look

    seen = look(options.photos, heldout=options.heldout)
    for line in seen.lines():
        stage(f"  {line}")
    plan = _plan(options, options.photos, command)
    choice, note, said = _choose(options, seen, plan)
    texts: dict[str, str] = {}
    if note == PRETRAIN:
        texts["pretrain"] = writing.pretrain(plan, seen, choice)
        note = "made by pretrain.yaml"
    texts["encode"] = writing.encode(plan, seen, choice, note=note)
    join = []
    if options.labels:
        _check_labels(options.labels, seen)
        texts["interpret"] = writing.interpret(plan, seen, choice, labels=options.labels)
        texts["soft_labels"] = writing.soft_labels(plan, seen, choice)
        join = [plan.place("data", f"{plan.name}-soft-labels")]
    texts["train"] = writing.train(
        plan,
        join=join,
        dataset=plan.place("data", plan.name),
        samples=seen.count * writing.views_of(seen),
        levels=choice.levels,
        student=choice.student,
        strides=choice.strides,
    )
    if seen.heldout is not None:
        texts["evaluate"] = writing.evaluate(plan, seen)
    else:
        said.append(_no_evaluation(seen))
    return texts, said, plan.out


def _check_labels(count: int, seen: Seen) -> None:
    """Raise ConfigError where there are not so many labels to learn from."""
    if len(seen.classes) < 2 or not 0 < count <= seen.count:
        have = f"{seen.count} images of {len(seen.classes)} classes"
        hint = "Put images into class folders, or give a column of classes."
        raise ConfigError(Problem("labels", f"{count} with {have}", "1 or more labelled", hint))


def _no_evaluation(seen: Seen) -> str:
    if not seen.classes:
        return "no evaluate.yaml: a probe needs labels (class folders, or a column of classes)"
    return "no evaluate.yaml: too few images to keep a fifth; give others with --heldout FOLDER"


def _choose(options: argparse.Namespace, seen: Seen, plan: Any) -> tuple[Choice, str, list[str]]:
    """Choose the teacher; return what fits it, a note for the recipe, and what to say."""
    from dreamshard.console.own import presets

    asked, side = options.teacher, seen.short_side
    size, student = options.size, options.student
    automatic = not asked
    if automatic:
        asked = SHIPPED_NAME if side <= presets.LARGEST_FOR_SHIPPED else PRETRAIN
    own = shlex.quote(options.photos)
    get = [
        "to use another: download any diffusers folder or official checkpoint (README, Teachers), "
        "with its licence, and give it:",
        f"  dreamshard init {own} --force --teacher FOLDER",
    ]
    if asked == SHIPPED_NAME and not Path(asked).exists():
        path, size = presets.SHIPPED, size or presets.SHIPPED_SIZE
        if not path.is_dir():
            hint = "Give --teacher FOLDER, or --teacher pretrain."
            raise ConfigError(Problem("teacher", asked, f"a checkout with {path}", hint))
        choice = presets.choose(path, size=size, student=student)
        why = f"images of about {side} pixels, brought to {size}" if automatic else "as asked"
        said = [f"teacher: the small CIFAR-10 one that comes along ({why})", *get]
        return choice, "the small CIFAR-10 teacher that comes along", [*said, *_told(choice)]
    if asked == PRETRAIN and not Path(asked).exists():
        choice = presets.choice_to_pretrain(
            plan.place("teacher"), size=size or presets.PRETRAIN_SIZE, student=student
        )
        said = [
            "teacher: none was given, so the recipes train one on these images first (hours on a "
            "CPU)"
            if automatic
            else "teacher: trained on these images first, as asked (hours on a CPU)",
            *get,
            "or the small one that comes along, for a first result in minutes:",
            f"  dreamshard init {own} --force --teacher {SHIPPED_NAME}",
        ]
        return choice, PRETRAIN, [*said, *_told(choice)]
    choice = presets.choose(expanded(asked), size=size, student=student, kind=options.kind)
    check_teacher(choice)
    note = f" ({choice.note})" if choice.note else ""
    return choice, "", [f"teacher: {asked}, family {choice.family}{note}", *_told(choice)]


def check_teacher(choice: Choice) -> None:
    """Ask a teacher for what the recipe will ask it for.

    Raises:
        ConfigError, TeacherError: it cannot do that, or needs a setting of its own.
    """
    from pipeline.teachers.base import Part, TeacherConfig
    from pipeline.teachers.load import describe_teacher

    config = TeacherConfig(kind=choice.kind, path=choice.path, settings=dict(choice.settings))
    config.part = cast(Part, choice.part)
    config.levels = [*choice.levels]
    config.timesteps = [] if choice.timestep is None else [choice.timestep]
    describe_teacher(config, mode="encode", image_size=choice.size)


def _told(choice: Choice) -> list[str]:
    at = "" if choice.timestep is None else f" at timestep {choice.timestep}"
    height, width = choice.size
    return [
        f"features: {', '.join(choice.levels)}{at} of {height}x{width} pixels",
        f"student: {choice.student}, maps of strides {', '.join(map(str, choice.strides))}",
    ]


def _of_dataset(
    options: argparse.Namespace, dataset: Dataset, command: str
) -> tuple[dict[str, str], list[str], Path]:
    """Write the recipes of a dataset that is there: train, and evaluate where images are given."""
    from dreamshard.console.own import presets, writing
    from dreamshard.console.own.look import look, shown

    samples = dataset.snapshot().num_valid
    maps = {lv.stride for lv in dataset.levels if lv.kind == "feature" and len(lv.shape) == 3}
    stage(
        f"  a dataset of {samples:,} usable samples: {', '.join(lv.name for lv in dataset.levels)}"
    )
    side = min(dataset.image_size)
    student, common = presets.fit_student(options.student, strides=maps, side=side)
    strides = presets.whole_strides(student, common, side=side)
    plan = _plan(options, dataset.recipe.name, command)
    levels = [f"s{stride}" for stride in reversed(common)]
    url = dataset.url if "://" in dataset.url else shown(dataset.url)
    texts = {
        "train": writing.train(
            plan, dataset=url, samples=samples, levels=levels, student=student, strides=strides
        )
    }
    said = [f"student: {student}, maps of strides {', '.join(map(str, strides))}"]
    if options.images:
        seen = look(options.images, heldout=options.heldout)
        if seen.heldout is not None:
            texts["evaluate"] = writing.evaluate(plan, seen)
        else:
            said.append(_no_evaluation(seen))
    else:
        said.append("no evaluate.yaml: give labelled images with --images FOLDER --heldout FOLDER")
    return texts, said, plan.out


def _plan(options: argparse.Namespace, path: str, command: str) -> Any:
    from dreamshard.console.own.writing import Plan

    stem = Path(path.rstrip("/")).name.partition(".")[0]
    name = options.name or re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "photos"
    out = options.out or Path("runs") / name
    gpu = Path("/dev/nvidiactl").exists()
    return Plan(name=name, out=out, command=command, gpu=gpu)


def _dataset(path: str) -> Dataset | None:
    """Return the dataset that a path or ROOT/NAME is; None for anything else."""
    from storage.catalog import find_dataset
    from storage.fs.open import open_files
    from storage.ledger.description import KEY

    if "://" in path:
        is_dataset = open_files(path).size(KEY) is not None
    else:  # images are there themselves; what is not may be ROOT/NAME
        is_dataset = (Path(path) / KEY).is_file() or not Path(path).exists()
    try:
        return find_dataset(path) if is_dataset else None
    except DataError as error:
        if ", allowed one." in str(error):
            raise
        return None


def _check(texts: dict[str, str]) -> None:
    """See that every recipe is read back without a complaint."""
    from distill.configs.evaluate import EvaluateConfig
    from distill.configs.train import TrainConfig
    from dreamshard.console.own.writing import check_recipe
    from pipeline.learning.interpreting.config import InterpretConfig
    from pipeline.learning.pretraining.config import PretrainConfig
    from pipeline.request.config import EncodeConfig

    configs: dict[str, type] = {"pretrain": PretrainConfig, "encode": EncodeConfig}
    configs["train"] = TrainConfig
    configs |= {"evaluate": EvaluateConfig, "interpret": InterpretConfig}
    configs["soft_labels"] = EncodeConfig
    for verb, text in texts.items():
        check_recipe(verb, text, configs)


def _write(texts: dict[str, str], out: Path, *, force: bool) -> None:
    """Write the recipes; those that are there and differ are not replaced unasked."""
    changed = []
    for verb, text in texts.items():
        path = out / f"{verb}.yaml"
        if path.exists() and _body(path.read_text(encoding="utf-8")) != _body(text):
            changed.append(path)
    if changed and not force:
        names = ", ".join(map(str, changed))
        hint = "Replace them with --force, or choose another folder with --out."
        raise ConfigError(Problem("out", f"other recipes ({names})", "a folder without", hint))
    try:
        out.mkdir(parents=True, exist_ok=True)
        for verb, text in texts.items():
            write_text(out / f"{verb}.yaml", text)
    except OSError as error:
        got = f"{out} ({error.strerror or error})"
        raise ConfigError(Problem("out", got, "a folder to write to")) from error
    if force:  # of another choice before: `dreamshard run` would go through it
        for verb in ("pretrain", "interpret", "encode", "soft_labels", "evaluate"):
            if verb not in texts:
                (out / f"{verb}.yaml").unlink(missing_ok=True)


def _body(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("# Written by"))
