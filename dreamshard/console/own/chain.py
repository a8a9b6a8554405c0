"""`dreamshard run RECIPES`: go through a folder of recipes, each stage the command it is alone.

Every stage finds what it made before by itself (a dataset in the catalog, a finished student), so
that the same command goes on after Ctrl-C, an error or another day; only evaluations are compared
here.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamshard.console.api.calls import as_command
from dreamshard.console.cli import load_verb
from dreamshard.errors import INTERRUPTED, ConfigError, DataError, DreamshardError, Problem
from dreamshard.progress import stage

STAGES: tuple[tuple[str, str], ...] = (
    ("pretrain", "pretrain"),
    ("interpret", "interpret"),
    ("encode", "encode"),
    ("synthesize", "synthesize"),
    ("soft_labels", "encode"),
    ("train", "train"),
    ("evaluate", "evaluate"),
)
"""Name of a recipe's file -> its verb, in the order of the road."""
MAKERS = ("encode", "synthesize", "soft_labels")
"""Stages that make datasets."""


@dataclass(frozen=True)
class Stage:
    """Name one stage: its recipe's name, its verb, and its arguments."""

    name: str
    verb: str
    argv: tuple[str, ...]

    @property
    def command(self) -> str:
        """Return the command for a shell."""
        return shlex.join(["dreamshard", *self.verb.split(), *self.argv])


def main(argv: Sequence[str]) -> int:
    """Run the command; see `dreamshard run --help`."""
    options, rest = _parser().parse_known_args(list(argv))
    folder = find_folder(options.recipes)
    stages = stages_of(folder, rest)
    again = shlex.join(["dreamshard", "run", *argv])
    stage(f"run: {' -> '.join(item.name for item in stages)} -> report, of {folder}")
    settings = {item.name: settings_of(item) for item in stages}  # every mistake before any work
    for number, item in enumerate(stages, 1):
        stage(f"[{number}/{len(stages) + 1}] {item.command}")
        code = go(item, settings)
        if code:
            how = "stopped" if code == INTERRUPTED else f"failed (exit code {code})"
            stage(
                f"run: {item.name} {how}. What was made stays; the same command goes on from "
                f"there:\n  {again}"
            )
            return code
    return report(folder, settings, number=len(stages) + 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dreamshard run",
        description="Go through the recipes of a folder in the order of the road (pretrain, "
        "interpret, encode, train, evaluate; those there are), then write its report. What is "
        "there already is found and not made again.",
        epilog="Settings of a stage come behind its name: --train.steps 500, --encode.samples 64",
        allow_abbrev=False,
    )
    parser.add_argument("recipes", help="folder of recipes (of `dreamshard init`), or one of them")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser


def find_folder(path: str) -> Path:
    """Return the folder of recipes that a path is, or lies in.

    Raises:
        ConfigError: there is no recipe.
    """
    from dreamshard.config.yaml12 import find_file

    folder = find_file(path)
    folder = folder.parent if folder.is_file() else folder
    if not any((folder / f"{name}.yaml").is_file() for name, _ in STAGES):
        names = ", ".join(f"{name}.yaml" for name, _ in STAGES)
        hint = "Write some for your images: dreamshard init PHOTOS."
        raise ConfigError(Problem("recipes", str(path), f"a folder with some of {names}", hint))
    return folder


def stages_of(folder: Path, rest: Sequence[str]) -> list[Stage]:
    """Return the stages of a folder, with the settings given behind their names.

    Raises:
        ConfigError: a setting of no stage.
    """
    from dreamshard.console.own.look import shown

    names = [name for name, _ in STAGES if (folder / f"{name}.yaml").is_file()]
    if "encode" in names and "synthesize" in names:
        names.remove("synthesize")  # two ways to features: of images that are there, or dreamt up
    given = _behind_names(rest, names)
    return [
        Stage(
            name,
            verb,
            ("--config", shown(folder / f"{name}.yaml"), *given.get(name, ())),
        )
        for name, verb in STAGES
        if name in names
    ]


