"""The learning rate of every training here: linear warm-up, then a cosine, a function of the step.

The schedules of torch, timm, transformers and diffusers reach the same curve by other roundings,
start at a rate of 0, or have no floor; this one keeps the very weights of runs made before, and a
resumed run asks it for any step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.optim import Optimizer


@dataclass(frozen=True)
class WarmupCosine:
    """Rise linearly to the peak, then fall along a cosine to the floor.

    Args:
        peak: highest rate.
        steps: of the whole run (count).
        warmup: steps of the rise (count).
        floor: where the cosine ends, as a share of the peak (0..1).
        lag: 0: the last step has the floor's rate; 1: the first step after the rise has the peak's.
        hold: steps that keep one rate, such as those of an epoch (count).
    """

    peak: float
    steps: int
    warmup: int = 0
    floor: float = 0.0
    lag: int = 0
    hold: int = 1

    def __call__(self, step: int) -> float:
        """Return the rate of a step, 1..steps."""
        step = (step - 1) // self.hold * self.hold + 1
        if step <= self.warmup:
            return self.peak * step / self.warmup
        progress = (step - self.lag - self.warmup) / max(1, self.steps - self.warmup)
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return self.peak * (self.floor + (1 - self.floor) * cosine)

    def set(self, optimizer: Optimizer, step: int) -> float:
        """Set the rate of every parameter group and return it.

        A group's `lr_scale` multiplies its rate; one with `fixed_rate` stays at the peak.
        """
        rate = self(step)
        for group in optimizer.param_groups:
            group["lr"] = (self.peak if group.get("fixed_rate") else rate) * group.get(
                "lr_scale", 1.0
            )
        return rate


def extension(old: WarmupCosine, new: WarmupCosine, *, step: int) -> str:
    """Say what becomes of the rate where a run gets more steps than it was planned for.

    Args:
        old, new: schedules of the run as it was planned, and as it is now.
        step: steps done.
    """
    return (
        f"extended from {old.steps:,} to {new.steps:,} steps. From step {step + 1:,} on the "
        f"learning rate is that of a run of {new.steps:,}: it goes from {old(step):.3g} to "
        f"{new(step + 1):.3g}, then down to {new(new.steps):.3g}. (A run that had them from "
        "the start would have learnt something else.)"
    )
