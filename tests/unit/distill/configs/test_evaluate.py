"""Settings of an evaluation that contradict each other."""

from __future__ import annotations

import pytest

from distill.configs.evaluate import EvaluateConfig
from distill.configs.train import TrainConfig
from dreamshard.config import load_config
from dreamshard.errors import ConfigError


def test_an_evaluation_without_a_task_is_none() -> None:
    with pytest.raises(ConfigError, match=r"tasks: got \[\], allowed one task or more"):
        load_config(EvaluateConfig, ["--tasks", "[]"], prog="dreamshard evaluate", description="")


@pytest.mark.parametrize("cls", [EvaluateConfig, TrainConfig])
def test_the_working_folder_is_not_taken_for_a_run(cls: type) -> None:
    with pytest.raises(ConfigError, match='run_dir: got "", allowed text not empty. Try --run_'):
        load_config(cls, ["--run_dir", ""], prog="dreamshard", description="")