def _behind_names(rest: Sequence[str], names: Sequence[str]) -> Mapping[str, list[str]]:
    given: dict[str, list[str]] = {}
    words = list(rest)
    while words:
        word = words.pop(0)
        name, dot, key = word.removeprefix("--").partition(".")
        if not word.startswith("--") or name not in names or not dot:
            allowed = ", ".join(f"--{each}.SETTING VALUE" for each in names)
            raise ConfigError(Problem("run", word, allowed, "Or change it in the recipe."))
        given.setdefault(name, []).append(f"--{key}")
        if "=" not in key and words and not words[0].startswith("--"):
            given[name].append(words.pop(0))
    return given


def settings_of(item: Stage) -> Any:
    """Read a stage's recipe.

    Raises:
        ConfigError: whatever is wrong with it, keys behind the stage's name.
    """
    from dreamshard.config import load_config
    from dreamshard.console.own.stages import config_class

    try:
        return load_config(config_class(item.verb), item.argv, prog=item.verb, description="")
    except ConfigError as error:
        raise error.under(item.name) from error


def go(item: Stage, road: Mapping[str, Any]) -> int:
    """Run one stage, unless its result is there; say what went wrong; return the exit code.

    Args:
        item: the stage.
        road: settings of all stages, by name.
    """
    from dreamshard.console.own.stages import is_evaluated

    settings = road[item.name]
    makers = [road[name] for name in MAKERS if name in road]
    if item.verb == "evaluate" and is_evaluated(settings):
        stage(f"evaluate: {settings.run_dir} is finished, its results are reused")
        return 0
    try:
        argv = [*item.argv, *(dataset_meant(settings, makers) if item.verb == "train" else ())]
        with as_command(["dreamshard", item.verb, *argv]):
            return load_verb(item.verb)(argv) or 0
    except DreamshardError as error:
        kind = "interrupted" if error.exit_code == INTERRUPTED else "error"
        stage(f"{kind}: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def dataset_meant(settings: Any, makers: Sequence[Any]) -> list[str]:
    """Return the argument that names the dataset to train on, where its name alone does not.

    A recipe names its dataset by ROOT/NAME; every change of encode.yaml makes another of that name,
    and a new name for what is there makes none. The one meant is what the recipe asks for now, not
    the newest: changed back, it finds an older.

    Args:
        settings: of the training.
        makers: settings of the stages that make datasets.
    """
    from pipeline.request.lookup import look_up
    from pipeline.request.resolve import resolve
    from storage.catalog import find_dataset
    from storage.fs.open import open_files

    name = settings.data.dataset
    try:
        if settings.data.kind == "shards" and name:
            find_dataset(name)
        return []
    except DataError:
        pass  # none of that name, or several
    for maker in makers:
        if open_files(f"{maker.root}/{maker.name}").url != open_files(name).url:
            continue
        found = look_up(resolve(maker.settled().request()))
        if found is not None:
            url = found.dataset.url
            stage(f"run: of {name}, what the recipe asks for is taken: {url}")
            return [f"--data.dataset={url}"]
    return []  # nothing here tells which is meant: the stage refuses, and says what there is


def report(folder: Path, settings: Mapping[str, Any], *, number: int) -> int:
    """Write the report of the whole road; return the exit code."""
    from dreamshard.console.own.look import shown

    places = [Path(each.run_dir) for each in settings.values() if getattr(each, "run_dir", "")]
    inside = all(place.absolute().is_relative_to(folder.absolute()) for place in places)
    about = folder if inside or not places else places[-1]
    command = ["report", shown(about)]
    stage(f"[{number}/{number}] {shlex.join(['dreamshard', *command])}")
    code = load_verb("report")(command[1:]) or 0
    student = getattr(settings.get("train"), "run_dir", "")
    if student:
        place = shown(Path(student) / "student")
        line = f'timm.create_model("local-dir:{place}", pretrained=True)'
        sys.stdout.write(f"student: {place}\n  in Python: {line}\n")
    return code
