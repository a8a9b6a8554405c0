"""`dreamshard run`: which stages, in which order, with which settings, and how it stops."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from distill.configs.evaluate import EvaluateConfig
from distill.configs.train import DataConfig, TrainConfig
from distill.students.card import student_digest
from dreamshard.config import to_yaml
from dreamshard.console.own import chain
from dreamshard.console.own.stages import is_evaluated
from dreamshard.errors import ConfigError, DataError, Interrupted
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.request.config import EncodeConfig
from pipeline.teachers.base import TeacherConfig
from tests.unit.pipeline.made_datasets import make

ROOT = Path(__file__).resolve().parents[5]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "my recipes"
    place.mkdir()
    (place / "encode.yaml").write_text("teacher: {kind: noise}\nsource: {kind: digits}\n")
    (place / "train.yaml").write_text("run_dir: my recipes/train\ndata: {dataset: d}\n")
    return place


def stand_in(monkeypatch: pytest.MonkeyPatch, results: dict) -> list[tuple[str, list[str]]]:
    """Let stages return a code or raise; collect what was run."""
    seen: list[tuple[str, list[str]]] = []

    def load(verb: str):
        def main(argv: list[str]) -> int:
            seen.append((verb, argv))
            result = results.get(verb, 0)
            if isinstance(result, BaseException):
                raise result
            return result

        return main

    monkeypatch.setattr(chain, "load_verb", load)
    return seen


def test_stages_in_order_with_settings_behind_their_names(
    folder: Path, monkeypatch, capsys
) -> None:
    seen = stand_in(monkeypatch, {})
    assert chain.main(["my recipes", "--train.steps", "5", "--encode.samples=9"]) == 0
    assert [verb for verb, _ in seen] == ["encode", "train", "report"]
    assert seen[0][1] == ["--config", "my recipes/encode.yaml", "--samples=9"]
    assert seen[1][1] == ["--config", "my recipes/train.yaml", "--steps", "5"]
    said = capsys.readouterr()
    assert "[2/3] dreamshard train --config 'my recipes/train.yaml' --steps 5" in said.err
    assert 'timm.create_model("local-dir:my recipes/train/student"' in said.out


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DataError("no such thing"), 3, "train failed (exit code 3)"),
        (Interrupted("saved"), 130, "train stopped"),
        (KeyboardInterrupt(), 130, "train stopped"),
    ],
)
def test_it_stops_with_a_sentence_and_the_command_that_goes_on(
    folder: Path, monkeypatch, capsys, error: BaseException, code: int, words: str
) -> None:
    seen = stand_in(monkeypatch, {"train": error})
    assert chain.main(["my recipes/train.yaml"]) == code
    assert [verb for verb, _ in seen] == ["encode", "train"]
    said = capsys.readouterr().err
    assert words in said and "dreamshard run 'my recipes/train.yaml'" in said


def test_mistakes_are_found_before_any_stage(folder: Path, monkeypatch) -> None:
    seen = stand_in(monkeypatch, {})
    with pytest.raises(ConfigError, match=r"train\.stepz: got an unknown key"):
        chain.main(["my recipes", "--train.stepz", "5"])
    with pytest.raises(ConfigError, match=r"got --steps, allowed --encode\.SETTING VALUE"):
        chain.main(["my recipes", "--steps", "5"])
    with pytest.raises(ConfigError, match="dreamshard init PHOTOS"):
        chain.main(["nowhere"])
    assert not seen


def test_shipped_recipes_are_roads_too() -> None:
    found = {file.parent for file in (ROOT / "recipes").rglob("*.yaml")}
    roads = {
        f for f in found if {file.stem for file in f.glob("*.yaml")} - {"pretrain", "pretrain_cpu"}
    }
    assert len(roads) > 10
    for folder in sorted(roads):
        names = [item.name for item in chain.stages_of(chain.find_folder(str(folder)), [])]
        assert "train" in names and ({"encode", "synthesize"} & set(names)), folder
    names = [item.name for item in chain.stages_of(ROOT / "recipes" / "camvid", [])]
    assert names == ["pretrain", "interpret", "encode", "soft_labels", "train", "evaluate"]


def test_of_several_datasets_of_a_name_the_recipes_is_trained_on(tmp_path: Path) -> None:
    """A recipe that was changed back finds an older one: the newest is not what it asks for."""

    def recipe(channels: int) -> EncodeConfig:
        teacher = TeacherConfig(kind="noise", levels=["s4"], settings={"channels": channels})
        return EncodeConfig(
            name="d",
            root=str(tmp_path / "data"),
            teacher=teacher,
            source=SourceConfig(kind="digits"),
            image=ImageConfig(size=16),
            samples=4,
            samples_per_unit=4,
            micro_batch=4,
        )

    settings = TrainConfig(data=DataConfig(dataset=str(tmp_path / "data" / "d")))
    older = make(recipe(3))
    assert chain.dataset_meant(settings, [recipe(3)]) == []  # one of the name: it is found by it
    newer = make(recipe(4))
    for channels, meant in ((3, older), (4, newer)):
        chosen = chain.dataset_meant(settings, [recipe(channels)])
        assert chosen == [f"--data.dataset={meant.url}"]
    other = replace(recipe(3), name="e")
    renamed = TrainConfig(data=DataConfig(dataset=str(tmp_path / "data" / "e")))
    assert chain.dataset_meant(renamed, [other]) == [f"--data.dataset={older.url}"]
    for makers in ([], [other], [recipe(5)]):  # nothing tells: training refuses and names both
        assert chain.dataset_meant(settings, makers) == []


def test_an_evaluation_is_finished_only_of_this_student_and_these_settings(tmp_path: Path) -> None:
    student = tmp_path / "train" / "student"
    student.mkdir(parents=True)
    (student / "student.json").write_text("{}")
    settings = EvaluateConfig(
        run_dir=str(tmp_path / "e"), student=str(tmp_path / "train"), tasks=["knn"]
    )
    assert not is_evaluated(settings)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "config.resolved.yaml").write_text(to_yaml(settings))
    (tmp_path / "e" / "README.txt").write_text("")
    (student / "model.safetensors").write_bytes(b"weights")
    results = tmp_path / "e" / "results.json"
    results.write_text(json.dumps({"knn": {}, "student_digest": student_digest(student.parent)}))
    os.utime(results, (0, 0))  # clocks are set, copies have times of their own: contents count
    assert is_evaluated(settings)
    settings.seed = 1
    assert not is_evaluated(settings)
    settings.seed = 0
    (student / "model.safetensors").write_bytes(b"others")
    os.utime(student / "student.json", (0, 0))
    os.utime(student / "model.safetensors", (0, 0))
    assert not is_evaluated(settings)
