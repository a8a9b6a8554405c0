"""What the steps of a training told: kept on the device until a line is due, checked, averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dreamshard.errors import DreamshardError

Explain = Callable[[int, Mapping[str, float], Any], DreamshardError]
"""Step, its figures and what was noted beside them -> the error to raise."""


class Figures:
    """Collect scalars of every step without waiting for the device.

    Args:
        explain: words the error of the first step with a figure that is not finite.
        gather: stacks a tensor over the ranks along its first axis; None: one process.
    """

    def __init__(self, explain: Explain, *, gather: Callable[[Tensor], Any] | None = None) -> None:
        self._explain, self._gather = explain, gather
        self._steps: list[tuple[int, dict[str, Tensor], Any]] = []

    def __len__(self) -> int:
        return len(self._steps)

    def note(self, step: int, terms: Mapping[str, Tensor], beside: Any = None) -> None:
        """Note a step's scalars, and what explains them should they not be finite."""
        self._steps.append((step, {name: value.detach() for name, value in terms.items()}, beside))

    def fewer(self, every: int) -> dict[str, float]:
        """Return {"averaged": count} where the next means are over fewer steps than a line's.

        That is so of the first line after a run that was stopped or killed between two.

        Args:
            every: steps from line to line.
        """
        whole = (self._steps[-1][0] - 1) % every + 1
        return {"averaged": len(self)} if len(self) < whole else {}

    def means(self) -> dict[str, float]:
        """Return the means over the steps noted since the last call, and over the ranks.

        A figure that only some steps told is averaged over those, the same ones on every rank.

        Raises:
            DreamshardError: `explain`'s, on every rank, if a figure was not finite on any of them.
        """
        names = list(dict.fromkeys(name for _, terms, _ in self._steps for name in terms))
        nothing = next(iter(self._steps[0][1].values())).float().new_zeros(())
        rows = torch.stack(
            [
                torch.stack([terms.get(name, nothing).float() for name in names])
                for _, terms, _ in self._steps
            ]
        )
        told = [[name in terms for name in names] for _, terms, _ in self._steps]
        every_rank = (self._gather or (lambda rows: rows))(rows[None])  # (ranks, steps, figures)
        broken = (~torch.isfinite(every_rank)).any(dim=2).any(dim=0).nonzero()
        if len(broken):
            step, terms, beside = self._steps[int(broken[0])]
            raise self._explain(step, {n: float(value) for n, value in terms.items()}, beside)
        self._steps.clear()
        shares = torch.tensor(told, dtype=torch.float64).mean(dim=0).tolist()
        means = every_rank.double().mean(dim=(0, 1)).tolist()
        return {n: mean / share for n, mean, share in zip(names, means, shares, strict=True)}


def is_finite(*modules: nn.Module) -> bool:
    """Tell whether all weights are numbers."""
    sums = [p.detach().float().sum() for module in modules for p in module.parameters()]
    return not sums or bool(torch.isfinite(torch.stack(sums)).all())
