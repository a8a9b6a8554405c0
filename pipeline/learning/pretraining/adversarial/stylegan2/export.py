"""Write a training's networks as `network-snapshot.pkl`, laid out as StyleGAN2-ADA's code does.

Every module is a "persistent object" there, which carries the source of its class. Ours carries a
line that says whose weights these are: the official code refuses the file with it, and loaders that
read tensors alone, as this project's, take it like any other.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from dreamshard.owner.parts import part_of
from dreamshard.permissions import apply_umask
from pipeline.learning.checkpoint import flush
from pipeline.learning.pretraining.adversarial.stylegan2.network import TAPS, official_state
from pipeline.teachers.gan.stylegan2.layers import Convolution, SynthesisLayer
from pipeline.teachers.gan.stylegan2.layout import DiscriminatorLayout, GeneratorLayout
from pipeline.teachers.gan.stylegan2.synthesis import SynthesisBlock

FILE = "network-snapshot.pkl"
SOURCE = "raise ImportError('weights trained by dreamshard: load them with dreamshard')\n"
BUFFERS = ("resample_filter", "noise_const", "w_avg")
PROTOCOL = 3
"""Of NVIDIA's own releases."""


def write_snapshot(folder: Path, networks: Mapping[str, _Named]) -> Path:
    """Write networks to a folder's snapshot: whole, or not at all.

    Args:
        folder: there already.
        networks: G_ema, D, as `named_generator` and `named_discriminator` give them.
    """
    value: dict[str, Any] = {"training_set_kwargs": None, "augment_pipe": None, "G": None}
    for key, (name, state, told) in networks.items():
        value[key] = _persistent(name, state, told)
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=PROTOCOL).dump(value)
    part = part_of(folder / FILE)
    part.write_bytes(buffer.getvalue())
    apply_umask(part)
    flush(part)
    part.replace(folder / FILE)
    return folder / FILE


_Named = tuple[str, dict[str, Tensor], dict[str, Any]]
"""Class, official tensors, arguments of the constructor."""


def named_generator(network: nn.Module, layout: GeneratorLayout, *, dtype: torch.dtype) -> _Named:
    """Describe a generator for `write_snapshot`; its tensors come to the CPU in a number format."""
    mapping = layout.mapping
    told = {
        "z_dim": mapping.latent, "c_dim": mapping.classes, "w_dim": layout.style,
        "img_resolution": layout.resolution, "img_channels": 3,
        "mapping_kwargs": {
            "num_layers": len(mapping.widths) - 1, "lr_multiplier": mapping.multiplier,
            "activation": mapping.activation,
        },
        "synthesis_kwargs": {
            "channel_max": max(count for _, count in layout.channels),
            "architecture": layout.architecture, "activation": layout.activation,
            "conv_clamp": layout.clamp, "num_fp16_res": 0,
        },
    }  # fmt: skip
    return "Generator", _stored(network, dtype), told


def named_discriminator(
    network: nn.Module, layout: DiscriminatorLayout, *, dtype: torch.dtype
) -> _Named:
    """Describe a discriminator for `write_snapshot`, as `named_generator`."""
    mapping = layout.mapping
    told: dict[str, Any] = {
        "c_dim": mapping.classes if mapping else 0,
        "img_resolution": layout.resolution, "img_channels": 3,
        "architecture": layout.architecture, "conv_clamp": layout.clamp, "num_fp16_res": 0,
        "channel_max": max(outputs for _, _, outputs in layout.channels),
        "block_kwargs": {"activation": layout.activation},
        "epilogue_kwargs": {
            "mbstd_group_size": layout.group, "activation": layout.activation,
            "mbstd_num_channels": layout.statistics,
        },
    }  # fmt: skip
    if mapping is not None:
        told["mapping_kwargs"] = {
            "num_layers": len(mapping.widths) - 1, "lr_multiplier": mapping.multiplier,
            "activation": mapping.activation,
        }  # fmt: skip
    return "Discriminator", _stored(network, dtype), told


def _stored(network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return official tensors, the filters of every layer that has one among them."""
    tensors = {n: v.to("cpu", dtype).contiguous() for n, v in official_state(network).items()}
    taps = torch.tensor(TAPS)
    for name, part in network.named_modules():
        if isinstance(part, SynthesisLayer | SynthesisBlock | Convolution):
            tensors[f"{name}.resample_filter"] = taps[:, None] * taps
    return tensors


def _persistent(name: str, state: Mapping[str, Tensor], told: Mapping[str, Any]) -> _Call:
    own = {key: value for key, value in state.items() if "." not in key}
    children: dict[str, dict[str, Tensor]] = {}
    for full, value in state.items():
        head, _, rest = full.partition(".")
        if rest:
            children.setdefault(head, {})[rest] = value
    attributes = {
        "training": False,
        "_parameters": {n: nn.Parameter(v) for n, v in own.items() if n not in BUFFERS},
        "_buffers": {n: v for n, v in own.items() if n in BUFFERS},
        "_modules": {n: _persistent("Module", each, {}) for n, each in children.items()},
        "_init_args": (),
        "_init_kwargs": dict(told),
    }
    return _Call(
        {"type": "class", "version": 6, "module_src": SOURCE, "class_name": name,
         "state": attributes}
    )  # fmt: skip


class _Call:
    """A call of the official code's that reading makes, with one argument."""

    def __init__(self, meta: dict[str, Any]) -> None:
        self.meta = meta


class _Pickler(pickle._Pickler):  # the C one looks names up
    """Write calls by name: their module is not there."""

    dispatch: ClassVar[dict[type, Callable[..., None]]] = dict(pickle._Pickler.dispatch)

    def save_call(self, call: _Call) -> None:
        """Write a name, its argument, and the call."""
        writer = cast(Any, self)  # stubs leave out what the pickler in Python has of its own
        writer.write(pickle.GLOBAL + b"torch_utils.persistence\n_reconstruct_persistent_obj\n")
        writer.save((call.meta,))
        writer.write(pickle.REDUCE)
        writer.memoize(call)

    dispatch[_Call] = save_call
