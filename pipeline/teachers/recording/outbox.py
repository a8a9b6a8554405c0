"""Carry recorded levels from the device to the host while the network goes on computing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamshard.errors import DataError
from dreamshard.foreign import trusted

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from storage.schema import Level


def as_recorded(value: Tensor, level: Level) -> Tensor:
    """Pool a map (N, C, H, W) as its level asks and convert it, still on its device."""
    import torch

    kept = trusted.attribute(torch, level.dtype, allowed=("float16", "float32"))
    if level.pool == "gap":
        value = value.mean((2, 3), dtype=torch.float32)
    # Converted and laid out in one pass.
    return value.to(kept, memory_format=torch.contiguous_format).contiguous()


class Outbox:
    """Collect levels by name; on a CUDA device each copy starts at once, on a stream of its own.

    Args:
        device: where the levels are computed.

    The levels are checked for NaN and infinity where they are, with one answer for all of them.
    """

    def __init__(self, device: torch.device) -> None:
        import torch

        self._sent: dict[str, tuple[Tensor, Tensor]] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __setitem__(self, name: str, value: Tensor) -> None:
        """Take a level (N, ...) and start its copy."""
        import torch

        # One pass: a NaN or an infinity anywhere makes the sum not finite; finite numbers of half
        # the width cannot.
        wide = torch.float64 if value.dtype == torch.float32 else torch.float32
        finite = value.sum(dtype=wide).isfinite()
        if self._stream is not None:
            host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._stream.wait_stream(torch.cuda.current_stream(value.device))
            with torch.cuda.stream(self._stream):
                host.copy_(value, non_blocking=True)
            value.record_stream(self._stream)  # its memory is not reused before the copy is done
            value = host
        self._sent[name] = (value, finite)

    def collect(self) -> dict[str, np.ndarray]:
        """Wait for the copies and return the levels as arrays.

        Raises: DataError naming the first level with a value that is not finite.
        """
        import torch

        if self._stream is not None:
            self._stream.synchronize()
        flags = torch.stack([finite for _, finite in self._sent.values()]).tolist()
        for name, finite in zip(self._sent, flags, strict=True):
            if not finite:
                raise DataError(
                    f"level {name}: a feature is NaN or beyond float16's 65504. Record its "
                    "pooled form (pool: gap), another level, or use compute_dtype float32."
                )
        return {name: value.numpy() for name, (value, _) in self._sent.items()}
