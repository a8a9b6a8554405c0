"""Images as students take them: uint8 (N, H, W, 3) to float32 (N, 3, H, W) on a device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Normaliser:
    """Bring images to the mean and spread that a student expects.

    Args:
        mean, std: per channel, of pixels in 0..1.
        device: where the images go.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], *, device: torch.device
    ) -> None:
        self._device = device
        self._shift, self._scale = (
            torch.tensor([255 * value for value in values], device=device).view(1, 3, 1, 1)
            for values in (mean, std)
        )

    def __call__(self, images: np.ndarray | Tensor) -> Tensor:
        """Return uint8 (N, H, W, 3) as float32 (N, 3, H, W), channels last."""
        pixels = torch.as_tensor(images).to(self._device).permute(0, 3, 1, 2)
        # Seen so, they are channels_last already: one pass makes them float.
        floats = pixels.to(torch.float32, memory_format=torch.channels_last)
        return floats.sub_(self._shift).div_(self._scale)
