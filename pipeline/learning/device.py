"""Where networks run."""

from __future__ import annotations

import torch

from dreamshard.errors import ConfigError, Problem


def choose_device(name: str) -> str:
    """Return "cpu" or "cuda" for auto, cpu or cuda.

    Raises:
        ConfigError: CUDA is asked for and not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        hint = "Try --device auto."
        raise ConfigError(Problem("device", "'cuda'", "cpu, as no CUDA device is visible", hint))
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"
