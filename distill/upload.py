"""Bring batches to a GPU while it computes: pinned buffers, a stream of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dreamshard.errors import DreamshardError

if TYPE_CHECKING:
    from collections.abc import Callable


class Uploader:
    """Copy arrays to a device; on a GPU beside its computations.

    The reader's buffers are pinned once (`pin`), so that a copy needs no staging and the host does
    not wait for it. `settle` must come before the buffers are written again.

    Args:
        device: where batches go; on a CPU arrays stay what they are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pinned: list[int] = []

    @property
    def pin(self) -> Callable[[int, int], object] | None:
        """What a reader calls for each of its buffers; None where nothing is pinned."""
        return None if self._stream is None else self._register

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor | np.ndarray]:
        """Start the copies; what the device is given next waits for them.

        Args:
            arrays: by name; uint16, of which torch can do little, comes back as int16.
        """
        if self._stream is None:
            return dict(arrays)
        current = torch.cuda.current_stream(self._device)
        found: dict[str, Tensor | np.ndarray] = {}
        with torch.cuda.stream(self._stream):
            for name, rows in arrays.items():
                plain = rows.view(np.int16) if rows.dtype == np.uint16 else rows
                copied = torch.from_numpy(plain).to(self._device, non_blocking=True)
                copied.record_stream(current)  # not reused by the next copy while it is read
                found[name] = copied
        current.wait_stream(self._stream)
        return found

    def settle(self) -> None:
        """Wait until all copies that were started are done."""
        if self._stream is not None:
            self._stream.synchronize()

    def close(self) -> None:
        """Let the buffers go; before their memory is given back."""
        self.settle()
        while self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self._pinned.pop())

    def _register(self, address: int, num_bytes: int) -> None:
        code = torch.cuda.cudart().cudaHostRegister(address, num_bytes, 0)
        if int(code) != 0:
            raise DreamshardError(
                f"data.prefetch: {num_bytes / 1e6:.0f} MB of host memory cannot be pinned (CUDA "
                f"error {int(code)}). Set a smaller batch_size or data.prefetch."
            )
        self._pinned.append(address)
