"""Tensors as files take them: each with memory of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


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
    found: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, value in values.items():
        tensor = value if device is None else value.to(device)
        tensor = tensor.contiguous()
        place = tensor.untyped_storage().data_ptr()
        if place and place in memory:
            tensor = tensor.clone()
        memory.add(place)
        found[name] = tensor
    return found
