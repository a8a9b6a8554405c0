"""Copies of datasets: same values in another format, codec or part; stopped ones go on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dreamshard.errors import ConfigError, DataError
from storage.catalog import find_dataset
from storage.dataset import Dataset
from storage.rows.pick import read_rows
from storage.verbs import export
from storage.verbs.verify import verify_dataset
from tests.codec_bounds import bound
from tests.feature_store import data_files, fill, make_dataset, make_recipe

N = 20


@pytest.fixture
def source(tmp_path: Path) -> Dataset:
    dataset = make_dataset(tmp_path / "source")
    fill(dataset, N, invalid=(7,))
    return dataset


def copied(source: Dataset, root: Path, *options: str) -> Dataset:
    assert export.main([source.url, str(root), *options]) == 0
    return find_dataset(str(root))


def same(first: Dataset, second: Dataset, count: int = N) -> None:
    a, b = first.snapshot(), second.snapshot()
    assert (b.num_samples, b.keys, b.holes) == (count, a.keys[:count], ())
    assert np.array_equal(a.valid[:count], b.valid) and np.array_equal(a.labels[:count], b.labels)
    assert {i: text for i, text in a.errors.items() if i < count} == b.errors
    for name in b.array_names:
        rows = [read_rows(s, name, range(count)) for s in (a, b)]
        assert rows[0].tobytes() == rows[1].tobytes()
    assert verify_dataset(second).findings == []


def test_there_and_back_again_gives_the_same_bytes(source: Dataset, tmp_path: Path) -> None:
    shards = copied(source, tmp_path / "tar", "--format", "tar")
    same(source, shards)
    back = copied(shards, tmp_path / "zarr", "--format", "zarr")
    same(source, back)
    assert data_files(back) == data_files(source)
    assert back.recipe.content_key == source.recipe.content_key
    digests = [{u: c.digest for u, c in d.committed().items()} for d in (source, shards, back)]
    assert digests[0] == digests[1] == digests[2]


def test_a_part_is_copied(source: Dataset, tmp_path: Path) -> None:
    part = copied(source, tmp_path / "part", "--levels", "emb", "--samples", "8")
    assert [level.name for level in part.levels] == ["emb"]
    same(source, part, 8)


def test_values_are_encoded_again_within_the_bound(source: Dataset, tmp_path: Path) -> None:
    copy = copied(source, tmp_path / "small", "--codec", "int8", "emb=lowrank3-int4")
    assert copy.snapshot().codec_name("emb") == "lowrank3-int4"
    for level in source.levels[:2]:
        values = read_rows(source.snapshot(), level.name, range(N))
        found = read_rows(copy.snapshot(), level.name, range(N)).astype(np.float64)
        valid = source.snapshot().valid
        plain = np.nan_to_num(values.astype(np.float32))
        limit = bound(copy.codec(level.name), level, plain)
        assert (np.abs(found - values) <= limit)[valid].all()


def test_a_stopped_copy_goes_on(
    source: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    original, calls = export._copy_unit, []

    def stop(*arguments) -> None:
        calls.append(arguments[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(export, "_copy_unit", stop)
    with pytest.raises(KeyboardInterrupt):
        export.main([source.url, str(tmp_path / "copy"), "--format", "tar"])
    same(source, copied(source, tmp_path / "copy", "--format", "tar"))
    assert calls == [0, 1, 2, 2, 3]
    copied(source, tmp_path / "copy", "--format", "tar")
    assert calls == [0, 1, 2, 2, 3] and "already there" in capsys.readouterr().out


def test_what_is_not_possible_is_said_at_once(source: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        export.main([source.url, str(tmp_path), "--levels", "nope", "--samples", "99"])
    assert "levels: got 'nope'" in str(caught.value) and "samples: got 99" in str(caught.value)
    with pytest.raises(DataError, match="got 'int3'"):
        export.main([source.url, str(tmp_path), "--codec", "int3"])
    with pytest.raises(ConfigError, match="LEVEL=CODEC"):
        export.main([source.url, str(tmp_path), "--codec", "up=int8"])
    with pytest.raises(DataError, match="got the source as target"):
        export.main([source.url, str(Path(source.url).parent)])
    holes = make_dataset(tmp_path / "holes", recipe=make_recipe(count=12))
    fill(holes, 12)
    holes.invalidate(0)
    with pytest.raises(DataError, match="missing units"):
        export.main([holes.url, str(tmp_path / "x")])


def test_one_codec_for_all_stands_below_those_for_one_level(
    source: Dataset, tmp_path: Path
) -> None:
    """Whatever their order; two for the same level contradict each other."""
    made = [
        export.plan_copy(source, codecs=codecs).recipe.layout["codecs"]
        for codecs in (["int8", "emb=float32"], ["emb=float32", "int8"])
    ]
    assert made[0] == made[1] == {"up.1.t100": "int8", "emb": "float32"}
    for codecs in (["int8", "int4"], ["emb=int8", "emb=int4"]):
        with pytest.raises(ConfigError, match="codec: got int8 and int4 for"):
            export.plan_copy(source, codecs=codecs)


def test_how_tar_keeps_images_is_nothing_to_zarr(source: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="images: got npy, allowed nothing with format zarr"):
        export.main([source.url, str(tmp_path), "--images", "npy"])
    assert export.plan_copy(source, layout_format="tar").recipe.layout["images"] == "png"
