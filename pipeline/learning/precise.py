"""What is computed in float32 whatever a network around it is computed in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree

P = ParamSpec("P")
R = TypeVar("R")
KINDS = ("cpu", "cuda")
HALVES = (torch.bfloat16, torch.float16)


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function outside autocast, with tensors of half the precision made float32.

    Making the arguments float32 is not enough: inside autocast a product of float32 matrices is
    computed in bfloat16 again, coordinates of a crop are rounded to whole pixels, and a sum over an
    image overflows float16.
    """

    @functools.wraps(function)
    def precise(*args: P.args, **kwargs: P.kwargs) -> R:
        given, named = _pytree.tree_map_only(Tensor, _single, (args, dict(kwargs)))
        with ExitStack() as stack:
            for kind in KINDS:
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            return function(*given, **named)  # pyright: ignore[reportCallIssue]

    return precise


def _single(value: Any) -> Any:
    return value.float() if value.dtype in HALVES else value
