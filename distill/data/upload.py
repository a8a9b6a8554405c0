"""Bring batches to a GPU while it computes: pinned buffers, a stream of their own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamshard.errors import ConfigError, Problem


class Uploader:
    """Copy arrays to a device; on a GPU beside its computations.

    The buffers that a reader fills again and again are pinned when they are first seen, so that a
    copy needs no staging and the host does not wait for it: while the GPU still computes a step,
    the next one's batch is on its way. `settle` must come before the buffers are filled again.

    Args:
        device: where batches go; on a CPU arrays stay what they are.
        pin: the same few buffers come again and again; memory that is given back must not be
            pinned.
    """

    def __init__(self, device: torch.device, *, pin: bool) -> None:
        self._device, self._pin = device, pin
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._runtime: Any = torch.cuda.cudart() if self._stream is not None else None
        self._pinned: set[int] = set()
        self.wait_s = 0.0
        """Seconds that the host has spent on copies so far."""

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor | np.ndarray]:
        """Start the copies; what the device is given next waits for them.

        Args:
            arrays: by name; uint16, of which torch can do little, comes back as int16.

        Raises:
            ConfigError: no more memory can be pinned.
        """
        if self._stream is None:
            return dict(arrays)
        began = time.perf_counter()
        current = torch.cuda.current_stream(self._device)
        copies: dict[str, Tensor | np.ndarray] = {}
        with torch.cuda.stream(self._stream):
            for name, rows in arrays.items():
                plain = rows.view(np.int16) if rows.dtype == np.uint16 else rows
                if self._pin:
                    self._register(rows)
                copied = torch.from_numpy(plain).to(self._device, non_blocking=True)
                copied.record_stream(current)  # not given to the next copy while it is read
                copies[name] = copied
        current.wait_stream(self._stream)
        self.wait_s += time.perf_counter() - began
        return copies

    def settle(self) -> None:
        """Wait until all copies that were started are done."""
        if self._stream is not None:
            began = time.perf_counter()
            self._stream.synchronize()
            self.wait_s += time.perf_counter() - began

    def close(self) -> None:
        """Let the buffers go; before their memory is given back."""
        self.settle()
        while self._pinned:
            self._runtime.cudaHostUnregister(self._pinned.pop())

    def _register(self, rows: np.ndarray) -> None:
        address = rows.ctypes.data
        if address in self._pinned or not rows.nbytes:
            return
        code = self._runtime.cudaHostRegister(address, rows.nbytes, 0)
        if int(code) != 0:
            size = f"{rows.nbytes / 1e6:.0f} MB"
            got = f"batches of which {size} cannot be pinned (CUDA error {code})"
            hint = "Set a smaller batch_size or data.prefetch, or raise the limit (ulimit -l)."
            raise ConfigError(Problem("data.prefetch", got, "what the host can pin", hint))
        self._pinned.add(address)
