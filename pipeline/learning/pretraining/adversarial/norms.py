"""Make the networks that teachers run learn: batch statistics, spectral norms, initial weights.

`pipeline/teachers/gan/` builds networks for inference, with stored statistics and plain weights.
`trainable` exchanges their norms for ones that normalise by the batch while they train;
`normalise_weights` puts torch's spectral norm on their layers; `plain_state` undoes both for the
file. So what is trained is what the loaders run, tensor for tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from pipeline.learning.pretraining.adversarial.sync import moments
from pipeline.learning.ranks import rank_count
from pipeline.teachers.gan.bigbigan import network as bigbigan
from pipeline.teachers.gan.biggan import network as biggan
from pipeline.teachers.gan.ssgan import network as ssgan

MOMENTUM = 0.1
"""Share of a batch's statistics that goes into the stored ones, torch's own."""
SETTLE = 50
"""Steps of power iteration after which an averaged weight's norm is known."""
NAMES = (("running_mean", "running_var"), ("stored_mean", "stored_var"), ("mean", "var"))
"""How norms for inference call their statistics."""


def batch_normalise(x: Tensor, mean: Tensor, var: Tensor, *, eps: float, training: bool) -> Tensor:
    """Standardise x by its batch over all ranks, or by stored statistics; no scale, no shift.

    Args:
        x: (N, C, ...).
        mean, var: stored float32 (C,); while training they move towards the batch's.
        eps: added to the variance.
    """
    if not training or rank_count() == 1:
        return F.batch_norm(x, mean, var, training=training, momentum=MOMENTUM, eps=eps)
    here, spread = moments(x)
    count = rank_count() * x.numel() // x.shape[1]
    with torch.no_grad():
        mean.lerp_(here, MOMENTUM)
        var.lerp_(spread * count / max(1, count - 1), MOMENTUM)
    shape = (1, -1, *[1] * (x.ndim - 2))
    return ((x.float() - here.view(shape)) * (spread.view(shape) + eps).rsqrt()).to(x.dtype)


class BatchNorm(nn.Module):
    """Stand where a norm for inference stood, with its parameters and buffers by its own names.

    Args:
        norm: whose place it takes; its parameters and buffers are used further.
        scale: (the norm, whatever it is told besides x) -> gain and bias, (C,) or (N, C).
    """

    def __init__(self, norm: nn.Module, scale: Callable[..., tuple[Tensor, Tensor] | None]) -> None:
        super().__init__()
        self.eps = cast(float, norm.eps)
        self.statistics = next(names for names in NAMES if hasattr(norm, names[0]))
        self.scale = scale
        for name, value in norm.named_buffers(recurse=False):
            self.register_buffer(name, value)
        for name, value in norm.named_parameters(recurse=False):
            self.register_parameter(name, value)
        for name, part in norm.named_children():
            self.add_module(name, part)
        self.modulation = getattr(norm, "modulation", None)

    def forward(self, x: Tensor, *told: Tensor) -> Tensor:
        """Map x (N, C, ...) and what the norm is told besides to the shape of x."""
        mean, var = (cast(Tensor, getattr(self, name)) for name in self.statistics)
        x = batch_normalise(x, mean, var, eps=self.eps, training=self.training)
        scaled = self.scale(self, *told)
        if scaled is None:  # CReLU
            return torch.cat([F.relu(x), F.relu(-x)], dim=1)
        shape = (-1, x.shape[1], *[1] * (x.ndim - 2))
        gain, bias = (each.view(shape).to(x.dtype) for each in scaled)
        return torch.addcmul(bias, x, gain)


