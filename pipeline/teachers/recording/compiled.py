"""Compile a network's blocks with `torch.compile`, one by one, so that hooks stay between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dreamshard.errors import ConfigError, Problem
from dreamshard.progress import stage

if TYPE_CHECKING:
    from torch import nn

BLOCKS = frozenset(
    "ResnetBlock2D ResnetBlockCondNorm2D Attention BasicTransformerBlock JointTransformerBlock "
    "FluxTransformerBlock FluxSingleTransformerBlock".split()
)
"""Classes of diffusers whose forward pass is compiled; of nested ones the outermost."""
SHAPES = 256
"""Shapes one block's code may be compiled for: every block of a UNet may have its own."""


def compile_blocks(root: nn.Module, *, key: str = "compile") -> int:
    """Compile the forward pass of every repeated block in place; return how many there are.

    A whole network is not compiled: its pass ends early, at the highest level asked for. Each block
    is compiled when it is first run, which is said; the first batch takes minutes, on a CPU many,
    where each kernel is a C++ program. Results differ from the plain network's within its rounding.

    Args:
        root: on its device.
        key: of the setting that asks for it.

    Raises: ConfigError: blocks on a CPU, and no C++ compiler.
    """
    import torch

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    blocks: dict[str, nn.Module] = {}
    for name, part in root.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in blocks)
        if type(part).__name__ in BLOCKS and not inside:
            blocks[name] = part
    on_cpu = any(parameter.device.type == "cpu" for parameter in root.parameters())
    if blocks and on_cpu:
        _check_compiler(key)
    for number, (name, part) in enumerate(blocks.items(), 1):
        told = f"compile: block {number} of {len(blocks)}, {name}"
        if number == 1:
            slow = ", each of many kernels by a C++ compiler: minutes, on a busy machine many"
            told += f" (once a start{slow * on_cpu}; without {key} the first batch takes seconds)"
        part.forward = _announced(part, torch.compile(part.forward, dynamic=False), told)
    return len(blocks)


def _announced(part: nn.Module, compiled: Callable[..., Any], told: str) -> Callable[..., Any]:
    """Say that a block is being compiled at its first pass, and stand aside."""

    def first(*given: Any, **named: Any) -> Any:
        stage(told)
        part.forward = compiled
        return compiled(*given, **named)

    return first


def _check_compiler(key: str) -> None:
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        need = "a C++ compiler (g++ or clang++), which compiling for a CPU takes"
        hint = "Install one, or do without."
        raise ConfigError(Problem(key, "no C++ compiler", need, hint)) from None
