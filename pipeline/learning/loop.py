"""The training loop: students, read-outs, interpreters and teachers differ in their forward pass.

Read `take_steps`: rate, forward and backward in parts, clipping, step, moving average, hooks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.learning.schedule import WarmupCosine

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3
    from torch.amp.grad_scaler import GradScaler

Forward = Callable[[nn.Module, int, int], Mapping[str, Tensor]]
"""Prepared module, step (1, 2, ...), part (0, 1, ...) -> scalar terms, "loss" among them."""


@dataclass
class Learner:
    """Hold what learns; all of it changes from step to step, and so goes into checkpoints.

    Args:
        module: whose parameters are trained.
        optimizer: of these parameters.
        schedule: its learning rate.
        clip: largest norm of the whole gradient; 0: no clipping.
        network: the part of the module that is kept in the end; None: all of it.
        average: moving average of that part, if there is one.
        scaler: of the loss, where training is in float16.
    """

    module: nn.Module
    optimizer: Optimizer
    schedule: WarmupCosine
    clip: float = 0.0
    network: nn.Module | None = None
    average: ModelEmaV3 | None = None
    scaler: GradScaler | None = None

    @property
    def kept(self) -> Any:
        """The network to keep: its moving average, if there is one."""
        return self._network if self.average is None else self.average.module

    def follow(self, step: int) -> None:
        """Move the average towards the weights that a step (1, 2, ...) left."""
        if self.average is not None:
            self.average.update(self._network, step=step)

    @property
    def _network(self) -> nn.Module:
        return self.module if self.network is None else self.network


@dataclass(frozen=True)
class Taken:
    """Say what a step did.

    Args:
        step: its number.
        terms: means of the loss terms over its parts, scalars on the device.
        norm: of the whole gradient before clipping, on the device; None where a launcher clips by
            itself and does not tell.
        rate: learning rate.
        skipped: float16 overflowed: the scaler left this step out and lowers its scale.
        last: of the run.
    """

    step: int
    terms: Mapping[str, Tensor]
    norm: Tensor | None
    rate: float
    skipped: bool
    last: bool

    def due(self, every: int) -> bool:
        """Tell whether what happens every so many steps, and after the last one, happens now."""
        return self.last or self.step % every == 0


class Engine(Protocol):
    """What the loop asks of Accelerate."""

    def prepare(self, *parts: Any) -> Any:
        """Wrap module and optimiser for several ranks and number formats."""

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients."""

    def clip_grad_norm_(self, parameters: Iterable[Tensor], max_norm: float) -> Tensor | None:
        """Clip gradients; return the norm before."""

    def no_sync(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Let ranks keep their gradients to themselves for a while."""
        ...


class OneProcess:
    """Train in this process alone, whatever launcher started it."""

    def prepare(self, *parts: Any) -> Any:
        """Return module and optimiser as they are."""
        return parts

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients."""
        loss.backward()

    def clip_grad_norm_(self, parameters: Iterable[Tensor], max_norm: float) -> Tensor:
        """Clip gradients; return the norm before."""
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def no_sync(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Do nothing: there is no one to share with."""
        return nullcontext()


def take_steps(
    learner: Learner,
    forward: Forward,
    *,
    done: int = 0,
    parts: int = 1,
    engine: Engine | None = None,
) -> Iterator[Taken]:
    """Take the steps that are left, and hand each over to whoever logs, saves and looks.

    Args:
        learner: what learns, as it is after `done` steps.
        forward: pass of a part of a step's batch.
        done: steps taken before.
        parts: forward passes of a step; each loss counts 1 / parts.
        engine: Accelerate, or what stands in for it; None: this process alone.
    """
    engine = engine or OneProcess()
    model, stepper = engine.prepare(learner.module, learner.optimizer)
    for step in range(done + 1, learner.schedule.steps + 1):
        rate = learner.schedule.set(learner.optimizer, step)
        terms = add_gradients(model, stepper, forward, step=step, parts=parts, engine=engine)
        norm = engine.clip_grad_norm_(model.parameters(), learner.clip or math.inf)
        stepper.step()
        learner.follow(step)
        yield Taken(
            step=step,
            terms=terms,
            norm=norm,
            rate=rate,
            skipped=getattr(stepper, "step_was_skipped", False),
            last=step == learner.schedule.steps,
        )


def add_gradients(
    model: nn.Module,
    optimizer: Optimizer,
    forward: Forward,
    *,
    step: int,
    parts: int,
    engine: Engine,
) -> dict[str, Tensor]:
    """Run a step's batch forward and backward, in parts; ranks share gradients after the last.

    The step before leaves its gradients to this one, which drops them after its first forward pass:
    dropped earlier, their holes are taken by activations, and on a CPU a step takes 10 % longer.

    Returns:
        The loss terms' means over the parts.
    """
    sums: dict[str, Tensor] = {}
    for part in range(parts):
        with engine.no_sync(model) if part < parts - 1 else nullcontext():
            terms = forward(model, step, part)
            if part == 0:
                optimizer.zero_grad()
            engine.backward(terms["loss"] / parts)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value.detach() / parts
    return sums