def _of_ssgan(norm: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    told = F.relu(norm.hidden(z)) if norm.modulation else z
    gain, bias = (
        each(told) if isinstance(each, nn.Linear) else each for each in (norm.gamma, norm.beta)
    )
    return gain, bias


SCALES: dict[type[nn.Module], Callable[..., tuple[Tensor, Tensor] | None]] = {
    ssgan.StoredNorm: _of_ssgan,
    biggan.ConditionalNorm: lambda norm, y: (1 + norm.gain(y), norm.bias(y)),
    biggan.OutputNorm: lambda norm: (norm.gain[None], norm.bias[None]),
    bigbigan.Norm: lambda norm: (norm.weight, norm.bias),
    bigbigan.CReLU: lambda norm: None,
}
"""Norm for inference -> how it scales and shifts what is standardised."""


def trainable(module: nn.Module) -> nn.Module:
    """Exchange the norms of a network for inference, and give all its numbers defined values.

    Gains begin at 1 and shifts at 0, those that a linear layer makes of z or a class, too: at the
    beginning a modulated norm is a plain one.
    """
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if scale := SCALES.get(type(child)):
                norm = BatchNorm(child, scale)
                _reset(norm)
                part.add_module(name, norm)
    return module


def _reset(norm: BatchNorm) -> None:
    mean, var = (cast(Tensor, getattr(norm, name)) for name in norm.statistics)
    nn.init.zeros_(mean)
    nn.init.ones_(var)
    for name, value in norm.named_parameters(recurse=False):
        nn.init.constant_(value, float(name in ("gamma", "gain", "weight")))
    for name, part in norm.named_children():
        if name == "hidden":
            continue  # it learns from the gains' gradients, once they have moved
        table = cast(nn.Linear, part)
        nn.init.zeros_(table.weight)
        if getattr(table, "bias", None) is not None:
            nn.init.constant_(table.bias, float(name == "gamma"))


def initialise(module: nn.Module, kind: str, *, seed: int, modulations: bool = False) -> nn.Module:
    """Draw the weights of convolutions and linear layers; biases are 0, norms stay as they are.

    Args:
        kind: normal (standard deviation .02), orthogonal, or xavier (uniform).
        seed: decides them.
        modulations: draw the layers that make gains and shifts, too, as BigGAN does; left at 0, a
            modulated norm begins as a plain one.
    """
    draw = {
        "normal": lambda w, g: nn.init.normal_(w, std=0.02, generator=g),
        "orthogonal": lambda w, g: nn.init.orthogonal_(w, generator=g),
        "xavier": lambda w, g: nn.init.xavier_uniform_(w, generator=g),
    }[kind]
    generator = torch.Generator().manual_seed(seed)
    inside = {
        part
        for norm in module.modules()
        if isinstance(norm, BatchNorm) and not modulations
        for name, part in norm.named_children()
        if name != "hidden"
    }
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear | nn.Embedding) and part not in inside:
            draw(part.weight, generator)
            if getattr(part, "bias", None) is not None:
                nn.init.zeros_(cast(Tensor, part.bias))
        if isinstance(part, biggan.Attention):
            nn.init.zeros_(part.gamma)
    return module


def normalise_weights(module: nn.Module, *, eps: float = 1e-12) -> nn.Module:
    """Put torch's spectral norm, one step of power iteration a pass, on every layer with a weight.

    Of embeddings only a projection's (`embed`) is a layer. Layers of zeros have no norm: call
    `initialise` first.
    """
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.Conv2d | nn.Linear) or name.rpartition(".")[2] == "embed":
            parametrizations.spectral_norm(part, eps=eps)
    return settle(module)  # torch begins with vectors of its global generator's


def settle(module: nn.Module) -> nn.Module:
    """Find the spectral norms of weights that changed without passes, as those of averages do.

    It begins anew, so that what is found depends on the weights alone.
    """
    for part in module.modules():
        if parametrize.is_parametrized(part, "weight"):
            parameters = cast(Any, part.parametrizations)["weight"]
            norm = parameters[0]
            start = torch.Generator().manual_seed(len(norm._v))
            norm._v.copy_(torch.randn(norm._v.shape, generator=start))  # torch begins with it
            norm._power_method(norm._reshape_weight_to_matrix(parameters.original), SETTLE)
    return module


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that the network for inference has, norms divided out of the weights.

    The module is in evaluation; call `settle` first where its weights were averaged.
    """
    names = {
        f"{at}.weight".removeprefix("."): part
        for at, part in module.named_modules()
        if parametrize.is_parametrized(part, "weight")
    }
    state = {
        name: value
        for name, value in module.state_dict().items()
        if "parametrizations." not in name
    }
    with torch.no_grad():
        state |= {name: cast(Tensor, part.weight) for name, part in names.items()}
    return {name: value.detach().clone() for name, value in state.items()}
