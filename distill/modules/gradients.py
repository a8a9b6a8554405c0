"""How hard a term of the loss pulls at the student, and whether any does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dreamshard.errors import ConfigError, Problem


def gradient_norm(value: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of a scalar's gradient at some tensors, 0 where it reaches none.

    Args:
        value: a scalar whose graph is kept.
        places: tensors it may depend on.
    """
    if not value.requires_grad:
        return torch.zeros_like(value)
    with torch.autocast(value.device.type, enabled=False):  # of the backward pass's own formats
        gradients = torch.autograd.grad(value, places, retain_graph=True, allow_unused=True)
    squares = [each.float().square().sum() for each in gradients if each is not None]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros_like(value).detach()


def check_weights(terms: Mapping[str, Mapping[str, float]], *, section: str, apart: bool) -> None:
    """Refuse weights that are all zero: nothing would be trained.

    Args:
        terms: weights of the terms of each objective.
        section: key of the settings.
        apart: each objective must train something, not only all together.

    Raises:
        ConfigError: naming the terms.
    """
    groups = {f"{section}.{name}": own for name, own in terms.items()}
    if not apart:
        flat = {f"{name} {term}": w for name, own in terms.items() for term, w in own.items()}
        groups = {section: flat}
    problems = []
    for key, own in groups.items():
        if own and not any(own.values()):
            allowed = "a weight above 0" + (f", or {key}.weight 0" if apart else "")
            got = f"weights that are all zero ({', '.join(own)})"
            problems.append(Problem(key, got, allowed))
    if problems:
        raise ConfigError(problems)
