"""Settings of training and evaluation: recipes parse, mistakes are found at once, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from distill.configs.evaluate import EvaluateConfig
from distill.configs.train import TrainConfig
from dreamshard.config import load_config
from dreamshard.errors import ConfigError


def load(cls: type, *arguments: str):
    return load_config(cls, arguments, prog="test", description="Test.")


def test_the_digits_recipes_parse(repo_root: Path) -> None:
    recipes = repo_root / "recipes" / "digits"
    config = load(TrainConfig, "--config", str(recipes / "train.yaml"))
    assert config.data.dataset and config.optimizer.lr > 0
    evaluation = load(EvaluateConfig, "--config", str(recipes / "evaluate.yaml"))
    assert evaluation.student == config.run_dir
    encode = (recipes / "encode.yaml").read_text(encoding="utf-8")
    assert f"name: {Path(config.data.dataset).name}" in encode


def test_mistakes_of_every_section_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        load(
            TrainConfig,
            *("--steps", "0"),
            *("--optimizer.lr", "-1"),
            *("--student.std", "[1, 0, 1]"),
            *("--studnet.name", "resnet50"),
        )
    text = str(caught.value)
    for part in ("steps", "optimizer.lr", "student.std", "Did you mean student?"):
        assert part in text
    assert "data.dataset: got nothing" in text


def test_what_fields_cannot_tell_alone_is_checked() -> None:
    with pytest.raises(ConfigError) as caught:
        load(
            TrainConfig,
            *("--data.dataset", "x"),
            *("--method", "dreamtaecher"),
            *("--save_every", "15"),
        )
    text = str(caught.value)
    assert "Did you mean 'dreamteacher'?" in text
    assert "save_every: got 15, allowed a multiple of log_every (10). Try --save_every 20." in text
    with pytest.raises(ConfigError, match=r"image\.views"):
        load(EvaluateConfig, "--image.views", "2")
    with pytest.raises(ConfigError, match="tasks.*few_label"):
        load(EvaluateConfig, "--tasks", "[few_labels]")


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_help_and_errors_need_no_torch(verb: str, repo_root: Path) -> None:
    code = f"""
import sys
from distill.{verb} import main
try:
    main(["--help"])
except SystemExit:
    pass
try:
    main(["--seed", "-1", "--device", "tpu"])
except Exception as error:
    print(error)
heavy = ("torch", "timm", "accelerate", "ray", "sklearn")
print([name for name in heavy if name in sys.modules])
"""
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, check=True
    ).stdout
    assert output.splitlines()[-1] == "[]"
    assert "--student" in output and "problems in the configuration" in output


@pytest.mark.parametrize(
    ("asked", "several", "told"),
    [("auto", True, True), ("auto", False, False), ("on", False, True), ("off", True, False)],
)
def test_gradients_are_told_where_several_objectives_compete(
    asked: str, several: bool, told: bool
) -> None:
    words = ("--data.dataset", "d", "--log_gradients", asked, "--log_every", "5", "--steps", "12")
    config = load(TrainConfig, *words)
    steps = [step for step in range(1, 13) if config.tells_gradients(step, several=several)]
    assert steps == ([5, 10, 12] if told else [])
