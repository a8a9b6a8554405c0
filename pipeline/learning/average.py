"""Moving averages of weights: timm's, with two ways of forgetting the initial ones."""

from __future__ import annotations

from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn


class Average(ModelEmaV3):
    """Average every tensor once a step, tied weights too, which timm would move once per name."""

    def _foreach_lerp_(
        self, ema_values: list[Tensor], model_values: list[Tensor], weight: float
    ) -> None:
        memory = {
            (v.data_ptr(), v.shape): (v, m) for v, m in zip(ema_values, model_values, strict=True)
        }
        averages, weights = ([pair[side] for pair in memory.values()] for side in (0, 1))
        super()._foreach_lerp_(averages, weights, weight)


class RatioEma(Average):
    """Average with the decay min(decay, s / (9 + s)) at step s (1, 2, ...), as DDPM's code does."""

    def get_decay(self, step: int | None = None) -> float:
        """Return the decay of a step; the final one where no step is given."""
        return self.decay if step is None else min(self.decay, step / (9 + step))


def build_average(module: nn.Module, *, decay: float) -> ModelEmaV3 | None:
    """Build the moving average of a module's weights and buffers, on its device; None at decay 0.

    At step s (1, 2, ...) the decay is min(decay, 1 - s^(-2/3)).
    """
    return Average(module, decay=decay, use_warmup=True) if decay else None
