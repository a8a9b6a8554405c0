"""StyleGAN2-ADA in its textbook form, from the rules alone, and its files: to compare ours with.

Everything is done the long way: a weight modulated and demodulated per sample, zeros inserted and
filtered in two dimensions, gains applied on every pass.
"""

from __future__ import annotations

import math
import pickle
import sys
import types
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FIR = torch.tensor([1.0, 3.0, 3.0, 1.0])
FIR = (FIR[:, None] * FIR) / 64
RMS = math.sqrt(2)


def resample(x: Tensor, *, up: int = 1, down: int = 1, pad: tuple[int, int], gain: float = 1.0):
    n, c, h, w = x.shape
    wide = x.new_zeros(n, c, h * up, w * up)
    wide[:, :, ::up, ::up] = x
    wide = F.pad(wide, (*pad, *pad))
    kernel = (FIR * gain).flip(0, 1).expand(c, 1, 4, 4)
    return F.conv2d(wide, kernel, groups=c)[:, :, ::down, ::down]


def lrelu(x: Tensor, gain: float = 1.0, clamp: float | None = None) -> Tensor:
    x = F.leaky_relu(x, 0.2) * RMS * gain
    return x if clamp is None else x.clamp(-clamp * gain, clamp * gain)


def normal(x: Tensor) -> Tensor:
    return x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()


