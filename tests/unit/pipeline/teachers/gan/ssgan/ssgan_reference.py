"""SS-GAN's networks written the long way, after the order of operations of the two official codes.

`Mimicry` makes random state dicts as torch-mimicry saves them, `CompareGan` variables as
compare_gan names them; `generate` and `look` run them one operation after the other. What
`pipeline.teachers.gan.ssgan` folds together is kept apart here: torch-mimicry's activations change
their input in place, so that a discriminator block's shortcut sees the rectified map.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


class Drawn:
    """Draw numbers from a seed."""

    def __init__(self) -> None:
        self.random = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers."""
        return torch.randn(shape, generator=self.random)

    def variance(self, channels: int) -> Tensor:
        """Return numbers in 0.5 .. 1.5."""
        return 0.5 + torch.rand(channels, generator=self.random)


@dataclass
class Mimicry(Drawn):
    """A pair of networks in torch-mimicry's layout.

    Args:
        widths: channels into the first block of G and out of every block.
        seen: channels out of every block of D.
        halved: for each block of D, whether it halves the map.
        linear: number of D's linear layer, 0 for one more than its blocks.
        rotations: of SS-GAN; 0 for SNGAN.
        norms: how D's spectral norms are stored: hook, parametrisation, own or none (WGAN-GP).
    """

    widths: tuple[int, ...] = (16, 8, 8)
    bottom: int = 4
    latent: int = 6
    seen: tuple[int, ...] = (8, 16, 16)
    halved: tuple[bool, ...] = (True, True, False)
    linear: int = 0
    rotations: int = 4
    norms: str = "hook"
    g: dict[str, Tensor] = field(default_factory=dict)
    d: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._layer("l1", self.widths[0] * self.bottom**2, self.latent)
        for number, (into, out) in enumerate(zip(self.widths, self.widths[1:], strict=False), 2):
            self._norm(f"block{number}.b1", into)
            self._layer(f"block{number}.c1", out, into, 3)
            self._norm(f"block{number}.b2", out)
            self._layer(f"block{number}.c2", out, out, 3)
            self._layer(f"block{number}.c_sc", out, into, 1)
        last = len(self.widths) + 1
        self._norm(f"b{last}", self.widths[-1])
        self._layer(f"c{last}", 3, self.widths[-1], 3)
        into = 3
        for number, out in enumerate(self.seen, 1):
            hidden = out if number == 1 else into
            self._spectral(f"block{number}.c1", hidden, into, 3)
            self._spectral(f"block{number}.c2", out, hidden, 3)
            if into != out or self.halved[number - 1]:
                self._spectral(f"block{number}.c_sc", out, into, 1)
            into = out
        self.linear = self.linear or len(self.seen) + 1
        self._spectral(f"l{self.linear}", 1, into)
        if self.rotations:
            self._spectral("l_y", self.rotations, into)

    def _layer(self, name: str, out: int, into: int, kernel: int = 0) -> None:
        shape = (out, into, kernel, kernel) if kernel else (out, into)
        self.g[f"{name}.weight"] = self.normal(*shape) * (into * max(1, kernel) ** 2) ** -0.5
        self.g[f"{name}.bias"] = 0.2 * self.normal(out)

    def _norm(self, name: str, channels: int) -> None:
        self.g[f"{name}.weight"] = 1 + 0.1 * self.normal(channels)
        self.g[f"{name}.bias"] = 0.1 * self.normal(channels)
        self.g[f"{name}.running_mean"] = 0.1 * self.normal(channels)
        self.g[f"{name}.running_var"] = self.variance(channels)
        self.g[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def _spectral(self, name: str, out: int, into: int, kernel: int = 0) -> None:
        weight = self.normal(*((out, into, kernel, kernel) if kernel else (out, into)))
        matrix = weight.flatten(1)
        u, v = (
            F.normalize(self.normal(out), dim=0),
            F.normalize(self.normal(matrix.shape[1]), dim=0),
        )
        for _ in range(1):  # stored vectors are near the true ones, and not the true ones
            v = F.normalize(matrix.T @ u, dim=0)
            u = F.normalize(matrix @ v, dim=0)
        sigma = u @ matrix @ v
        if self.norms == "hook":
            stored = {"weight_orig": weight, "weight_u": u, "weight_v": v}
        elif self.norms == "parametrisation":
            at = "parametrizations.weight"
            stored = {f"{at}.original": weight, f"{at}.0._u": u, f"{at}.0._v": v}
        elif self.norms == "own":
            stored = {"weight": weight, "sn_u": u[None], "sn_sigma": torch.ones(1)}
            v = F.normalize(u @ matrix, dim=0)
            sigma = F.normalize(matrix @ v, dim=0) @ matrix @ v
        else:
            stored, sigma = {"weight": weight}, torch.tensor(1.0)
        self.d |= {f"{name}.{key}": value for key, value in stored.items()}
        self.d[f"{name}.bias"] = 0.2 * self.normal(out)
        self.weights[name] = weight / sigma

    def generate(self, z: Tensor, *, upsample: str = "bilinear") -> dict[str, Tensor]:
        """Return the output of every block, of `l1`, and the image."""

        def double(x: Tensor) -> Tensor:
            return enlarge(x, upsample)

        x = F.linear(z, self.g["l1.weight"], self.g["l1.bias"])
        found = {"l1": x}
        x = x.view(len(z), -1, self.bottom, self.bottom)
        last = len(self.widths) + 1
        for number in range(2, last):
            at = f"block{number}"
            h = self._conv(double(F.relu(self._normalise(f"{at}.b1", x))), f"{at}.c1", 1)
            h = self._conv(F.relu(self._normalise(f"{at}.b2", h)), f"{at}.c2", 1)
            found[at] = x = h + self._conv(double(x), f"{at}.c_sc", 0)
        x = self._conv(F.relu(self._normalise(f"b{last}", x)), f"c{last}", 1)
        return found | {"image": torch.tanh(x)}

    def look(self, images: Tensor, *, pool: str = "sum") -> dict[str, Tensor]:
        """Return the output of every block before anything changes it, pooled vector and logits."""
        x, found = images, {}
        for number, halved in enumerate(self.halved, 1):
            at = f"block{number}"
            if number > 1:
                x = F.relu(x)  # in place: the shortcut sees it, too
            h = self._seen(F.relu(self._seen(x, f"{at}.c1", 1)), f"{at}.c2", 1)
            if number == 1:
                h, x = F.avg_pool2d(h, 2), self._seen(F.avg_pool2d(x, 2), f"{at}.c_sc", 0)
            else:
                if f"{at}.c_sc" in self.weights:
                    x = self._seen(x, f"{at}.c_sc", 0)
                if halved:
                    h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
            found[f"d.{at}"] = x = h + x
        pooled = F.relu(x).sum((2, 3)) if pool == "sum" else F.relu(x).mean((2, 3))
        found["d.pool"] = pooled
        names = {"d.logit": f"l{self.linear}"} | ({"d.rotation": "l_y"} if self.rotations else {})
        for own, name in names.items():
            found[own] = F.linear(pooled, self.weights[name], self.d[f"{name}.bias"])
        return found

    def _conv(self, x: Tensor, name: str, padding: int) -> Tensor:
        return F.conv2d(x, self.g[f"{name}.weight"], self.g[f"{name}.bias"], padding=padding)

    def _seen(self, x: Tensor, name: str, padding: int) -> Tensor:
        return F.conv2d(x, self.weights[name], self.d[f"{name}.bias"], padding=padding)

    def _normalise(self, name: str, x: Tensor) -> Tensor:
        mean, var = self.g[f"{name}.running_mean"], self.g[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, self.g[f"{name}.weight"], self.g[f"{name}.bias"])


def enlarge(x: Tensor, kind: str) -> Tensor:
    """Double a map (N, C, H, W): bilinear, nearest or zero_insertion."""
    if kind == "bilinear":
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    if kind == "nearest":
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    zeros = torch.zeros_like(x)
    rows = torch.stack([x, zeros], 4).flatten(3)
    return torch.stack([rows, torch.zeros_like(rows)], 3).flatten(2, 3)


@dataclass
class CompareGan(Drawn):
    """A pair of networks as compare_gan names their variables.

    Args:
        widths: channels into the first block of G and out of every block.
        doubled: for each block of G, whether it doubles the map.
        seen: channels out of every block of D.
        halved: for each block of D, whether it halves the map.
        first: number of D's first block, 0 or 1.
        modulation: hidden units of self-modulation, 0 for none between, None for plain norms.
        accumulated: whether statistics are sums over batches.
        right: whether D's kernels keep their right singular vectors.
    """

    widths: tuple[int, ...] = (16, 8, 8)
    doubled: tuple[bool, ...] = (True, True)
    latent: int = 6
    seen: tuple[int, ...] = (8, 16, 16)
    halved: tuple[bool, ...] = (True, True, False)
    first: int = 0
    modulation: int | None = 5
    eps: float = 1e-5
    accumulated: bool = False
    right: bool = False
    rotations: int = 4
    v: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._kernel("generator/fc_noise", self.latent, 16 * self.widths[0])
        for number, (into, out) in enumerate(zip(self.widths, self.widths[1:], strict=False), 1):
            at, way = f"generator/B{number}", "up" if self.doubled[number - 1] else "same"
            self._norm(f"{at}/bn1", into)
            self._norm(f"{at}/bn2", out)
            self._kernel(f"{at}/{way}_conv1", 3, 3, into, out)
            self._kernel(f"{at}/same_conv2", 3, 3, out, out)
            self._kernel(f"{at}/{way}_conv_shortcut", 3, 3, into, out)
        self._norm("generator/final_norm", self.widths[-1])
        self._kernel("generator/final_conv", 3, 3, self.widths[-1], 3)
        into = 3
        for number, out in enumerate(self.seen):
            at = f"discriminator/B{number + self.first}"
            way = "down" if self.halved[number] else "same"
            self._kernel(f"{at}/same_conv1", 3, 3, into, out, spectral=True)
            self._kernel(f"{at}/{way}_conv2", 3, 3, out, out, spectral=True)
            self._kernel(f"{at}/{way}_conv_shortcut", 3, 3, into, out, spectral=True)
            into = out
        self._kernel("discriminator/disc_final_fc", into, 1, spectral=True)
        if self.rotations:
            name = "discriminator_rotation/score_classify"
            self._kernel(name, into, self.rotations, spectral=True)

    def _keep(self, name: str, value: Tensor) -> None:
        self.v[name] = value.numpy()

    def _kernel(self, name: str, *shape: int, spectral: bool = False) -> None:
        fan = int(np.prod(shape[:-1]))
        self._keep(f"{name}/kernel", self.normal(*shape) * fan**-0.5)
        self._keep(f"{name}/bias", 0.2 * self.normal(shape[-1]))
        if spectral:
            vector = (1, shape[-1]) if self.right else (fan, 1)
            self._keep(f"{name}/kernel/u_var", self.normal(*vector))

    def _norm(self, name: str, channels: int) -> None:
        mean, var = 0.1 * self.normal(channels), self.variance(channels)
        if self.accumulated:
            self._keep(f"{name}/accu/accu_mean", 9 * mean)
            self._keep(f"{name}/accu/accu_variance", 9 * var)
            self._keep(f"{name}/accu/accu_counter", torch.tensor(9.0))
            self._keep(f"{name}/accu/update_accus", torch.tensor(0))
        else:
            self._keep(f"{name}/moving_mean", mean)
            self._keep(f"{name}/moving_variance", var)
        if self.modulation is None:
            self._keep(f"{name}/gamma", 1 + 0.1 * self.normal(channels))
            self._keep(f"{name}/beta", 0.1 * self.normal(channels))
            return
        if self.modulation:
            self._kernel(f"{name}/sbn/hidden", self.latent, self.modulation)
        for part in ("gamma", "beta"):
            self._kernel(f"{name}/sbn/{part}", self.modulation or self.latent, channels)

    def _get(self, name: str) -> Tensor:
        return torch.from_numpy(self.v[name])

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self._weight(name) + self._get(f"{name}/bias")

    def _weight(self, name: str) -> Tensor:
        kernel = self._get(f"{name}/kernel")
        if f"{name}/kernel/u_var" not in self.v:
            return kernel
        w, u = kernel.reshape(-1, kernel.shape[-1]), self._get(f"{name}/kernel/u_var")
        if self.right:
            v = _unit(u @ w.T)
            return kernel / (v @ w @ _unit(v @ w).T)
        v = _unit(w.T @ u)
        return kernel / (_unit(w @ v).T @ w @ v)

    def _conv(self, x: Tensor, name: str) -> Tensor:
        weight = self._weight(name).permute(3, 2, 0, 1)
        return F.conv2d(x, weight, self._get(f"{name}/bias"), padding=1)

    def _normalise(self, x: Tensor, name: str, z: Tensor) -> Tensor:
        if self.accumulated:
            count = self._get(f"{name}/accu/accu_counter")
            mean = self._get(f"{name}/accu/accu_mean") / count
            var = self._get(f"{name}/accu/accu_variance") / count
        else:
            mean, var = self._get(f"{name}/moving_mean"), self._get(f"{name}/moving_variance")
        x = F.batch_norm(x, mean, var, eps=self.eps)
        if self.modulation is None:
            gamma, beta = self._get(f"{name}/gamma")[None], self._get(f"{name}/beta")[None]
        else:
            h = F.relu(self._linear(z, f"{name}/sbn/hidden")) if self.modulation else z
            gamma, beta = (self._linear(h, f"{name}/sbn/{part}") for part in ("gamma", "beta"))
        return x * gamma[:, :, None, None] + beta[:, :, None, None]

    def generate(self, z: Tensor) -> dict[str, Tensor]:
        """Return the output of every block, and the image in [-1, 1]."""
        x = self._linear(z, "generator/fc_noise")
        x = x.view(len(z), 4, 4, -1).permute(0, 3, 1, 2)
        found = {"fc_noise": x}
        for number, doubled in enumerate(self.doubled, 1):
            at, way = f"generator/B{number}", "up" if doubled else "same"
            large = (lambda x: enlarge(x, "zero_insertion")) if doubled else (lambda x: x)
            shortcut = self._conv(large(x), f"{at}/{way}_conv_shortcut")
            h = large(F.relu(self._normalise(x, f"{at}/bn1", z)))
            h = F.relu(self._normalise(self._conv(h, f"{at}/{way}_conv1"), f"{at}/bn2", z))
            found[f"B{number}"] = x = self._conv(h, f"{at}/same_conv2") + shortcut
        x = self._conv(
            F.relu(self._normalise(x, "generator/final_norm", z)), "generator/final_conv"
        )
        return found | {"image": 2 * torch.sigmoid(x) - 1}

    def look(self, images: Tensor) -> dict[str, Tensor]:
        """Return what D makes of images in [0, 1]: blocks, pooled vector and logits."""
        x, found = images, {}
        for number, halved in enumerate(self.halved, self.first):
            at, way = f"discriminator/B{number}", "down" if halved else "same"
            small = (lambda x: F.avg_pool2d(x, 2)) if halved else (lambda x: x)
            shortcut = small(self._conv(x, f"{at}/{way}_conv_shortcut"))
            h = F.relu(self._conv(F.relu(x), f"{at}/same_conv1"))
            found[f"d.B{number}"] = x = small(self._conv(h, f"{at}/{way}_conv2")) + shortcut
        found["d.pool"] = pooled = F.relu(x).mean((2, 3))
        found["d.logit"] = self._linear(pooled, "discriminator/disc_final_fc")
        if self.rotations:
            name = "discriminator_rotation/score_classify"
            found["d.rotation"] = self._linear(pooled, name)
        return found


def _unit(x: Tensor) -> Tensor:
    return x * x.square().sum().clamp(min=1e-12).rsqrt()
