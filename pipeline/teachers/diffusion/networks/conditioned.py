"""A `UNet2DModel` whose decoder is told what its middle found: self-conditioning, as in DDAE++.

diffusers does not know this class: its folders are read here.
"""

from __future__ import annotations

import functools
from typing import Any

from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F

CONDITIONED = "SelfConditionedUNet2DModel"


class SelfConditionedUNet2DModel(UNet2DModel):
    """Add a projection of the pooled middle feature to the decoder's time embedding.

    The projection begins at zero: untrained, the network computes what a `UNet2DModel` of the same
    weights does.

    Source: DDAE++ (arXiv 2505.10999).
    """

    @functools.wraps(UNet2DModel.__init__)
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        width, told = self.config["block_out_channels"][-1], self.time_embedding.linear_2
        self.mid_condition = nn.Linear(width, told.out_features)
        nn.init.zeros_(self.mid_condition.weight)
        nn.init.zeros_(self.mid_condition.bias)

    def forward(self, *told: Any, **named: Any) -> Any:
        """Run the network; arguments and results are those of `UNet2DModel`."""
        condition: list[Tensor] = []

        def after_middle(_: nn.Module, __: Any, output: Tensor) -> None:
            pooled = F.layer_norm(output.float().mean((2, 3)), output.shape[1:2])
            condition.append(self.mid_condition(pooled.to(self.mid_condition.weight.dtype)))

        def before_block(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            sample, skipped, embedding, *rest = given
            return sample, skipped, embedding + condition[0].to(embedding.dtype), *rest

        # For one pass at a time: a copy of the network has hooks of its own.
        assert self.mid_block is not None
        hooks = [self.mid_block.register_forward_hook(after_middle)]
        hooks += [block.register_forward_pre_hook(before_block) for block in self.up_blocks]
        try:
            return super().forward(*told, **named)
        finally:
            for hook in hooks:
                hook.remove()
