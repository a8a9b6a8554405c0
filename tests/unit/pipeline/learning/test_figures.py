"""Steps' figures: averaged over steps and ranks, and refused where they are not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from dreamshard.errors import DreamshardError
from pipeline.learning.figures import Figures


def explain(step: int, figures: Mapping[str, float], beside: Any) -> DreamshardError:
    return DreamshardError(f"step {step}: {dict(figures)} {beside}")


def note(figures: Figures, *losses: float, first: int = 1) -> None:
    for step, loss in enumerate(losses, first):
        figures.note(step, {"loss": torch.tensor(loss), "norm": torch.tensor(1.0)}, f"at {step}")


def test_means_are_over_the_steps_since_the_last_line() -> None:
    figures = Figures(explain)
    note(figures, 1.0, 2.0, 6.0)
    assert figures.means() == {"loss": 3.0, "norm": 1.0}
    note(figures, 5.0)
    assert figures.means() == {"loss": 5.0, "norm": 1.0}


def test_a_line_over_fewer_steps_than_the_others_says_so() -> None:
    figures = Figures(explain)
    for first, losses, told in (
        (1, [1.0] * 5, {}),
        (9, [1.0] * 2, {"averaged": 2}),  # gone on with after step 8
        (10, [1.0], {"averaged": 1}),
        (11, [1.0] * 3, {}),  # the run's last line is as short in every run
        (6, [1.0] * 5, {}),
    ):
        note(figures, *losses, first=first)
        assert figures.fewer(5) == told
        figures.means()


def test_figures_leave_the_graph() -> None:
    figures, weight = Figures(explain), torch.ones((), requires_grad=True)
    figures.note(1, {"loss": weight * 2})
    assert not figures._steps[0][1]["loss"].requires_grad
    assert figures.means() == {"loss": 2.0}


def test_the_first_broken_step_is_named_with_what_was_noted_beside_it() -> None:
    figures = Figures(explain)
    note(figures, 1.0, float("inf"), float("nan"), first=7)
    with pytest.raises(DreamshardError, match=r"step 8: \{'loss': inf, 'norm': 1.0\} at 8"):
        figures.means()


def test_ranks_count_alike_and_all_of_them_stop() -> None:
    def with_another_rank(rows: Tensor) -> Tensor:
        other = rows.clone()
        other[0, :, 0] = torch.tensor([3.0, other_loss])
        return torch.cat([rows, other])

    other_loss = 5.0
    figures = Figures(explain, gather=with_another_rank)
    note(figures, 1.0, 1.0)
    assert figures.means() == {"loss": 2.5, "norm": 1.0}
    other_loss = float("nan")
    note(figures, 1.0, 1.0)
    with pytest.raises(DreamshardError, match=r"step 2: \{'loss': 1.0"):
        figures.means()


def test_what_only_some_steps_told_is_averaged_over_those() -> None:
    figures = Figures(explain)
    note(figures, 1.0, 3.0)
    figures.note(
        3, {"loss": torch.tensor(2.0), "norm": torch.tensor(1.0), "now": torch.tensor(6.0)}
    )
    assert figures.means() == {"loss": 2.0, "norm": 1.0, "now": pytest.approx(6.0)}
