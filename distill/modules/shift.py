"""Show a student an image moved by whole cells, and compare with what its teacher saw unmoved.

What a teacher's maps have of places in the picture (position embeddings, borders, massive cells)
cannot be predicted from a moved image, so that a student does not learn it.

Shapes: B samples, C channels, h and w cells of a level's map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from distill.modules.draws import SampleDraws
from storage.schema import Level


class CellShift(nn.Module):
    """Move each image by up to n cells of the coarsest level, each way, by draws of its own.

    What moves in from outside is the image's border. A level's map loses n cells of the coarsest
    level at every side, so that all that is compared was seen by both.

    Args:
        cells: n, of the coarsest level.
        levels: whose maps are compared; every stride divides the coarsest.
        seed: of the draws.

    Source: the shift-equivariant loss of C-RADIOv4 (arXiv 2601.17237), for cached maps.
    """

    def __init__(self, cells: int, levels: Sequence[Level], *, seed: int) -> None:
        super().__init__()
        self.cells, self.grid = cells, max(level.stride for level in levels)
        self.strides = {level.name: level.stride for level in levels}
        self.draws = SampleDraws(seed)
        self.moved: Tensor | None = None

    def forward(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Return the images moved, (B, 3, H, W), and remember by how much.

        Args:
            images: (B, 3, H, W).
            numbers: int64 (B,), of the samples.
        """
        self.moved = self.draws.integers(numbers, 2, below=2 * self.cells + 1) - self.cells
        sides = (images.shape[2], images.shape[3])
        rows, columns = (
            (torch.arange(side, device=images.device) + self.moved[:, axis, None] * self.grid)
            .clamp(0, side - 1)
            for axis, side in enumerate(sides)
        )  # fmt: skip
        return windows(images, rows, columns)

    def inner(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cut off the student's maps what the teacher may not have seen there."""
        cut = {}
        for name, values in maps.items():
            edge = self._edge(name)
            cut[name] = values[..., edge : -edge or None, edge : -edge or None]
        return cut

    def seen(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cut out of the teacher's maps what lies where the student's inner cells are."""
        assert self.moved is not None, "images are moved first"
        cut = {}
        for name, values in maps.items():
            edge, ratio = self._edge(name), self.grid // self.strides[name]
            rows, columns = (
                torch.arange(edge, side - edge, device=values.device)
                + self.moved[:, axis, None] * ratio
                for axis, side in enumerate(values.shape[-2:])
            )
            cut[name] = windows(values, rows, columns)
        return cut

    def _edge(self, name: str) -> int:
        return self.cells * self.grid // self.strides[name]


def windows(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pick rows and columns of each sample: (B, C, H, W), int64 (B, h), (B, w) -> (B, C, h, w)."""
    channels_last = values.is_contiguous(memory_format=torch.channels_last)
    sample = torch.arange(len(values), device=values.device)[:, None, None]
    picked = values.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]]
    cut = picked.permute(0, 3, 1, 2)
    return cut if channels_last else cut.contiguous()
