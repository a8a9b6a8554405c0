"""A step of two players: whose turn it is, what they are shown, whose weights move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.learning.average import Average
from pipeline.learning.figures import is_finite
from pipeline.learning.pretraining.adversarial.objective import Objective, Share
from pipeline.learning.pretraining.adversarial.sync import average_gradients
from pipeline.learning.pretraining.batches import Batch

if TYPE_CHECKING:
    from pipeline.learning.checkpoint import Part

Turn = Callable[[Share], Mapping[str, Tensor]]


class Players:
    """Take an objective's steps, and keep the moving averages of its networks.

    Args:
        objective: what is played.
        seed: of the random numbers.
        half: play under autocast to bfloat16.
    """

    def __init__(self, objective: Objective, *, seed: int, half: bool) -> None:
        self.objective, self._seed, self._half = objective, seed, half
        self._averages = {
            name: _Following(objective.networks[name], objective.decay)
            for name in objective.averaged
        }
        parameters = {id(p): p for net in objective.networks.values() for p in net.parameters()}
        self._everyone = list(parameters.values())
        self._owned = {
            player: [p for group in optimizer.param_groups for p in group["params"]]
            for player, optimizer in objective.optimizers.items()
        }

    @property
    def averages(self) -> dict[str, nn.Module]:
        """The averaged networks by name."""
        return {name: average.module for name, average in self._averages.items()}

    def parts(self) -> dict[str, Part]:
        """Name what a checkpoint holds."""
        networks: dict[str, Part] = dict(self.objective.networks)
        averages = {f"{name}_average": module for name, module in self.averages.items()}
        stepping = {f"{n}_optimizer": each for n, each in self.objective.optimizers.items()}
        return {**networks, **averages, **stepping}

    def is_finite(self) -> bool:
        """Tell whether all weights, and their averages, are numbers."""
        return is_finite(*self.objective.networks.values(), *self.averages.values())

    def step(self, number: int, batches: Iterator[Batch], *, progress: float) -> dict[str, Tensor]:
        """Take a step (1, 2, ...); return its terms, the losses as loss_d, loss_r and loss_g.

        A lone encoder's is loss_e.

        Args:
            number: of the step.
            batches: from which as many are taken as `batches_of_a_step` says.
            progress: share of the run that is over, 0..1.
        """
        told, terms = _Told(self._seed, number, progress), {}
        objective, count = self.objective, self.objective.discriminator_steps
        for turn in range(count):
            share = told.share(next(batches), turn)
            terms |= self._turn("discriminator", objective.discriminator_step, share, "loss_d")
        if objective.regularise_every and number % objective.regularise_every == 0:
            again = told.again(share, count)
            terms |= self._turn("discriminator", objective.regulariser_step, again, "loss_r")
        seen = objective.generator_sees_images
        share = told.share(next(batches), count + 1) if seen else told.again(share, count + 1)
        last = "generator" if "generator" in objective.optimizers else "encoder"
        terms |= self._turn(last, objective.generator_step, share, f"loss_{last[0]}")
        for name, average in self._averages.items():
            average.update(objective.networks[name], step=number)
        return terms

    def _turn(self, player: str, play: Turn, share: Share, name: str) -> dict[str, Tensor]:
        """Let one player learn, and no other."""
        for parameter in self._everyone:
            parameter.requires_grad_(False)
        for parameter in self._owned[player]:
            parameter.requires_grad_(True)
        optimizer = self.objective.optimizers[player]
        optimizer.zero_grad()
        device = share.images.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self._half):
            terms = dict(play(share))
        loss = terms.pop("loss")
        loss.backward()
        average_gradients(self._owned[player])
        optimizer.step()
        return {name: loss.detach(), **{key: value.detach() for key, value in terms.items()}}


def batches_of_a_step(objective: Objective) -> int:
    """Return how many batches of images a step takes."""
    return objective.discriminator_steps + objective.generator_sees_images


@dataclass(frozen=True)
class _Told:
    """What the shares of a step have in common."""

    seed: int
    step: int
    progress: float

    def share(self, batch: Batch, turn: int) -> Share:
        """Give a turn images of its own."""
        images = batch.images.contiguous(memory_format=torch.channels_last)
        return self._of(images, batch.labels, batch.positions, turn)

    def again(self, share: Share, turn: int) -> Share:
        """Give a turn another's images, and other random numbers."""
        return self._of(share.images, share.labels, share.positions, turn)

    def _of(self, images: Tensor, labels: Tensor | None, positions: range, turn: int) -> Share:
        return Share(images, labels, positions, self.seed, turn, self.step, self.progress)


class _Following(Average):
    """Average with the decay that an objective says."""

    def __init__(self, module: nn.Module, decay_of: Callable[[int], float]) -> None:
        super().__init__(module)
        self._decay_of = decay_of

    def get_decay(self, step: int | None = None) -> float:
        """Return the decay after a step (1, 2, ...)."""
        assert step is not None
        return self._decay_of(step)
