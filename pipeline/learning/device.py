"""Where networks run, and how their tensors lie in memory."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

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


Network = TypeVar("Network", bound=nn.Module)
FEWEST_CHANNELS = 8
"""That enter a strided 1 x 1 convolution whose gradients oneDNN computes within its memory."""


def on_device(network: Network, device: torch.device) -> Network:
    """Move a network to where it is trained, channels last as its batches are."""
    avoid_narrow_kernels(network, device)
    moved: Network = network.to(device, memory_format=torch.channels_last)  # pyright: ignore
    return moved


def sent(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a device; no wait for what is queued there, as with pageable memory."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda" or not array.size:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def avoid_narrow_kernels(module: nn.Module, device: torch.device) -> bool:
    """Turn oneDNN off in this process where it would damage memory; a line on stderr says so.

    On CPUs without AVX-512 the backward pass of channels-last 1 x 1 convolutions with a stride and
    fewer than 8 input channels writes past its buffers (torch 2.15, under glibc's MALLOC_CHECK_:
    every such shape, no other of 1,100 tried); runs abort later, or end with wrong numbers.

    Args:
        module: to be trained.
        device: on which.
    """
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512":
        return False
    narrow = [m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d) and _risky(m)]
    if not narrow or not torch.backends.mkldnn.enabled:
        return False
    torch.backends.mkldnn.enabled = False  # pyright: ignore[reportAttributeAccessIssue]
    sys.stderr.write(
        f"oneDNN is off (slower): on this CPU it damages memory where {min(narrow)} channels enter "
        f"a strided 1 x 1 convolution; students with {FEWEST_CHANNELS} or more there keep it\n"
    )
    return True


def _risky(layer: nn.Conv2d) -> bool:
    pointwise = layer.kernel_size == (1, 1) and max(layer.stride) > 1
    return pointwise and layer.in_channels // layer.groups < FEWEST_CHANNELS


def apart(
    values: Mapping[str, Tensor], *, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Return tensors that safetensors writes: contiguous, and none in another's memory.

    Tied weights (CoaT's) are written once per name, so that whoever reads the file finds every name
    and no reader has to know what was tied.

    Args:
        values: by name, such as a module's state.
        device: where to bring them first; None: they stay.
    """
    separate: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, value in values.items():
        tensor = value if device is None else value.to(device)
        tensor = tensor.contiguous()
        place = tensor.untyped_storage().data_ptr()
        if place and place in memory:
            tensor = tensor.clone()
        memory.add(place)
        separate[name] = tensor
    return separate
