"""Every verb that writes its run folder over a long time lets one process into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.configs.evaluate import EvaluateConfig
from distill.configs.train import TrainConfig
from distill.evaluate import evaluate
from distill.train import train
from dreamshard.errors import ConfigError
from dreamshard.owner.alone import only_one
from pipeline.interpret import interpret
from pipeline.learning.interpreting.config import InterpretConfig
from pipeline.learning.pretraining.cleaning.command import clean
from pipeline.learning.pretraining.cleaning.config import CleanConfig
from pipeline.learning.pretraining.config import PretrainConfig
from pipeline.pretrain import pretrain

VERBS: dict[str, tuple[Callable[[Any], Any], Callable[..., Any]]] = {
    "train": (train, TrainConfig),
    "evaluate": (evaluate, EvaluateConfig),
    "interpret": (interpret, InterpretConfig),
    "clean": (clean, CleanConfig),
    "pretrain": (pretrain, PretrainConfig),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_second_process_is_refused_before_it_touches_anything(verb: str, tmp_path: Path) -> None:
    """Two of one run owned the folder alike: each removed the checkpoint the other was writing."""
    run, config = VERBS[verb]
    folder = tmp_path / "run"
    with only_one(folder):
        before = sorted(folder.iterdir())
        with pytest.raises(ConfigError, match=r"run_dir: got .*/run, in which process \d+ on"):
            run(config(run_dir=str(folder)))
        assert sorted(folder.iterdir()) == before
