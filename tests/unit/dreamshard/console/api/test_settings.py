"""Settings in Python mean what the same keys mean in a recipe and on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distill.configs.train import TrainConfig
from dreamshard.config import load_config
from dreamshard.console.api.settings import arguments, config_of
from dreamshard.errors import ConfigError
from pipeline.request.config import EncodeConfig


def test_nested_dotted_and_file_are_one(tmp_path: Path) -> None:
    file = tmp_path / "a b.yaml"
    file.write_text("name: x\nteacher: {kind: noise, levels: [s2], timesteps: [7]}\n")
    nested = {"teacher": {"levels": ["s4", "s8"]}, "samples": np.int64(9), "root": tmp_path}
    dotted = {"teacher.levels": ("s4", "s8"), "samples": 9, "root": str(tmp_path)}
    first = config_of(EncodeConfig, file, nested, verb="encode")
    assert first == config_of(EncodeConfig, str(file), dotted, verb="encode")
    assert first.teacher.levels == ["s4", "s8"] and first.teacher.timesteps == [7]
    whole = {"name": "x", "teacher": {"kind": "noise", "levels": ["s2"], "timesteps": [7]}}
    assert first == config_of(EncodeConfig, whole, dotted, verb="encode")


def test_texts_stay_texts_and_free_mappings_stay_whole() -> None:
    given = {
        "name": "007",
        "teacher": {"kind": "noise", "settings": {"a.b": "12", "c": None, "d": 1e-5}},
        "codec": {"default": "int8", "up.1.t100": "dct16"},
        "source.kind": "digits",
        "samples": None,
    }
    config = config_of(EncodeConfig, given, {}, verb="encode")
    assert config.name == "007" and config.samples is None
    assert config.teacher.settings == {"a.b": "12", "c": None, "d": 1e-5}
    assert config.codec == {"default": "int8", "up.1.t100": "dct16"}


def test_the_arguments_are_a_command_line() -> None:
    given = {"data": {"dataset": "data/x", "levels": ["s4"]}, "steps": 3, "restart": True}
    argv = arguments(TrainConfig, None, given)
    assert "--data.dataset=data/x" in argv and "--steps=3" in argv
    config = load_config(TrainConfig, argv, prog="x", description="")
    assert config == config_of(TrainConfig, given, {}, verb="train") and config.restart


def test_mistakes_come_all_at_once_by_dotted_key() -> None:
    wrong = {"stepz": 3, "data": {"dataset": "d", "levelz": []}, "student": {"name": 3.5}}
    with pytest.raises(ConfigError) as caught:
        config_of(TrainConfig, wrong, {"batch_size": 0}, verb="train")
    text = str(caught.value)
    assert "stepz: got an unknown key" in text and "Did you mean steps?" in text
    assert "data.levelz" in text and "batch_size: got 0" in text
    with pytest.raises(TypeError, match="is no setting"):
        arguments(TrainConfig, {"steps": object()}, {})
