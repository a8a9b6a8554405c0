"""The loop: order of its parts, gradients of a batch in parts, clipping, skipped steps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.learning.average import build_average
from pipeline.learning.loop import Learner, OneProcess, Taken, add_gradients, take_steps
from pipeline.learning.schedule import WarmupCosine

INPUTS = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5], [2.0, 1.0]])


def learner(steps: int = 3, *, lr: float = 0.1, **parts: Any) -> Learner:
    torch.manual_seed(0)
    module = nn.Linear(2, 1)
    return Learner(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=9.0),
        schedule=WarmupCosine(peak=lr, steps=steps, floor=1.0),
        **parts,
    )


def forward(model: nn.Module, step: int, part: int) -> Mapping[str, Tensor]:
    loss = model(INPUTS).square().mean()
    return {"loss": loss, "twice": 2 * loss}


def test_steps_are_those_of_gradient_descent() -> None:
    ours, theirs = learner(), learner().module
    for taken in take_steps(ours, forward):
        loss = forward(theirs, 0, 0)["loss"]
        theirs.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in theirs.parameters():
                assert weight.grad is not None
                weight -= 0.1 * weight.grad
        assert float(taken.terms["loss"]) == pytest.approx(float(loss.detach()))
        assert taken.terms["twice"] == 2 * taken.terms["loss"]
        assert taken.rate == 0.1 and not taken.skipped
    for mine, other in zip(ours.module.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_a_run_goes_on_at_the_next_step_and_ends_at_the_last() -> None:
    seen = [(taken.step, taken.last) for taken in take_steps(learner(5), forward, done=2)]
    assert seen == [(3, False), (4, False), (5, True)]
    assert not list(take_steps(learner(2), forward, done=2))


def test_what_is_due_is_due_every_so_often_and_in_the_end() -> None:
    due = [taken.step for taken in take_steps(learner(7), forward) if taken.due(3)]
    assert due == [3, 6, 7]


def test_the_forward_pass_knows_step_and_part() -> None:
    seen = []

    def told(model: nn.Module, step: int, part: int) -> Mapping[str, Tensor]:
        seen.append((step, part))
        return forward(model, step, part)

    list(take_steps(learner(2), told, parts=2))
    assert seen == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_the_average_follows_the_weights_that_a_step_left() -> None:
    ours = learner(1)
    ours.average = build_average(ours.module, decay=0.5)
    before = [weight.clone() for weight in ours.module.parameters()]
    (taken,) = take_steps(ours, forward)
    assert taken.last and ours.average is not None
    pairs = zip(ours.average.module.parameters(), ours.module.parameters(), before, strict=True)
    for average, after, start in pairs:
        assert torch.equal(average, after), "the first step's average is a copy"
        assert not torch.equal(after, start)


def test_the_part_that_is_kept_is_averaged_alone() -> None:
    head = nn.Linear(1, 1)
    body = nn.Linear(2, 1)
    both = nn.Sequential(body, head)
    ours = learner()
    ours.module, ours.network = both, body
    assert ours.kept is body
    ours.average = build_average(body, decay=0.9)
    with torch.no_grad():
        body.weight.add_(1.0)
    ours.follow(1)
    assert ours.kept is not body and torch.equal(ours.kept.weight, body.weight)
    ours.average, ours.network = None, None
    assert ours.kept is both


def test_gradients_are_clipped_and_their_norm_is_that_before() -> None:
    free, clipped = learner(1, lr=1.0), learner(1, lr=1.0, clip=0.5)
    start = [weight.detach().clone() for weight in clipped.module.parameters()]
    (whole,), (short,) = take_steps(free, forward), take_steps(clipped, forward)
    assert whole.norm is not None and short.norm is not None
    assert float(whole.norm) == pytest.approx(float(short.norm)) and float(short.norm) > 0.5
    moved = [a.detach() - b for a, b in zip(clipped.module.parameters(), start, strict=True)]
    assert float(torch.cat([m.flatten() for m in moved]).norm()) == pytest.approx(0.5, rel=1e-4)


def gradients(parts: int) -> tuple[dict[str, Tensor], list[Tensor], list[bool]]:
    module, shares, alone = learner().module, INPUTS.chunk(parts), []

    class Ranks(OneProcess):
        @contextmanager
        def no_sync(self, model: nn.Module) -> Any:  # type: ignore[override]
            alone.append(True)
            yield

    for weight in module.parameters():
        weight.grad = torch.ones_like(weight)  # of the step before, to be dropped
    terms = add_gradients(
        module,
        torch.optim.SGD(module.parameters(), lr=0.1),
        lambda model, step, part: {"loss": model(shares[part]).square().mean()},
        step=1,
        parts=parts,
        engine=Ranks(),
    )
    return terms, [weight.grad for weight in module.parameters() if weight.grad is not None], alone


def test_parts_of_a_batch_add_up_to_its_gradient() -> None:
    (whole, grads, alone), (parts, sums, shared) = gradients(1), gradients(4)
    torch.testing.assert_close(whole["loss"], parts["loss"])
    for ours, theirs in zip(grads, sums, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not whole["loss"].requires_grad
    assert (len(alone), len(shared)) == (0, 3), "ranks share gradients after the last part"


class Scaled(OneProcess):
    """A loss scaled as for float16, on the CPU."""

    def __init__(self, scale: float) -> None:
        from torch.amp.grad_scaler import GradScaler

        self.scaler = GradScaler("cpu", init_scale=scale, growth_interval=1000)

    def prepare(self, *parts: Any) -> Any:
        module, self.optimizer = parts
        return module, self

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def clip_grad_norm_(self, parameters: Any, max_norm: float) -> Tensor:
        self.scaler.unscale_(self.optimizer)
        return super().clip_grad_norm_(parameters, max_norm)

    def step(self) -> None:
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step_was_skipped = self.scaler.get_scale() < before


def test_an_overflowed_step_is_skipped_and_says_so() -> None:
    plain, scaled, overflowed = learner(1), learner(1), learner(1)
    start = [weight.detach().clone() for weight in overflowed.module.parameters()]
    (one,) = take_steps(plain, forward)
    (two,) = take_steps(scaled, forward, engine=Scaled(8.0))
    (three,) = take_steps(overflowed, forward, engine=Scaled(3e38))
    assert [each.skipped for each in (one, two, three)] == [False, False, True]
    assert three.norm is not None and not bool(three.norm.isfinite())
    torch.testing.assert_close(one.norm, two.norm)
    for mine, other in zip(plain.module.parameters(), scaled.module.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    for mine, other in zip(overflowed.module.parameters(), start, strict=True):
        assert torch.equal(mine, other)


def test_taken_is_what_hooks_see() -> None:
    taken = Taken(step=4, terms={}, norm=None, rate=0.5, skipped=False, last=False)
    assert taken.due(2) and not taken.due(3)
