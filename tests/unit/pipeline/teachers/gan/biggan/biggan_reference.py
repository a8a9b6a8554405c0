"""BigGAN generators written the long way, after the official code's order of operations.

`Reference(...)` makes a random network's state dict in the official format; `forward` runs it
with a power iteration per layer, plain batch normalisation and explicit attention. What
`pipeline.teachers.gan.biggan.network` folds together is kept apart here. BigGAN-PyTorch's
synchronised normalisation adds gains in evaluation (its issue 96); ic_gan's multiplies.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

OUTPUT_EPS = 1e-5


@dataclass
class Reference:
    """A random generator.

    Args:
        widths: channels into the first block and out of every block (or stage, if deep).
        latent, classes, shared: as in `BigGANLayout`; shared 0: tables per block.
        hier, deep, depth: the official flags.
        attention: numbers of blocks with attention after them.
        features, shared_features: of IC-GAN.
        told_class: whether the class embedding is used (IC-GAN keeps it in the file anyway).
        stats: spelling of the stored statistics: plain, mybn or cross_replica.
    """

    widths: tuple[int, ...] = (16, 16, 8)
    latent: int = 12
    classes: int = 5
    shared: int = 6
    hier: bool = True
    deep: bool = False
    depth: int = 2
    attention: tuple[int, ...] = ()
    features: int = 0
    shared_features: int = 0
    told_class: bool = True
    stats: str = "plain"
    bn_eps: float = 1e-5
    sn_eps: float = 1e-6
    state: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(0)
        self.blocks: list[tuple[int, int]] = []
        for into, out in zip(self.widths, self.widths[1:], strict=False):
            first = [(into, into)] * (self.depth - 1) if self.deep else []
            self.blocks += [*first, (into, out)]
        if self.shared:
            self.state["shared.weight"] = self._normal(self.classes, self.shared)
        if self.features:
            self._layer("shared_feat", self.shared_features, self.features)
        told = self._told_width()
        self.chunk = self.latent // (len(self.blocks) + 1) if self.hier and not self.deep else 0
        first = told + self.latent if self.deep else self.chunk or self.latent
        self.told = first if self.deep else told + self.chunk
        self._layer("linear", self.widths[0] * 16, first)
        for number, (into, out) in enumerate(self.blocks):
            self._block(f"blocks.{number}.0", into, out)
            if number in self.attention:
                self._attention(f"blocks.{number}.1", out)
        self._stats("output_layer.0", self.widths[-1])
        synchronised = self.stats == "cross_replica"
        self.additive = synchronised and not self.features
        own = ("bn.weight", "bn.bias") if synchronised and self.features else ("gain", "bias")
        self.last = [f"output_layer.0.{name}" for name in own]
        self.state[self.last[0]] = 1 + 0.1 * self._normal(self.widths[-1])
        self.state[self.last[1]] = 0.1 * self._normal(self.widths[-1])
        self._layer("output_layer.2", 3, self.widths[-1], 3)

    def _told_width(self) -> int:
        return self.told_class * self.shared + self.shared_features

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random)

    def _layer(self, name: str, out: int, into: int, kernel: int = 0, bias: bool = True) -> None:
        shape = (out, into, kernel, kernel) if kernel else (out, into)
        self.state[f"{name}.weight"] = self._normal(*shape)
        self.state[f"{name}.u0"] = self._normal(1, out)
        self.state[f"{name}.sv0"] = torch.ones(1)
        if bias:
            self.state[f"{name}.bias"] = 0.1 * self._normal(out)

    def _stats(self, name: str, channels: int) -> None:
        stem = {"plain": "stored_", "mybn": "bn.stored_", "cross_replica": "bn.running_"}
        at = f"{name}.{stem[self.stats]}"
        self.state[f"{at}mean"] = 0.1 * self._normal(channels)
        self.state[f"{at}var"] = 0.5 + torch.rand(channels, generator=self.random)
        if self.stats == "mybn":
            self.state[f"{name}.bn.accumulation_counter"] = torch.zeros(1)
        if self.stats == "cross_replica":
            self.state[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)

    def _norm(self, name: str, channels: int) -> None:
        self._stats(name, channels)
        for what in ("gain", "bias"):
            if self.shared or self.features:
                self._layer(f"{name}.{what}", channels, self.told, bias=False)
            else:
                table = 0.2 * self._normal(self.classes, channels)
                self.state[f"{name}.{what}.weight"] = table

    def _block(self, name: str, into: int, out: int) -> None:
        hidden = into // 4
        if self.deep:
            sizes = [(hidden, into, 1), (hidden, hidden, 3), (hidden, hidden, 3), (out, hidden, 1)]
            norms = [into, hidden, hidden, hidden]
        else:
            sizes, norms = [(out, into, 3), (out, out, 3)], [into, out]
            self._layer(f"{name}.conv_sc", out, into, 1)
        for number, size in enumerate(sizes, 1):
            self._layer(f"{name}.conv{number}", *size)
        for number, channels in enumerate(norms, 1):
            self._norm(f"{name}.bn{number}", channels)

    def _attention(self, name: str, channels: int) -> None:
        self._layer(f"{name}.theta", channels // 8, channels, 1, bias=False)
        self._layer(f"{name}.phi", channels // 8, channels, 1, bias=False)
        self._layer(f"{name}.g", channels // 2, channels, 1, bias=False)
        self._layer(f"{name}.o", channels, channels // 2, 1, bias=False)
        self.state[f"{name}.gamma"] = torch.tensor(0.7)

    def forward(
        self, z: Tensor, labels: Tensor | None = None, features: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the output of every block, of `linear`, and the image."""
        told = []
        if self.shared and self.told_class:
            told.append(F.embedding(labels, self.state["shared.weight"]))
        if self.features:
            told.append(self._apply("shared_feat", features))
        y = torch.cat(told, 1) if told else labels
        conditions = [y] * len(self.blocks)
        first = z
        if self.deep:
            first = torch.cat([y, z], 1)
            conditions = [first] * len(self.blocks)
        elif self.hier:
            first, *rest = z.split(self.chunk, 1)
            conditions = [torch.cat([y, part], 1) for part in rest]
        x = self._apply("linear", first)
        found = {"linear": x}
        x = x.view(len(z), -1, 4, 4)
        for number, (into, out) in enumerate(self.blocks):
            at = f"blocks.{number}.0"
            run = self._run_deep if self.deep else self._run_block
            found[at] = x = run(at, x, conditions[number], into=into, out=out)
            if number in self.attention:
                found[f"blocks.{number}.1"] = x = self._attend(f"blocks.{number}.1", x)
        mean, var = self._read_stats("output_layer.0")
        gain, bias = (self.state[name] for name in self.last)
        x = F.batch_norm(x, mean, var, eps=OUTPUT_EPS)
        x = self._change(x, gain[None], bias[None])
        found["image"] = torch.tanh(self._apply("output_layer.2", F.relu(x), padding=1))
        return found

    def _weight(self, name: str) -> Tensor:
        weight = self.state[f"{name}.weight"]
        matrix = weight.reshape(len(weight), -1)
        v = F.normalize(self.state[f"{name}.u0"] @ matrix, eps=self.sn_eps)
        u = F.normalize(v @ matrix.T, eps=self.sn_eps)
        return weight / (v @ matrix.T @ u.T).squeeze()

    def _apply(self, name: str, x: Tensor | None, padding: int = 0) -> Tensor:
        weight, bias = self._weight(name), self.state.get(f"{name}.bias")
        assert x is not None
        if weight.ndim == 2:
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, padding=padding)

    def _read_stats(self, name: str) -> tuple[Tensor, Tensor]:
        stem = {"plain": "stored_", "mybn": "bn.stored_", "cross_replica": "bn.running_"}
        at = f"{name}.{stem[self.stats]}"
        return self.state[f"{at}mean"], self.state[f"{at}var"]

    def _normalise(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        if self.shared or self.features:
            gain, bias = (self._apply(f"{name}.{what}", y) for what in ("gain", "bias"))
        else:
            gain, bias = (
                F.embedding(y, self.state[f"{name}.{w}.weight"]) for w in ("gain", "bias")
            )
        x = F.batch_norm(x, *self._read_stats(name), eps=self.bn_eps)
        return self._change(x, 1 + gain, bias)

    def _change(self, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        gain, bias = gain[:, :, None, None], bias[:, :, None, None]
        return x + gain + bias if self.additive else x * gain + bias

    def _run_block(self, name: str, x: Tensor, y: Tensor, *, into: int, out: int) -> Tensor:
        h = F.interpolate(F.relu(self._normalise(f"{name}.bn1", x, y)), scale_factor=2)
        h = self._apply(f"{name}.conv1", h, padding=1)
        h = F.relu(self._normalise(f"{name}.bn2", h, y))
        h = self._apply(f"{name}.conv2", h, padding=1)
        return h + self._apply(f"{name}.conv_sc", F.interpolate(x, scale_factor=2))

    def _run_deep(self, name: str, x: Tensor, y: Tensor, *, into: int, out: int) -> Tensor:
        upsample = int(name.split(".")[1]) % self.depth == self.depth - 1
        h = self._apply(f"{name}.conv1", F.relu(self._normalise(f"{name}.bn1", x, y)))
        h = F.relu(self._normalise(f"{name}.bn2", h, y))
        if into != out:
            x = x[:, :out]
        if upsample:
            h, x = F.interpolate(h, scale_factor=2), F.interpolate(x, scale_factor=2)
        h = self._apply(f"{name}.conv2", h, padding=1)
        h = self._apply(f"{name}.conv3", F.relu(self._normalise(f"{name}.bn3", h, y)), padding=1)
        return self._apply(f"{name}.conv4", F.relu(self._normalise(f"{name}.bn4", h, y))) + x

    def _attend(self, name: str, x: Tensor) -> Tensor:
        theta = self._apply(f"{name}.theta", x).flatten(2)
        phi = F.max_pool2d(self._apply(f"{name}.phi", x), 2).flatten(2)
        g = F.max_pool2d(self._apply(f"{name}.g", x), 2).flatten(2)
        beta = torch.softmax(theta.transpose(1, 2) @ phi, -1)
        seen = (g @ beta.transpose(1, 2)).view(len(x), -1, *x.shape[2:])
        return self.state[f"{name}.gamma"] * self._apply(f"{name}.o", seen) + x
