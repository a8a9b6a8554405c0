"""Turn StyleGAN2-ADA's stored tensors into those of our layers: gains multiplied in, filters once.

The official networks keep every weight near a standard deviation of one and multiply it on each
pass ("equalised learning rate"): by 1 / sqrt(inputs of one output), times the layer's learning rate
multiplier, which biases get as well. Source: Karras et al. 2018, section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dreamshard.errors import TeacherError
from pipeline.teachers import weights
from pipeline.teachers.gan.stylegan2.layers import (
    GAINS,
    Convolution,
    Dense,
    Modulated,
    SynthesisLayer,
)

if TYPE_CHECKING:
    from pipeline.teachers.gan.stylegan2.layout import MappingLayout

FILTER = "resample_filter"


def load_baked(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    mapping: MappingLayout | None,
    residual: bool,
    filter_at: str,
    dtype: torch.dtype,
    where: str,
) -> nn.Module:
    """Put a network's official tensors into our module of it.

    Args:
        module: on the meta device.
        state: official name -> tensor.
        mapping: of the network, for its multiplier.
        residual: whether blocks have shortcuts, which are weighted sqrt(1/2) each way.
        filter_at: name of our filter's buffer.
        dtype: of the convolutions; the rest is in float32.
        where: names it in errors.

    Raises: TeacherError for tensors that do not fit.
    """
    plain = {
        name: value.double() if name.startswith("mapping.") else value.float()
        for name, value in state.items()
        if not name.endswith(FILTER)
    }
    if "mapping.w_avg" in plain:
        plain["mapping.w_avg"] = plain["mapping.w_avg"].float()
    plain[filter_at] = _taps(state, where)
    bake(plain, module, mapping=mapping, residual=residual, half=dtype == torch.float16)
    weights.load_into(module, plain, where=where)
    for name, part in module.named_modules():
        if isinstance(part, Modulated) or (isinstance(part, Convolution) and "b4." not in name):
            _convert(part, dtype)
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def bake(
    plain: dict[str, Tensor],
    module: nn.Module,
    *,
    mapping: MappingLayout | None,
    residual: bool,
    half: bool = False,
) -> None:
    """Replace official tensors by what our layers compute with, differentiably.

    Args:
        plain: official name -> tensor, changed in place; what is missing stays so.
        module: our network, for its layers' kinds and shapes.
        mapping, residual: as in `load_baked`.
        half: scale weights so that float16 does not overflow.
    """
    for name, part in module.named_modules():
        if isinstance(part, Dense):
            hidden = mapping is not None and name.startswith("mapping.fc")
            fast = mapping.multiplier if mapping is not None and hidden else 1.0
            _scale(plain, f"{name}.weight", fast / math.sqrt(part.weight.shape[1]))
            _scale(plain, f"{name}.bias", fast)
        elif isinstance(part, Convolution):
            last = name.rpartition(".")[2]
            shortcut = residual and last in ("conv1", "skip")
            gain = GAINS[part.activation] * (math.sqrt(0.5) if shortcut else 1)
            _scale(plain, f"{name}.weight", gain / math.sqrt(part.weight[0].numel()))
            _scale(plain, f"{name}.bias", gain)
        elif isinstance(part, Modulated):
            _bake_modulated(plain, name, part, half=half)


def _bake_modulated(plain: dict[str, Tensor], name: str, part: Modulated, *, half: bool) -> None:
    style = 1 / math.sqrt(part.affine.weight.shape[1])
    if not isinstance(part, SynthesisLayer):  # RGB: not demodulated, so its weight has a gain
        gain = 1 / math.sqrt(part.weight.shape[1])
        _scale(plain, f"{name}.affine.weight", style * gain)
        _scale(plain, f"{name}.affine.bias", gain)
        return
    _scale(plain, f"{name}.affine.weight", style)
    weight = plain.get(f"{name}.weight")
    if weight is not None and weight.ndim == 4:
        if half:  # demodulation cancels it
            largest = weight.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-30)
            weight = plain[f"{name}.weight"] = weight / largest / math.sqrt(weight[0].numel())
        plain[f"{name}.squares"] = weight.square().sum((2, 3)).T.contiguous()
    for last in ("bias", "noise_strength"):
        _scale(plain, f"{name}.{last}", part.gain)


def _scale(plain: dict[str, Tensor], name: str, factor: float) -> None:
    if name in plain:  # what is missing is told with the rest
        plain[name] = plain[name] * factor


def _taps(state: Mapping[str, Tensor], where: str) -> Tensor:
    """Return the one filter of a network as its four taps, which sum to 1."""
    filters = [value.float() for name, value in state.items() if name.endswith(FILTER)]
    taps = filters[0].sum(1) if filters and filters[0].shape == (4, 4) else torch.zeros(4)
    fits = all(
        each.shape == (4, 4) and torch.allclose(each, taps[:, None] * taps, atol=1e-6)
        for each in filters
    )
    if not fits or not torch.allclose(taps, taps.flip(0), atol=1e-6) or abs(taps.sum() - 1) > 1e-5:
        raise TeacherError(
            f"{where}: {FILTER}: got another than one symmetric filter of four taps, such as "
            "[1, 3, 3, 1], for all layers."
        )
    return taps


def _convert(part: nn.Module, dtype: torch.dtype) -> None:
    """Bring a convolution to its number format; styles and demodulation stay float32."""
    for name in ("weight", "bias"):
        value = getattr(part, name, None)
        if value is not None:
            setattr(part, name, nn.Parameter(value.to(dtype), requires_grad=False))
