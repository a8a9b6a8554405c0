"""Every recipe parses; those that encode can be planned, with a stand-in where data is missing."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from dreamshard.config import check, load_config
from dreamshard.config.allowed import walk
from dreamshard.config.yaml12 import parse_yaml
from dreamshard.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "recipes").rglob("*.yaml"))
OVERLAYS = [path for path in FILES if path.stem.startswith("row_")]
"""Rows of an ablation, which lie over the train.yaml beside them."""
RECIPES = [path for path in FILES if path not in OVERLAYS]
VERBS = {
    "pretrain": "pipeline.learning.pretraining.config:PretrainConfig",
    "pretrain_cpu": "pipeline.learning.pretraining.config:PretrainConfig",
    "pretrain_selfcond": "pipeline.learning.pretraining.config:PretrainConfig",
    "encode": "pipeline.request.config:EncodeConfig",
    "encode_timm": "pipeline.request.config:EncodeConfig",
    "soft_labels": "pipeline.request.config:EncodeConfig",
    "synthesize": "pipeline.request.config:SynthesizeConfig",
    "interpret": "pipeline.learning.interpreting.config:InterpretConfig",
    "serve": "pipeline.streaming.config:ServeConfig",
    "train": "distill.configs.train:TrainConfig",
    "train_online": "distill.configs.train:TrainConfig",
    "evaluate": "distill.configs.evaluate:EvaluateConfig",
    "evaluate_coco": "distill.configs.evaluate:EvaluateConfig",
}
MAX_MAIN_SETTINGS = 26
MAKING = ("encode", "encode_timm", "soft_labels", "synthesize")
"""Stems of recipes that make datasets."""
PLANNED = [p for p in RECIPES if p.stem in MAKING]
PUBLISHED = [p for p in PLANNED if "\nassume:" in p.read_text(encoding="utf-8")]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "recipes"))


def settings_class(path: Path) -> type:
    module, _, attribute = VERBS[path.stem].partition(":")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_it_parses_and_prints(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cls = settings_class(path)
    config = load_config(cls, ["--config", str(path)], prog="x", description="")
    with pytest.raises(SystemExit):
        load_config(cls, ["--config", str(path), "--print_config"], prog="x", description="")
    again, problems = check(cls, parse_yaml(capsys.readouterr().out))
    assert not problems and again == config, "what it prints is what it is"


@pytest.mark.parametrize("path", OVERLAYS, ids=name)
def test_a_row_changes_its_recipe_and_has_a_folder_of_its_own(path: Path) -> None:
    from distill.configs.train import TrainConfig

    files = ["--config", str(path.parent / "train.yaml")]
    base = load_config(TrainConfig, files, prog="x", description="")
    row = load_config(TrainConfig, [*files, "--config", str(path)], prog="x", description="")
    runs = [parse_yaml(other.read_text(encoding="utf-8"))["run_dir"] for other in OVERLAYS]
    assert row.method == base.method and row.run_dir != base.run_dir
    assert runs.count(row.run_dir) == 1


@pytest.mark.parametrize("target", sorted(set(VERBS.values())))
def test_help_shows_some_twenty_settings_that_exist(target: str) -> None:
    module, _, attribute = target.partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    keys = {setting.key for setting in walk(cls, {}) if not setting.is_heading}
    main = cls.main_settings.split()
    assert set(main) <= keys and len(set(main)) == len(main) <= MAX_MAIN_SETTINGS


@pytest.mark.parametrize("path", [p for p in PLANNED if p not in PUBLISHED], ids=name)
def test_it_plans_with_a_stand_in(path: Path, tmp_path: Path) -> None:
    """The noise teacher has maps of any stride; the digits stand in for the images."""
    import dataclasses

    from pipeline.images.source import SourceConfig
    from pipeline.request.config import EncodeConfig
    from pipeline.request.plan import describe
    from pipeline.request.resolve import resolve

    config = load_config(settings_class(path), ["--config", str(path)], prog="x", description="")
    config = dataclasses.replace(config, root=str(tmp_path))
    encodes = isinstance(config, EncodeConfig)
    if encodes:
        config = dataclasses.replace(config, source=SourceConfig(kind="digits"))
    if config.teacher.interpreter:
        with pytest.raises(ConfigError, match=r"teacher\.(interpreter|path): got"):
            resolve(config.request())
        return
    teacher = dataclasses.replace(config.teacher, kind="noise", path="", settings={"channels": 512})
    request = resolve(dataclasses.replace(config, teacher=teacher).request())
    assert len(request.spec.levels) == len(config.teacher.levels)
    if encodes:
        assert request.spec.image_size == (config.image.shape or request.spec.image_size)
    assert "shards" in describe(request.plan)


@pytest.mark.parametrize("path", PUBLISHED, ids=name)
def test_it_plans_without_weights_and_images(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the recipe says of them stands in: the command prints samples, shards and bytes."""
    from pipeline.request.plan_command import main as plan

    monkeypatch.chdir(tmp_path)
    assert plan(["--config", str(path)]) == 0
    shown = capsys.readouterr().out
    raw = parse_yaml(path.read_text(encoding="utf-8"))
    assert f"samples   {raw.get('samples') or raw['assume']['samples']:,}" in shown
    levels = [*raw["teacher"]["levels"], *raw["teacher"].get("soft_labels", [])]
    side = raw["image"]["size"] if "image" in raw else raw["assume"]["image_size"]
    width = raw.get("image", {}).get("width", side)
    for level in levels:
        cells = side * width // int(level[1:]) ** 2
        stored = 1 if "int8" in raw.get("codec", "") else 2
        channels = raw["assume"]["channels"][level]
        rank = 32 if raw.get("codec") == "lowrank32-int8" else channels
        assert f" {cells * rank * stored:,} " in shown, level
    assert "is not there: its levels are those that `assume` names" in shown
    assert raw["teacher"]["path"] in shown


def test_every_published_setting_can_be_planned() -> None:
    runnable = {"digits", "cifar10", "camvid", "cifar10-compress", "cifar10-squeeze-and-span"}
    runnable |= {"cifar10-mix", "cifar10-compress-student", "cifar10-selfcond"}
    assert {p.parent.name for p in PLANNED} - runnable == {p.parent.name for p in PUBLISHED}


def test_two_teachers_of_one_student_see_the_same_images() -> None:
    """What joins has source, seed and image rule in common, and a teacher of its own."""
    folder = ROOT / "recipes" / "imagenet-sd14-dinov2-resnet50"
    first, second = (
        load_config(settings_class(path), ["--config", str(path)], prog="x", description="")
        for path in (folder / "encode.yaml", folder / "encode_timm.yaml")
    )
    assert (first.source, first.image, first.seed) == (second.source, second.image, second.seed)
    assert (first.teacher.kind, second.teacher.kind) == ("diffusers", "timm")
    assert first.name != second.name


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in RECIPES}), ids=lambda path: path.name
)
def test_a_folders_files_fit_together(folder: Path) -> None:
    """What one recipe makes is what the next one reads."""
    made: set[str] = set()
    for stem in VERBS:
        path = folder / f"{stem}.yaml"
        if not path.exists():
            continue
        raw = parse_yaml(path.read_text(encoding="utf-8"))
        if stem in MAKING:
            made.add(f"{raw['root']}/{raw['name']}")
        if stem == "train":
            wanted = [raw["data"]["dataset"], *raw["data"].get("join", [])]
            assert set(wanted) <= made, path
            made.add(raw["run_dir"])
        if stem.startswith("evaluate"):
            assert raw["student"] in made, path
