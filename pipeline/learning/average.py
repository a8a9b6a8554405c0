"""Moving averages of weights: timm's, with two ways of forgetting the initial ones."""

from __future__ import annotations

from timm.utils.model_ema import ModelEmaV3
from torch import nn


class RatioEma(ModelEmaV3):
    """Average with the decay min(decay, s / (9 + s)) at step s (1, 2, ...), as DDPM's code does."""

    def get_decay(self, step: int | None = None) -> float:
        """Return the decay of a step; the final one where no step is given."""
        return self.decay if step is None else min(self.decay, step / (9 + step))


def build_average(module: nn.Module, *, decay: float) -> ModelEmaV3 | None:
    """Build the moving average of a module's weights and buffers, on its device; None at decay 0.

    At step s (1, 2, ...) the decay is min(decay, 1 - s^(-2/3)).
    """
    return ModelEmaV3(module, decay=decay, use_warmup=True) if decay else None
