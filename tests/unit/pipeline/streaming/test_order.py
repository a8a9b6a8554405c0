"""Positions, micro-batches and proportions: pure functions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.streaming.order import Mix, Order, stand_ins
from storage.batches.positions import PositionStream

SHUFFLES = ("full", "runs", "none")


def order(shuffle: str, *, n: int | None = 50, m: int = 8, seed: int = 3) -> Order:
    return Order(
        num_samples=n, micro_batch=m, seed=seed, shuffle=shuffle, samples_per_unit=16,
        window_units=2,
    )  # fmt: skip


@pytest.mark.parametrize("shuffle", SHUFFLES)
@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 120), m=st.integers(1, 16), start=st.integers(0, 300))
def test_every_epoch_has_every_sample_once(shuffle: str, n: int, m: int, start: int) -> None:
    it = Order(
        num_samples=n, micro_batch=m, seed=1, shuffle=shuffle, samples_per_unit=2 * m,
        window_units=2,
    )  # fmt: skip
    epoch = start // n
    samples = it.at(np.arange(epoch * n, (epoch + 1) * n))
    assert sorted(samples.tolist()) == list(range(n))
    covered = list(it.micro_batches(start, start + 2 * n))
    spans = [(batch.first, batch.first + len(batch.samples)) for batch in covered]
    assert spans[0][0] <= start < spans[0][1] and spans[-1][1] >= start + 2 * n
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    for batch in covered:
        assert len(batch.samples) <= m and batch.epoch == batch.first // n
        positions = np.arange(batch.first, batch.first + len(batch.samples))
        assert np.array_equal(batch.samples, it.at(positions))


def test_a_micro_batch_is_the_same_whoever_asks() -> None:
    it = order("full")
    whole = {batch.first: batch.samples.tolist() for batch in it.micro_batches(0, 400)}
    for start in range(0, 300, 7):
        for batch in it.micro_batches(start, start + 5):
            assert whole[batch.first] == batch.samples.tolist()


def test_runs_are_the_micro_batches_of_an_offline_run() -> None:
    batches = list(order("runs").micro_batches(0, 100))
    natural = {tuple(range(first, min(first + 8, 50))) for first in range(0, 50, 8)}
    for epoch in (0, 1):
        mine = {tuple(b.samples.tolist()) for b in batches if b.epoch == epoch}
        assert mine == natural
    first, second = ([b.samples[0] for b in batches if b.epoch == epoch] for epoch in (0, 1))
    assert first != second, "another order in every epoch"


def test_runs_fill_units_a_few_at_a_time() -> None:
    it = Order(
        num_samples=640, micro_batch=8, seed=0, shuffle="runs", samples_per_unit=32, window_units=4
    )
    units = [int(batch.samples[0]) // 32 for batch in it.micro_batches(0, 640)]
    for window in range(5):
        assert len(set(units[window * 16 : (window + 1) * 16])) == 4


def test_homes_are_dealt_out_evenly_within_a_window() -> None:
    it = Order(
        num_samples=640, micro_batch=8, seed=0, shuffle="runs", samples_per_unit=32, window_units=4
    )
    batches = list(it.micro_batches(0, 640))
    for window in range(5):
        homes = {it.home(batch) for batch in batches[window * 16 : (window + 1) * 16]}
        assert homes == set(range(window * 4, window * 4 + 4))
    assert order("full").home(next(iter(order("full").micro_batches(0, 1)))) is None


def test_the_full_shuffle_is_that_of_shards() -> None:
    shards = PositionStream(num_samples=50, seed=3)
    assert np.array_equal(order("full").at(np.arange(200)), shards.samples(0, 200))


def test_a_generator_has_no_end() -> None:
    endless = order("full", n=None)
    assert endless.at(np.array([0, 10**12])).tolist() == [0, 10**12]
    (batch,) = endless.micro_batches(10**12 + 1, 10**12 + 3)
    assert (batch.epoch, batch.first % 8, len(batch.samples)) == (0, 0, 8)


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    start=st.integers(0, 500),
    count=st.integers(0, 100),
)
def test_proportions_are_exact_and_positions_decide(
    weights: list[int], start: int, count: int
) -> None:
    mix = Mix(weights)
    parts = mix.parts(start, start + count)
    for part, weight in enumerate(weights):
        low, high = mix.before(start)[part], mix.before(start + count)[part]
        assert high - low == np.count_nonzero(parts == part)
        assert mix.before(start + mix.period)[part] - low == weight
        share = (start + count) * weight / mix.period
        assert abs(high - share) <= len(weights), "spread evenly"


def test_unusable_rows_are_replaced_by_their_neighbours() -> None:
    assert stand_ins(np.ones(4, bool)) is None
    found = stand_ins(np.array([False, True, False, False, True, False]))
    assert found is not None and found.tolist() == [1, 1, 4, 4, 4, 1]
    nothing = stand_ins(np.zeros(3, bool))
    assert nothing is not None and len(nothing) == 0
