"""Compile a network's blocks with `torch.compile`, one by one, so that hooks stay between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

BLOCKS = frozenset(
    "ResnetBlock2D ResnetBlockCondNorm2D Attention BasicTransformerBlock JointTransformerBlock "
    "FluxTransformerBlock FluxSingleTransformerBlock".split()
)
"""Classes of diffusers whose forward pass is compiled; of nested ones the outermost."""
SHAPES = 256
"""Shapes one block's code may be compiled for: every block of a UNet may have its own."""


def compile_blocks(root: nn.Module) -> int:
    """Compile the forward pass of every repeated block in place; return how many there are.

    A whole network is not compiled: its pass ends early, at the highest level asked for. The first
    batch takes minutes; results differ from the plain network's within its rounding.
    """
    import torch

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    compiled: list[str] = []
    for name, part in root.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in compiled)
        if type(part).__name__ in BLOCKS and not inside:
            compiled.append(name)
            part.forward = torch.compile(part.forward, dynamic=False)
    return len(compiled)
