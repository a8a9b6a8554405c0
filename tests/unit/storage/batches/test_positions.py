"""The stream of positions: bijective, well mixed, addressable anywhere, the same for ever."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamshard.errors import ConfigError, DataError
from storage.batches.positions import PERMUTATION_VERSION, PositionStream, Shuffle, invert, permute

SHUFFLES: list[Shuffle] = ["full", "block", "none"]


def whole(n: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return permute(np.arange(n), num_samples=n, seed=seed, epoch=epoch)


def assert_uniform(counts: np.ndarray) -> None:
    """Pearson's chi-square, at five standard deviations of its distribution."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    chi_square = ((counts - expected) ** 2).sum() / expected
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("n", "seed", "epoch", "positions", "samples"),
    [
        (10, 0, 0, range(10), [5, 7, 3, 2, 1, 4, 0, 9, 6, 8]),
        (10, 0, 1, range(10), [5, 1, 4, 0, 8, 2, 6, 9, 3, 7]),
        (10, 7, 0, range(10), [5, 3, 4, 8, 9, 6, 7, 1, 0, 2]),
        (100, 0, 0, range(8), [2, 39, 5, 66, 68, 86, 50, 56]),
        (10**6, 42, 3, [0, 1, 2, 999_999, 123_456], [210870, 538720, 778591, 885093, 921946]),
        (2**40, 0, 0, [0, 1, 2**40 - 1], [399976778621, 945177707168, 233647693602]),
    ],
)
def test_golden_permutations(
    n: int, seed: int, epoch: int, positions: list[int], samples: list[int]
) -> None:
    assert PERMUTATION_VERSION == "feistel-1"
    found = permute(np.array(positions), num_samples=n, seed=seed, epoch=epoch)
    assert found.dtype == np.int64
    assert found.tolist() == samples


def test_golden_block_order() -> None:
    stream = PositionStream(
        num_samples=12, seed=5, shuffle="block", block_samples=3, window_blocks=2
    )
    assert stream.samples(0, 14).tolist() == [11, 9, 7, 8, 10, 6, 4, 1, 3, 2, 0, 5, 2, 5]


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(-(2**63), 2**63), st.integers(0, 2**40))
def test_every_epoch_is_a_bijection(n: int, seed: int, epoch: int) -> None:
    order = whole(n, seed, epoch)
    assert np.array_equal(np.sort(order), np.arange(n))
    back = invert(order, num_samples=n, seed=seed, epoch=epoch)
    assert np.array_equal(back, np.arange(n))


@settings(deadline=None)
@given(st.integers(1, 2**50), st.data())
def test_any_position_can_be_asked_for_alone(n: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=5)), np.int64)
    together = permute(positions, num_samples=n, seed=1, epoch=2)
    alone = [permute(np.array([p]), num_samples=n, seed=1, epoch=2)[0] for p in positions]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < n)).all()


@pytest.mark.parametrize("n", [3, 4, 5])
def test_every_order_of_a_few_samples_is_equally_likely(n: int) -> None:
    counts = Counter(
        tuple(whole(n, epoch=epoch).tolist()) for epoch in range(40 * math.factorial(n))
    )
    assert len(counts) == math.factorial(n)
    assert_uniform(np.array(list(counts.values())))


