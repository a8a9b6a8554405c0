"""Draws of labels."""

from __future__ import annotations

import numpy as np

from distill.probes.draws import label_draws

LABELS = np.arange(90) % 3


def test_draws_have_the_labels_asked_for_and_repeat() -> None:
    draws = label_draws(LABELS, shots=5, draws=4, seed=0, purpose="few-label")
    assert draws.shape == (4, 15)
    for row in draws:
        assert len(set(row.tolist())) == 15
        assert np.bincount(LABELS[row]).tolist() == [5, 5, 5]
    again = label_draws(LABELS, shots=5, draws=2, seed=0, purpose="few-label")
    assert np.array_equal(draws[:2], again), "a draw does not depend on how many there are"
    for changes in ({"seed": 1}, {"purpose": "probe-selection"}):
        other = label_draws(
            LABELS, **({"shots": 5, "draws": 4, "seed": 0, "purpose": "few-label"} | changes)
        )
        assert not np.array_equal(draws, other)
