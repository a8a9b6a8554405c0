"""Joining datasets of the same samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamshard.errors import ConfigError, DataError
from storage.batches.reader import BatchReader
from storage.dataset import Dataset
from storage.join import join, joined_levels
from storage.rows.pick import read_rows
from storage.schema import Level
from tests.feature_store import LEVELS, fill, make_batch, make_dataset, make_recipe

N = 20


def made(
    root: Path,
    levels: tuple[Level, ...],
    *,
    layout_format: str = "zarr",
    unit: int = 6,
    samples: int = N,
    invalid: tuple[int, ...] = (),
    seed: int = 0,
    codec: str = "float16",
    teacher: str = "",
    name: str = "",
) -> Dataset:
    recipe = make_recipe(
        layout_format=layout_format, unit=unit, levels=levels, count=N, seed=seed, codec=codec
    )
    if teacher:
        content = {**recipe.content, "teacher": {"kind": teacher}}
        recipe = replace(recipe, name=name or teacher, content=content)
    dataset = make_dataset(root, recipe=recipe, levels=levels, masks=False)
    fill(dataset, samples, invalid=invalid)
    return dataset


def test_levels_come_from_each(tmp_path: Path) -> None:
    first = made(tmp_path / "a", LEVELS[:1], invalid=(3,))
    second = made(tmp_path / "b", LEVELS[1:], layout_format="tar", unit=4, samples=16, invalid=(9,))
    view = join([first, second])
    assert (view.num_samples, len(view), view.holes) == (16, 16, ())
    assert [level.name for level in view.levels] == [level.name for level in LEVELS]
    assert np.flatnonzero(~view.valid).tolist() == [3, 9] == sorted(view.errors)
    assert view.num_valid == 14
    assert view.keys == [f"key/{i}" for i in range(16)]
    assert view.labels.tolist() == [i % 7 for i in range(16)]
    good = np.flatnonzero(view.valid)
    for levels in (LEVELS[:1], LEVELS[1:]):
        batch = make_batch(0, 16, levels=levels)
        for name in batch.levels:
            rows = read_rows(view, name, good)
            dtype, _ = view.array_spec(name)
            assert np.array_equal(rows, batch.levels[name][good].astype(dtype)), name
    image = make_batch(0, 16, levels=LEVELS[:1]).image
    assert np.array_equal(read_rows(view, "image", good), np.asarray(image)[good])


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.sampled_from(["map", "pread"]), st.integers(0, 40))
def test_a_reader_goes_over_all_of_them(
    tmp_path_factory: pytest.TempPathFactory, world_size: int, access, start: int
) -> None:
    root = tmp_path_factory.mktemp("join")
    first = made(root / "a", LEVELS[:1])
    view = join([first, made(root / "b", LEVELS[1:], unit=4)])
    alone = first.snapshot()
    batch = world_size * 2
    for rank in range(world_size):
        settings = {"rank": rank, "world_size": world_size, "batch_size": batch, "start": start}
        names = ["up.1.t100", "top"]
        with (
            BatchReader(view, levels=names, access=access, **settings) as ours,
            BatchReader(alone, levels=names[:1], access=access, **settings) as one,
        ):
            for _ in range(6):
                got, want = ours.next(), one.next()
                assert np.array_equal(got.index, want.index)
                assert np.array_equal(got.levels["up.1.t100"], want.levels["up.1.t100"])
                for row, index in zip(got.levels["top"], got.index.tolist(), strict=True):
                    other = make_batch(index, 1, levels=LEVELS[1:])
                    assert np.array_equal(row, other.levels["top"][0])


def test_quantised_levels_are_decoded_by_their_own_codec(tmp_path: Path) -> None:
    view = join([made(tmp_path / "a", LEVELS[:1], codec="int8"), made(tmp_path / "b", LEVELS[1:])])
    assert view.codec_name("up.1.t100") == "int8" and len(view.components("up.1.t100")) > 1
    values = read_rows(view, "up.1.t100", range(N))
    assert np.abs(values - make_batch(0, N, levels=LEVELS[:1]).levels["up.1.t100"]).max() < 0.05


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_several_teachers_with_levels_of_one_name(tmp_path: Path, codec: str) -> None:
    """A later teacher's level of a name that is taken stands behind its dataset's name."""
    first = made(tmp_path / "a", LEVELS[:2], teacher="clip")
    second = made(tmp_path / "b", LEVELS[:1], teacher="dino", codec=codec, unit=4)
    third = made(tmp_path / "c", LEVELS[:1], teacher="sam", codec=codec)
    view = join([first, second, third])
    name = LEVELS[0].name
    shown = [level.name for level in view.levels]
    assert shown == [name, LEVELS[1].name, f"dino.{name}", f"sam.{name}"]
    assert tuple(shown) == tuple(lv.name for lv in joined_levels([first, second, third]))
    taps = [level.tap for level in view.levels]
    assert taps[2] == f"dino.{LEVELS[0].tap}" and len(set(taps)) == len(taps), "a head each"
    assert view.codec_name(f"dino.{name}") == codec and view.codec_name(name) == "float16"
    assert view.components(f"dino.{name}")[0] == f"dino.{name}"
    plain = read_rows(second.snapshot(), name, range(N))
    assert np.array_equal(read_rows(view, f"dino.{name}", range(N)), plain)
    with BatchReader(view, levels=[f"sam.{name}", name], batch_size=4) as reader:
        batch = reader.next()
    parts = {part: batch.levels[part] for part in view.components(f"sam.{name}")}
    again = view.decode(f"sam.{name}", parts)
    assert np.array_equal(again, read_rows(view, f"sam.{name}", batch.index.tolist()))
    old = join([first, second, third], version=view.version)
    assert old.version == view.version and old.levels == view.levels


def test_a_hole_of_any_is_a_hole(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a", LEVELS[:1]), made(tmp_path / "b", LEVELS[1:], unit=4)
    second.invalidate(2)  # samples 8 to 11
    view = join([first, second])
    assert view.holes == (1,)
    assert np.flatnonzero(~view.valid).tolist() == [8, 9, 10, 11]


def test_a_version_shows_the_same_again(tmp_path: Path) -> None:
    both = [made(tmp_path / "a", LEVELS[:1]), made(tmp_path / "b", LEVELS[1:], samples=12)]
    version = join(both).version
    fill(both[1], N)
    both[0].drop(["key/2"], reason="test")
    assert join(both).num_samples == N and not join(both).valid[2]
    old = join(both, version=version)
    assert (old.version, old.num_samples, old.num_valid) == (version, 12, 12)
    with pytest.raises(DataError, match="one of 1 datasets"):
        join(both, version=version.split("+")[0])


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    first = made(tmp_path / "a", LEVELS[:2])
    with pytest.raises(ConfigError, match=r"content\.seed: got 1"):
        join([first, made(tmp_path / "b", LEVELS[2:], seed=1)])
    with pytest.raises(ConfigError, match=r"levels: got 'emb' a second time"):
        join([first, made(tmp_path / "c", LEVELS[1:])])
    twice = [made(tmp_path / t, LEVELS[:1], teacher=t, name="same") for t in ("d", "e", "f")]
    with pytest.raises(ConfigError, match=r"'same.up.1.t100' a second time.*with --name"):
        join(twice)
    with pytest.raises(ConfigError, match="datasets: got none"):
        join([])
    with pytest.raises(DataError, match="got array 'nothing'"):
        join([first]).array_spec("nothing")
