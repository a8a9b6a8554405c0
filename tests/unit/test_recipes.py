"""Every recipe parses; those that encode can be planned, with a stand-in where data is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreamshard.config import check, load_config
from dreamshard.config.yaml12 import parse_yaml
from dreamshard.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
VERBS = {
    "pretrain": "pipeline.pretrain_config:PretrainConfig",
    "encode": "pipeline.config:EncodeConfig",
    "soft_labels": "pipeline.config:EncodeConfig",
    "synthesize": "pipeline.config:SynthesizeConfig",
    "interpret": "pipeline.interpret_config:InterpretConfig",
    "serve": "pipeline.streaming.config:ServeConfig",
    "train": "distill.config:TrainConfig",
    "train_online": "distill.config:TrainConfig",
    "evaluate": "distill.evaluate_config:EvaluateConfig",
}
PLANNED = [p for p in RECIPES if p.stem in ("encode", "soft_labels", "synthesize")]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "recipes"))


def settings_class(path: Path) -> type:
    import importlib

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


@pytest.mark.parametrize("path", PLANNED, ids=name)
def test_it_plans_without_the_data(path: Path, tmp_path: Path) -> None:
    """The noise teacher has maps of any stride; the digits stand in for the images."""
    import dataclasses

    from pipeline.config import EncodeConfig
    from pipeline.images import SourceConfig
    from pipeline.plan import describe
    from pipeline.resolve import resolve

    config = load_config(settings_class(path), ["--config", str(path)], prog="x", description="")
    config = dataclasses.replace(config, root=str(tmp_path))
    encodes = isinstance(config, EncodeConfig)
    if encodes:
        config = dataclasses.replace(config, source=SourceConfig())
    if config.teacher.interpreter:
        with pytest.raises(ConfigError, match=r"teacher\.(interpreter|path): got"):
            resolve(config)
        return
    settings = {"channels": 512} if encodes else {"channels": 512, "image_size": 256}
    teacher = dataclasses.replace(config.teacher, kind="noise", path="", settings=settings)
    request = resolve(dataclasses.replace(config, teacher=teacher))
    assert len(request.spec.levels) == len(config.teacher.levels)
    if encodes:
        assert request.spec.image_size == (config.image.shape or request.spec.image_size)
    assert "shards" in describe(request.plan)


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
        if stem in ("encode", "soft_labels", "synthesize"):
            made.add(f"{raw['root']}/{raw['name']}")
        if stem == "train":
            wanted = [raw["data"]["dataset"], *raw["data"].get("join", [])]
            assert set(wanted) <= made, path
            made.add(raw["run_dir"])
        if stem == "evaluate":
            assert raw["student"] in made, path
