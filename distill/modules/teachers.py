"""Several teachers of one student: what each one's loss counts, and who is left out when.

Shapes: B samples, T teachers, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from distill.modules.draws import SampleDraws
from pipeline.learning.ranks import gathered_rows

Balance = Literal["levels", "teachers", "losses"]
KEPT = 0.99
"""Share of itself that a loss's moving average keeps per step."""


class TeacherWeights(nn.Module):
    """Weigh teachers' losses, 1 in sum over them for each image; a part of checkpoints.

    Args:
        owners: number of the teacher of each level.
        balance: levels weighs a teacher by its levels, teachers all alike, losses by the inverse of
            the moving average of its loss.
        dropping: chance of a teacher to be left out for an image, unless its loss is the largest.
        seed: of what is left out.

    Source: teacher dropping of UNIC (Sariyildiz et al. 2024).
    """

    places: Tensor
    counts: Tensor
    averages: Tensor

    def __init__(
        self, owners: Sequence[int], *, balance: Balance, dropping: float, seed: int
    ) -> None:
        super().__init__()
        self.balance, self.dropping = balance, dropping
        known = list(dict.fromkeys(owners))
        places = torch.tensor([known.index(owner) for owner in owners])
        counts = places.bincount().float()
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("averages", torch.zeros(len(known)))
        self.draws = SampleDraws(seed)

    @torch.no_grad()
    def forward(self, losses: Tensor, numbers: Tensor | None) -> Tensor:
        """Return what each level counts for each image, float32 (B, L), 1 in sum.

        Args:
            losses: float (B, L), of this rank's images; a teacher's is the mean of its levels'.
            numbers: int64 (B,), of the samples; None where no teacher is left out.
        """
        sums = losses.new_zeros(len(losses), len(self.counts)).index_add(1, self.places, losses)
        return (self.weigh(sums / self.counts, numbers) / self.counts)[:, self.places]

    @torch.no_grad()
    def weigh(self, losses: Tensor, numbers: Tensor | None) -> Tensor:
        """Return what each teacher counts for each image, float32 (B, T), 1 in sum; of (B, T)."""
        weights = self._balanced(losses).expand_as(losses)
        if not self.dropping:
            return weights
        assert numbers is not None, "an objective that draws asks for them"
        drawn = self.draws.uniform(numbers, losses.shape[1])
        largest = (weights * losses).argmax(dim=1, keepdim=True)
        kept = (drawn >= self.dropping).scatter(
            1, largest, torch.ones_like(largest, dtype=torch.bool)
        )
        weights = weights * kept
        return weights / weights.sum(dim=1, keepdim=True)

    def _balanced(self, losses: Tensor) -> Tensor:
        """Return the teachers' weights (T,); follow their losses where those decide them."""
        if self.balance != "losses":
            shares = self.counts if self.balance == "levels" else torch.ones_like(self.counts)
            return shares / shares.sum()
        now = gathered_rows(losses.detach().float()).mean(dim=0)
        moved = KEPT * self.averages + (1 - KEPT) * now
        self.averages.copy_(torch.where(self.averages > 0, moved, now))
        inverse = 1 / self.averages.clamp(min=1e-12)
        return inverse / inverse.sum()