class Reference:
    def __init__(
        self, *, side: int = 16, channels: int = 6, z: int = 5, w: int = 7, classes: int = 0,
        features: int = 0, layers: int = 2, architecture: str = "skip",
        d_architecture: str = "orig",
        clamp: float | None = None, seed: int = 0, group: int | None = 2, noise: bool = True,
    ) -> None:  # fmt: skip
        self.side, self.c, self.z, self.w, self.classes = side, channels, z, w, classes
        self.features, self.layers, self.arch, self.d_arch = (
            features,
            layers,
            architecture,
            d_architecture,
        )
        self.clamp, self.group, self.noise = clamp, group, noise
        self.drawn = torch.Generator().manual_seed(seed)
        self.sides = [2**k for k in range(2, int(math.log2(side)) + 1)]
        self.g, self.d = self._generator(), self._discriminator()

    def rand(self, *shape: int, at: float = 0.0) -> Tensor:
        return torch.randn(shape, generator=self.drawn) * (0.2 if at or not shape else 1) + at

    def width(self, side: int) -> int:
        return self.c + side // 4  # another number on every block

    def _mapping(self, state: dict[str, Tensor], inputs: int, width: int, layers: int) -> None:
        for name, count in (("embed", self.classes), ("embed_feats", self.features)):
            if count:
                state[f"mapping.{name}.weight"] = self.rand(width, count)
                state[f"mapping.{name}.bias"] = self.rand(width)
                inputs += width
        for k in range(layers):
            state[f"mapping.fc{k}.weight"] = self.rand(width, inputs) * 100
            state[f"mapping.fc{k}.bias"] = self.rand(width) * 10
            inputs = width

    def _layer(self, state, name: str, inputs: int, outputs: int, side: int) -> None:
        state[f"{name}.weight"] = self.rand(outputs, inputs, 3, 3)
        state[f"{name}.bias"] = self.rand(outputs)
        if self.noise:
            state[f"{name}.noise_const"] = self.rand(side, side)
            state[f"{name}.noise_strength"] = self.rand()
        state[f"{name}.affine.weight"] = self.rand(inputs, self.w)
        state[f"{name}.affine.bias"] = self.rand(inputs, at=1.0)
        state[f"{name}.resample_filter"] = FIR.clone()

    def _generator(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for side in self.sides:
            name, width = f"synthesis.b{side}", self.width(side)
            before = self.width(side // 2)
            if side == 4:
                state[f"{name}.const"] = self.rand(width, 4, 4)
            else:
                self._layer(state, f"{name}.conv0", before, width, side)
                if self.arch == "resnet":
                    state[f"{name}.skip.weight"] = self.rand(width, before, 1, 1)
                    state[f"{name}.skip.resample_filter"] = FIR.clone()
            self._layer(state, f"{name}.conv1", width, width, side)
            state[f"{name}.resample_filter"] = FIR.clone()
            if self.arch == "skip" or side == self.side:
                state[f"{name}.torgb.weight"] = self.rand(3, width, 1, 1)
                state[f"{name}.torgb.bias"] = self.rand(3)
                state[f"{name}.torgb.affine.weight"] = self.rand(width, self.w)
                state[f"{name}.torgb.affine.bias"] = self.rand(width, at=1.0)
        self._mapping(state, self.z, self.w, self.layers)
        state["mapping.w_avg"] = self.rand(self.w)
        return state

    def _discriminator(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}

        def conv(name: str, inputs: int, outputs: int, kernel: int, bias: bool = True) -> None:
            state[f"{name}.weight"] = self.rand(outputs, inputs, kernel, kernel)
            if bias:
                state[f"{name}.bias"] = self.rand(outputs)
            state[f"{name}.resample_filter"] = FIR.clone()

        for side in self.sides[:0:-1]:
            inputs, outputs = self.width(side), self.width(side // 2)
            if side == self.side or self.d_arch == "skip":
                conv(f"b{side}.fromrgb", 3, inputs, 1)
            conv(f"b{side}.conv0", inputs, inputs, 3)
            conv(f"b{side}.conv1", inputs, outputs, 3)
            if self.d_arch == "resnet":
                conv(f"b{side}.skip", inputs, outputs, 1, bias=False)
        width = self.width(4)
        if self.d_arch == "skip":
            conv("b4.fromrgb", 3, width, 1)
        conv("b4.conv", width + 1, width, 3)
        state["b4.fc.weight"], state["b4.fc.bias"] = self.rand(width, width * 16), self.rand(width)
        self.compared = width if self.classes or self.features else 1
        state["b4.out.weight"] = self.rand(self.compared, width)
        state["b4.out.bias"] = self.rand(self.compared)
        if self.classes or self.features:
            self._mapping(state, 0, width, 3)
        return state

    def kwargs(self, network: str) -> dict[str, Any]:
        told = {"c_dim": self.classes, "img_resolution": self.side, "img_channels": 3}
        if self.features:
            told["h_dim"] = self.features
        if network == "D":
            return told | {
                "architecture": self.d_arch, "channel_base": 64, "channel_max": self.c,
                "num_fp16_res": 4,
                "conv_clamp": self.clamp, "epilogue_kwargs": {"mbstd_group_size": self.group},
            }  # fmt: skip
        return told | {
            "z_dim": self.z, "w_dim": self.w, "mapping_kwargs": {"num_layers": self.layers},
            "synthesis_kwargs": {
                "channel_base": 64, "conv_clamp": self.clamp, "architecture": self.arch,
            },
        }  # fmt: skip

    def map(self, state, z: Tensor | None, c: Tensor | None, h: Tensor | None) -> Tensor:
        parts = [] if z is None else [normal(z)]
        for name, told in (("embed", c), ("embed_feats", h)):
            if f"mapping.{name}.weight" in state and told is not None:
                weight = state[f"mapping.{name}.weight"]
                x = told @ weight.T / math.sqrt(weight.shape[1]) + state[f"mapping.{name}.bias"]
                parts.append(normal(x))
        x = torch.cat(parts, 1)
        for k in range(sum(n.startswith("mapping.fc") and n.endswith("weight") for n in state)):
            weight = state[f"mapping.fc{k}.weight"]
            x = x @ (weight.T * (0.01 / math.sqrt(weight.shape[1])))
            x = lrelu(x + state[f"mapping.fc{k}.bias"] * 0.01)
        return x

    def layer(
        self, name: str, x: Tensor, w: Tensor, noise, *, up: bool, gain: float = 1.0
    ) -> Tensor:
        state = self.g
        styles = w @ state[f"{name}.affine.weight"].T / math.sqrt(self.w)
        styles = styles + state[f"{name}.affine.bias"]
        rows = []
        for row, style in zip(x, styles, strict=True):
            weight = state[f"{name}.weight"] * style[None, :, None, None]
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
            if up:
                row = F.conv_transpose2d(row[None], weight.transpose(0, 1), stride=2)
                rows.append(resample(row, pad=(1, 1), gain=4))
            else:
                rows.append(F.conv2d(row[None], weight, padding=1))
        x = torch.cat(rows)
        if self.noise and noise is not None:
            x = x + noise * state[f"{name}.noise_strength"]
        return lrelu(x + state[f"{name}.bias"][None, :, None, None], gain, self.clamp)

    def rgb(self, name: str, x: Tensor, w: Tensor) -> Tensor:
        state = self.g
        styles = w @ state[f"{name}.affine.weight"].T / math.sqrt(self.w)
        styles = (styles + state[f"{name}.affine.bias"]) / math.sqrt(x.shape[1])
        y = F.conv2d(x * styles[:, :, None, None], state[f"{name}.weight"])
        y = y + state[f"{name}.bias"][None, :, None, None]
        return y if self.clamp is None else y.clamp(-self.clamp, self.clamp)

    def synthesis(self, ws: Tensor, noise: Any = "const") -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        x = self.g["synthesis.b4.const"][None].repeat(len(ws), 1, 1, 1)
        image, at = None, 0
        given = iter(noise) if not isinstance(noise, str) else None

        def added(name: str):
            if not self.noise or noise == "none":
                return None
            return self.g[f"{name}.noise_const"] if given is None else next(given)

        for side in self.sides:
            name = f"synthesis.b{side}"
            short, gain = None, 1.0
            if side > 4:
                if self.arch == "resnet":
                    weight, gain = self.g[f"{name}.skip.weight"], math.sqrt(0.5)
                    short = F.conv2d(resample(x, up=2, pad=(2, 1), gain=4), weight) * gain
                    short = short / math.sqrt(weight.shape[1])
                x = self.layer(f"{name}.conv0", x, ws[:, at], added(f"{name}.conv0"), up=True)
                found[f"b{side}.conv0"], at = x, at + 1
            x = self.layer(
                f"{name}.conv1", x, ws[:, at], added(f"{name}.conv1"), up=False, gain=gain
            )
            found[f"b{side}.conv1"], at = x, at + 1
            x = x if short is None else x + short
            image = None if image is None else resample(image, up=2, pad=(2, 1), gain=4)
            if f"{name}.torgb.weight" in self.g:
                y = self.rgb(f"{name}.torgb", x, ws[:, at])
                image = y if image is None else image + y
                found[f"b{side}.img"] = image
            found[f"b{side}"] = x
        assert image is not None
        return {**found, "image": image}

    def conv(
        self, name: str, x: Tensor, *, down: bool = False, act: bool = True, gain=1.0
    ) -> Tensor:
        weight = self.d[f"{name}.weight"]
        weight = weight / math.sqrt(weight[0].numel())
        kernel = weight.shape[2]
        if down and kernel == 1:
            x = F.conv2d(resample(x, down=2, pad=(1, 1)), weight)
        elif down:
            x = F.conv2d(resample(x, pad=(2, 2)), weight, stride=2)
        else:
            x = F.conv2d(x, weight, padding=kernel // 2)
        if f"{name}.bias" in self.d:
            x = x + self.d[f"{name}.bias"][None, :, None, None]
        return lrelu(x, gain, self.clamp) if act else x * gain

    def discriminate(self, image: Tensor, c=None, h=None) -> dict[str, Tensor]:
        found, x = {}, None
        for side in self.sides[:0:-1]:
            if f"b{side}.fromrgb.weight" in self.d:
                y = self.conv(f"b{side}.fromrgb", image)
                x = y if x is None else x + y
                if self.d_arch == "skip":
                    image = resample(image, down=2, pad=(1, 1))
            residual = self.d_arch == "resnet"
            gain = math.sqrt(0.5) if residual else 1.0
            short = (
                self.conv(f"b{side}.skip", x, down=True, act=False, gain=gain) if residual else 0
            )
            x = self.conv(f"b{side}.conv1", self.conv(f"b{side}.conv0", x), down=True, gain=gain)
            x = found[f"b{side}"] = x + short
        assert x is not None
        if self.d_arch == "skip":
            x = x + self.conv("b4.fromrgb", image)
        group = min(self.group or len(x), len(x))
        y = x.reshape(group, -1, *x.shape[1:])
        y = ((y - y.mean(0)).square().mean(0) + 1e-8).sqrt().mean((1, 2, 3))
        y = y[:, None, None, None].repeat(group, 1, 4, 4)
        x = found["b4"] = self.conv("b4.conv", torch.cat([x, y], 1))
        weight = self.d["b4.fc.weight"]
        x = x.flatten(1) @ weight.T / math.sqrt(weight.shape[1]) + self.d["b4.fc.bias"]
        x = found["fc"] = lrelu(x)
        x = x @ self.d["b4.out.weight"].T / math.sqrt(x.shape[1]) + self.d["b4.out.bias"]
        if self.compared > 1:
            told = self.map(self.d, None, c, h)
            x = (x * told).sum(1, keepdim=True) / math.sqrt(self.compared)
        return {**found, "logits": x}

    def write(self, path: Path, *, protocol: int = 3, prefix: str = "", **changed: Any) -> Path:
        """Write the file as the official training does; `changed` replaces top-level entries."""
        other = {name: value + 1 for name, value in self.g.items()}
        with official_modules(prefix) as (make, settings):
            networks = {
                "G": persistent(make, "Generator", other, self.kwargs("G")),
                "D": persistent(make, "Discriminator", self.d, self.kwargs("D")),
                "G_ema": persistent(make, "Generator", self.g, self.kwargs("G")),
            }
            value = {"training_set_kwargs": settings(path="x.zip", use_labels=True), **networks}
            value |= {"augment_pipe": None, **changed}
            path.write_bytes(pickle.dumps(value, protocol=protocol))
        return path


class Persistent:
    """Pickles itself as the official decorator makes modules do."""

    def __init__(self, make: Any, meta: dict[str, Any]) -> None:
        self.make, self.meta = make, meta

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        return self.make, (self.meta,)


def persistent(make: Any, name: str, state: dict[str, Tensor], told: dict[str, Any]) -> Persistent:
    own = {n: v for n, v in state.items() if "." not in n}
    children: dict[str, dict[str, Tensor]] = {}
    for full, value in state.items():
        head, _, rest = full.partition(".")
        if rest:
            children.setdefault(head, {})[rest] = value
    buffers = ("resample_filter", "noise_const", "w_avg")
    meta = {
        "type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": name,
        "state": {
            "training": False,
            "_parameters": {n: torch.nn.Parameter(v) for n, v in own.items() if n not in buffers},
            "_buffers": {n: v for n, v in own.items() if n in buffers} | {"nothing": None},
            "_modules": {n: persistent(make, "M", each, {}) for n, each in children.items()},
            "_init_args": (), "_init_kwargs": told, "_hooks": set(), "gain": np.float64(2),
        },
    }  # fmt: skip
    return Persistent(make, meta)


@contextmanager
def official_modules(prefix: str = ""):
    """Stand modules in for those that official files name."""

    def make(meta: Any) -> Any:
        raise AssertionError("it was called")

    settings = type("EasyDict", (dict,), {})
    places = {f"{prefix}torch_utils.persistence": make, f"{prefix}dnnlib.util": settings}
    make.__name__ = make.__qualname__ = "_reconstruct_persistent_obj"
    before = dict(sys.modules)
    for place, thing in places.items():
        thing.__module__ = place
        for end in [k for k, letter in enumerate(place) if letter == "."] + [len(place)]:
            sys.modules.setdefault(place[:end], types.ModuleType(place[:end]))
        setattr(sys.modules[place], thing.__name__, thing)
    try:
        yield make, settings
    finally:
        for name in set(sys.modules) - set(before):
            if name.partition(".")[0] in {place.partition(".")[0] for place in places}:
                del sys.modules[name]