@pytest.mark.parametrize("n", [16, 64, 65, 100])
def test_orders_are_well_mixed(n: int) -> None:
    orders = np.stack([whole(n, seed=9, epoch=epoch) for epoch in range(800)])
    for position in (0, 1, n // 2, n - 1):
        assert_uniform(np.bincount(orders[:, position], minlength=n))
    steps = (orders[:, 1:] - orders[:, :-1]) % n  # neighbours in the stream: no preferred distance
    assert_uniform(np.bincount(steps.ravel(), minlength=n)[1:])
    pairs = orders[:, 0] * n + orders[:, n // 2]
    if n == 16:
        distinct = ~np.eye(n, dtype=bool).ravel()
        assert_uniform(np.bincount(pairs, minlength=n * n)[distinct])
    fixed = (orders == np.arange(n)).sum(axis=1)
    assert fixed.mean() == pytest.approx(1, abs=0.2)  # a random permutation's mean and variance
    assert fixed.var() == pytest.approx(1, abs=0.35)


def test_samples_move_far_and_epochs_are_independent() -> None:
    n = 50_000
    first, second, other_seed = whole(n), whole(n, epoch=1), whole(n, seed=1)
    displacement = np.abs(first - np.arange(n)).mean() / n
    assert displacement == pytest.approx(1 / 3, abs=0.01)
    for order in (np.arange(n), second, other_seed):
        assert abs(np.corrcoef(first, order)[0, 1]) < 0.02
        assert (first == order).sum() < 10


@pytest.mark.parametrize("shuffle", SHUFFLES)
@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 150),
    invalid=st.sets(st.integers(0, 149), max_size=60),
    block=st.integers(1, 40),
    window=st.integers(1, 6),
    start=st.integers(0, 200),
    count=st.integers(0, 100),
)
def test_the_stream_visits_each_valid_sample_once_per_epoch(
    shuffle: Shuffle, n: int, invalid: set[int], block: int, window: int, start: int, count: int
) -> None:
    valid = np.array([sample not in invalid for sample in range(n)])
    if not valid.any():
        valid[0] = True
    stream = PositionStream(
        num_samples=n,
        valid=valid,
        seed=3,
        shuffle=shuffle,
        block_samples=block,
        window_blocks=window,
    )
    size = stream.epoch_size
    assert size == valid.sum()
    for epoch in (0, 1, 7):
        samples = np.sort(stream.samples(epoch * size, size))
        assert np.array_equal(samples, np.flatnonzero(valid))
    undisturbed = stream.samples(0, start + count)
    assert np.array_equal(stream.samples(start, count), undisturbed[start:])  # across epochs


def test_epochs_differ_unless_the_order_is_kept() -> None:
    for shuffle in SHUFFLES:
        stream = PositionStream(num_samples=90, shuffle=shuffle, block_samples=8, window_blocks=3)
        epochs = stream.samples(0, 180).reshape(2, 90)
        assert np.array_equal(epochs[0], epochs[1]) == (shuffle == "none")


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 5), st.integers(0, 3))
def test_block_shuffle_stays_inside_its_windows(n: int, block: int, width: int, bad: int) -> None:
    valid = np.arange(n) % 7 >= bad
    if not valid.any():
        valid[:] = True
    stream = PositionStream(
        num_samples=n,
        valid=valid,
        seed=n,
        shuffle="block",
        block_samples=block,
        window_blocks=width,
    )
    position, ends = 0, []
    while position < 2 * stream.epoch_size:
        window = stream.window(position)
        assert stream.window(window.end - 1) == window
        assert len(window.ranges) <= width
        inside = [s for low, high in window.ranges for s in range(low, high) if valid[s]]
        assert sorted(stream.samples(position, window.end - position).tolist()) == inside
        position = window.end
        ends.append(position)
    assert stream.epoch_size in ends  # no window straddles an epoch
    assert all(low < high for low, high in pairwise(ends))


def test_what_decides_the_order_is_described() -> None:
    stream = PositionStream(num_samples=9, seed=4, shuffle="block", block_samples=2)
    assert stream.describe() == {
        "permutation": "feistel-1",
        "shuffle": "block",
        "seed": 4,
        "epoch_size": 9,
        "block_samples": 2,
        "window_blocks": 32,
    }


def test_bad_settings_are_named_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        PositionStream(num_samples=3, shuffle="all", block_samples=0, window_blocks=0)  # type: ignore[arg-type]
    assert [problem.key for problem in caught.value.problems if not isinstance(problem, str)] == [
        "shuffle",
        "block_samples",
        "window_blocks",
    ]
    with pytest.raises(DataError, match="none of them valid"):
        PositionStream(num_samples=3, valid=np.zeros(3, bool))
    with pytest.raises(DataError, match="got 2 rows"):
        PositionStream(num_samples=3, valid=np.ones(2, bool))
    with pytest.raises(ConfigError, match="'block' where windows"):
        PositionStream(num_samples=3).window(0)
