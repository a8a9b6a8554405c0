import numpy as np
import pytest

from dreamshard import rng


def test_golden_vectors() -> None:
    """These numbers are in every dataset's recipe as "philox-1": they may never change."""
    assert rng.RNG_VERSION == "philox-1"
    raw = rng.generator(0, 0, 0, "noise").bit_generator.random_raw(2)
    assert raw.tolist() == [15714158323443479133, 3441742478245863366]
    assert rng.normal(0, [0, 1, 1297], 0, "noise", (2,)).tolist() == [
        [1.2043418884277344, -1.6944520473480225],
        [-1.110582947731018, -0.04452282935380936],
        [-0.9526357650756836, -0.7042089104652405],
    ]
    assert [x.hex() for x in rng.uniform(7, [3], 2, "crop", (3,))[0].tolist()] == [
        "0x1.40de180253838p-4",
        "0x1.01978c61b9568p-1",
        "0x1.776e9539a9e62p-1",
    ]
    assert rng.integers(-1, [0, 2**40], 0, "class", (4,), 1000).tolist() == [
        [526, 908, 351, 899],
        [702, 59, 767, 800],
    ]
    assert rng.is_golden()


def test_a_changed_distribution_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = rng.normal
    monkeypatch.setattr(rng, "normal", lambda *args: draw(*args) + np.float32(1e-6))
    assert not rng.is_golden()


def test_numbers_do_not_depend_on_company_or_order() -> None:
    together = rng.normal(3, [5, 9, 2], 1, "noise", (4, 2))
    alone = rng.normal(3, np.array([2]), 1, "noise", (4, 2))
    assert together.dtype == np.float32 and together.shape == (3, 4, 2)
    assert np.array_equal(together[2], alone[0])


@pytest.mark.parametrize("other", [(1, 0, 0, "a"), (0, 1, 0, "a"), (0, 0, 1, "a"), (0, 0, 0, "b")])
def test_every_part_of_the_key_matters(other: tuple[int, int, int, str]) -> None:
    first = rng.generator(0, 0, 0, "a").random(100)
    second = rng.generator(*other).random(100)
    assert not np.isin(first, second).any()


def test_streams_do_not_overlap_with_their_neighbours() -> None:
    raw = [rng.generator(0, 0, draw, "a").bit_generator.random_raw(4096) for draw in range(3)]
    assert len(np.unique(raw)) == 3 * 4096


def test_distributions() -> None:
    normal = rng.normal(0, range(200), 0, "test", (100,))
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03
    uniform = rng.uniform(0, range(200), 0, "test", (100,))
    assert uniform.dtype == np.float64
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.01
    integers = rng.integers(0, range(200), 0, "test", (100,), 7)
    assert integers.dtype == np.int64 and set(np.unique(integers)) == set(range(7))


def test_negative_indices_are_refused() -> None:
    with pytest.raises(OverflowError):
        rng.generator(0, -1, 0, "a")


def test_threads_draw_the_same_numbers() -> None:
    alone = rng.normal(3, range(5, 12), 1, "noise", (3, 4))
    np.testing.assert_array_equal(rng.normal(3, range(5, 12), 1, "noise", (3, 4), threads=4), alone)
