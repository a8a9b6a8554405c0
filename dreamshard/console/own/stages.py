"""What `dreamshard run` must know of its stages: their settings, and a finished evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreamshard.errors import DataError
from dreamshard.foreign import trusted
from dreamshard.foreign.text import read_json

CONFIGS = {
    "pretrain": "pipeline.learning.pretraining.config:PretrainConfig",
    "interpret": "pipeline.learning.interpreting.config:InterpretConfig",
    "encode": "pipeline.request.config:EncodeConfig",
    "synthesize": "pipeline.request.config:SynthesizeConfig",
    "train": "distill.configs.train:TrainConfig",
    "evaluate": "distill.configs.evaluate:EvaluateConfig",
}
"""Verb -> its settings."""


def config_class(verb: str) -> type[Any]:
    """Return the class of a verb's settings."""
    return trusted.listed(verb, table=CONFIGS)


def is_evaluated(settings: Any) -> bool:
    """Say whether an evaluation with these settings is finished, of the student as it is now."""
    folder = Path(settings.run_dir)
    results, written = folder / "results.json", folder / "config.resolved.yaml"
    if not (results.is_file() and written.is_file() and (folder / "README.txt").is_file()):
        return False
    from distill.students.card import student_digest
    from dreamshard.config import to_dict
    from dreamshard.config.yaml12 import read_yaml
    from dreamshard.redact import redact

    try:
        evaluated, digest = read_json(results), student_digest(Path(settings.student))
    except DataError:
        return False
    if evaluated.get("student_digest") != digest:  # times of files tell nothing: clocks are set
        return False
    same = read_yaml(str(written))[0] == redact(to_dict(settings))
    return same and all(task in evaluated for task in settings.tasks)
