"""The commands as functions: what a recipe says, done from Python; errors are raised."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.console.api.settings import Recipe, arguments, config_of
from dreamshard.errors import INTERRUPTED, ConfigError, Interrupted, Problem, wait_asleep

if TYPE_CHECKING:
    from distill.students.student import Student
    from dreamshard.console.api.dataset import FeatureDataset


@dataclass(frozen=True)
class TrainRun:
    """Name what a training run made.

    Args:
        folder: of the run: metrics.jsonl, checkpoints, config.resolved.yaml.
        student: folder of the student, which timm loads as `local-dir:FOLDER`.
    """

    folder: Path
    student: Path

    def load(self) -> Student:
        """Return the trained student; see `dreamshard.load_student`."""
        return load_student(self.student)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl: step, loss, img_per_s ..."""
        from dreamshard.foreign.text import parse_json

        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()
        return [parse_json(line, where=str(path), infinite=True) for line in lines]


def encode(recipe: Recipe, settings: Mapping[str, Any]) -> FeatureDataset:
    """Make the dataset of a recipe, or find it; see `dreamshard.encode`."""
    from dreamshard.console.api.dataset import FeatureDataset
    from pipeline.request.config import EncodeConfig
    from pipeline.run import run

    config = config_of(EncodeConfig, recipe, settings, verb="encode")
    command = ["dreamshard", "encode", *arguments(EncodeConfig, recipe, settings)]
    with as_command(command):
        code, dataset = run(config, command=command)
    if code == INTERRUPTED:
        raise Interrupted(f"{dataset.url}: stopped as asked; the same call goes on.")
    return FeatureDataset.open(dataset.url)


def train(recipe: Recipe, settings: Mapping[str, Any]) -> TrainRun:
    """Train a student, or go on; see `dreamshard.train`."""
    from distill.configs.train import TrainConfig
    from distill.train import train as run

    config = config_of(TrainConfig, recipe, settings, verb="train")
    with as_command(["dreamshard", "train", *arguments(TrainConfig, recipe, settings)]):
        student = run(config)
    return TrainRun(folder=Path(config.run_dir), student=Path(student))


def evaluate(recipe: Recipe, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Measure a student; see `dreamshard.evaluate`."""
    from distill.configs.evaluate import EvaluateConfig
    from distill.evaluate import evaluate as run

    config = config_of(EvaluateConfig, recipe, settings, verb="evaluate")
    with as_command(["dreamshard", "evaluate", *arguments(EvaluateConfig, recipe, settings)]):
        return run(config)


def load_student(path: str | Path) -> Student:
    """Load a trained student; see `dreamshard.load_student`."""
    from distill.students.export import load_student as load

    if "://" in str(path):
        hint = "Copy it to this machine first."
        raise ConfigError(Problem("path", str(path), "a local folder", hint))
    return load(Path(path))[0]


@contextmanager
def as_command(command: Sequence[str]) -> Iterator[None]:
    """Let a run see the command line that it stands for: run folders record it, messages name it.

    A notebook's own `sys.argv` is its kernel's.
    """
    wait_asleep()
    before, sys.argv = sys.argv, [*command]
    try:
        yield
    finally:
        sys.argv = before
