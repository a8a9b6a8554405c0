"""A step of a diffusion teacher's training: a noised batch, the loss, and what helps beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dreamshard import rng
from pipeline.learning.precise import in_float32
from pipeline.learning.pretraining import geometry, objective
from pipeline.learning.pretraining.batches import Batch
from pipeline.learning.ranks import gathered_rows, this_rank
from pipeline.teachers.diffusion.schedules import Schedule


class Told(nn.Module):
    """A network in training that is told how images were changed; dropped when it is trained.

    Args:
        network: a `UNet2DModel`.
        changes: numbers that tell a change (count); 0: it is not told any.
    """

    def __init__(self, network: nn.Module, changes: int) -> None:
        super().__init__()
        self.network = network
        self.tell: nn.Linear | None = None
        if changes:
            embedding: Any = network.time_embedding
            self.tell = nn.Linear(changes, embedding.linear_2.out_features, bias=False)
            nn.init.zeros_(self.tell.weight)  # so that it computes what it did before

    def forward(
        self, x: Tensor, time: Tensor, labels: Tensor | None, changes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the network's output, and its middle block's."""
        middle: list[Tensor] = []
        network: Any = self.network
        hooks = [network.mid_block.register_forward_hook(lambda *told: middle.append(told[2]))]
        if self.tell is not None:
            more = self.tell(changes)
            hooks.append(network.time_embedding.register_forward_hook(lambda *told: told[2] + more))
        try:
            output = network(x, time, class_labels=labels, return_dict=False)[0]
        finally:
            for hook in hooks:
                hook.remove()
        return output, middle[0]


@in_float32
def dispersion(features: Tensor, *, temperature: float) -> Tensor:
    """Return log mean exp(-distance / temperature) over all pairs of a batch's features.

    It falls as the features spread; distances are squared and per number.

    Args:
        features: (B, ...), gathered over the ranks by the caller.
        temperature: scale of the distances.

    Source: Wang and He 2025 (Dispersive loss, l2 and InfoNCE).
    """
    rows = features.flatten(1)
    distances = torch.cdist(rows, rows).square() / rows.shape[1]
    return torch.logsumexp(-distances.flatten() / temperature, 0) - 2 * torch.log(
        torch.tensor(float(len(rows)), device=rows.device)
    )


@dataclass(frozen=True)
class DiffusionStep:
    """Compute the loss of this rank's share of a step's batch.

    Args:
        schedule: of the noise; decides the target.
        seed: of noise levels, changes and dropout.
        device: "cpu" or "cuda".
        half: compute in bfloat16.
        dropout: whether the network has any.
        min_snr: cap of the loss weighting; 0 for none.
        augment: probability of each geometric change.
        dispersive: weight of the dispersion of the middle features; 0: without.
        temperature: of it.
    """

    schedule: Schedule
    seed: int
    device: str
    half: bool
    dropout: bool
    min_snr: float = 0.0
    augment: float = 0.0
    dispersive: float = 0.0
    temperature: float = 0.5

    @property
    def helped(self) -> bool:
        """Whether the network has to be told, or looked into."""
        return bool(self.augment or self.dispersive)

    def module(self, network: nn.Module) -> nn.Module:
        """Return what is trained: the network, or the network with what helps it."""
        if not self.helped:
            return network
        return Told(network, geometry.LABELS if self.augment else 0)

    def __call__(self, model: nn.Module, step: int, batch: Batch) -> Mapping[str, Tensor]:
        """Return the terms of a step (1, 2, ...), "loss" among them."""
        if self.dropout:  # torch's generator decides dropout: set it by step and rank
            drawn = rng.generator(self.seed, step - 1, this_rank(), "pretrain-dropout")
            torch.manual_seed(int(drawn.integers(2**62)))
        images, changes = batch.images, None
        if self.augment:
            images, changes = geometry.change(
                images, seed=self.seed, positions=batch.positions, probability=self.augment
            )
        levels = objective.draw_levels(self.schedule, seed=self.seed, positions=batch.positions)
        example = objective.example(
            self.schedule, images, batch.noise, levels, min_snr=self.min_snr
        )
        x = example.x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.half):
            if not self.helped:
                output = model(x, example.time, class_labels=batch.labels, return_dict=False)[0]
                return {"loss": objective.loss_of(output, example)}
            output, middle = model(x, example.time, batch.labels, changes)
        denoising = objective.loss_of(output, example)
        if not self.dispersive:
            return {"loss": denoising}
        spread = dispersion(gathered_rows(middle), temperature=self.temperature)
        return {
            "loss": denoising + self.dispersive * spread,
            "denoising": denoising,
            "dispersion": spread,
        }
