"""Settings of an evaluation that contradict each other."""

from __future__ import annotations

import pytest

from distill.configs.evaluate import EvaluateConfig
from dreamshard.config import load_config
from dreamshard.errors import ConfigError


def test_an_evaluation_without_a_task_is_none() -> None:
    with pytest.raises(ConfigError, match=r"tasks: got \[\], allowed one task or more"):
        load_config(EvaluateConfig, ["--tasks", "[]"], prog="dreamshard evaluate", description="")
