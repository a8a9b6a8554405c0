"""Where networks run."""

from __future__ import annotations

import sys

import torch
from torch import nn

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


FEWEST_CHANNELS = 8
"""Of a convolution whose gradients oneDNN computes within its memory on AVX2."""


def avoid_narrow_kernels(module: nn.Module, device: torch.device) -> bool:
    """Turn oneDNN off in this process where it would damage memory; a line on stderr says so.

    The backward pass of strided convolutions with fewer than 8 channels writes past its buffers on
    CPUs without AVX-512 (seen with torch 2.15: "corrupted double-linked list", wrong numbers).

    Args:
        module: to be trained.
        device: on which.
    """
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512":
        return False
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    # The three channels of an image are safe: nothing needs gradients with respect to it.
    narrow = [m.out_channels for m in convolutions if m.out_channels < FEWEST_CHANNELS]
    if not narrow or not torch.backends.mkldnn.enabled:
        return False
    torch.backends.mkldnn.enabled = False  # pyright: ignore[reportAttributeAccessIssue]
    sys.stderr.write(
        f"oneDNN is off (slower): it damages memory for convolutions of {min(narrow)} channels on "
        f"this CPU; from {FEWEST_CHANNELS} channels on it is used\n"
    )
    return True
