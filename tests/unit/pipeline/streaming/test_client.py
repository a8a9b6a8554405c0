"""The client, with the teacher in this process: which samples come, in which order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dreamshard.errors import ConfigError
from pipeline.cluster import metrics
from pipeline.cluster.outcomes import Done, Lost
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.streaming.client import Share, StreamReader
from pipeline.streaming.config import PartConfig, StreamConfig
from pipeline.streaming.live import LiveTransport
from pipeline.streaming.order import Mix
from pipeline.streaming.stream import resolve_stream
from pipeline.streaming.window import Answer
from pipeline.teachers.base import TeacherConfig
from storage.batches.reader import BatchReader
from storage.dataset import Dataset
from storage.rows.pick import read_rows
from tests.stream_runs import make_offline

Configure = Callable[..., StreamConfig]


def open_live(config: StreamConfig, **share: Any) -> StreamReader:
    stream = resolve_stream(config.stream())
    chosen: dict = {"batch_size": 16, **share}
    levels = [level.name for level in stream.levels]
    return StreamReader(stream, LiveTransport(stream), levels=levels, share=Share(**chosen))


def take(reader: StreamReader | BatchReader, count: int) -> list[dict[str, np.ndarray]]:
    """Return copies of some batches, and close the reader."""
    found = []
    with reader:
        for _ in range(count):
            batch = reader.next()
            assert batch.image is not None
            arrays = {**batch.levels, "index": batch.index, "image": batch.image}
            found.append({name: values.copy() for name, values in arrays.items()})
    return found


def same(left: list[dict[str, np.ndarray]], right: list[dict[str, np.ndarray]]) -> None:
    assert len(left) == len(right)
    for mine, theirs in zip(left, right, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture
def shards(configure: Configure, tmp_path: Path) -> Dataset:
    return make_offline(configure(root=str(tmp_path / "shards")))


@pytest.mark.parametrize("shuffle", ["full", "none"])
def test_a_stream_is_what_its_shards_would_be(
    configure: Configure, shards: Dataset, shuffle: Any
) -> None:
    levels = [level.name for level in shards.levels]
    recorded = BatchReader(
        shards.snapshot(), levels=levels, batch_size=16, seed=5, shuffle=shuffle, copy=True
    )
    streamed = open_live(configure(), seed=5, shuffle=shuffle)
    same(take(streamed, 15), take(recorded, 15))  # past two epochs


@pytest.mark.parametrize("shuffle", ["full", "runs", "none"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_batches_of_one_rank(
    configure: Configure, shuffle: Any, ranks: int
) -> None:
    whole = take(open_live(configure(samples=90), shuffle=shuffle, start=32), 12)
    shares = [
        take(
            open_live(
                configure(samples=90), shuffle=shuffle, start=32, rank=rank, world_size=ranks
            ),
            12,
        )
        for rank in range(ranks)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    same(joined, whole)


@pytest.mark.parametrize("shuffle", ["full", "runs"])
def test_a_run_goes_on_from_its_position_alone(configure: Configure, shuffle: Any) -> None:
    whole = take(open_live(configure(samples=90), shuffle=shuffle, batch_size=12), 20)
    rest = take(open_live(configure(samples=90), shuffle=shuffle, batch_size=12, start=7 * 12), 13)
    same(whole[7:], rest)


def test_a_batch_of_many_micro_batches_passes_through_a_small_window(configure: Configure) -> None:
    wide = take(open_live(configure(), batch_size=96, window=1), 2)
    assert sorted(wide[0]["index"].tolist()) == list(range(96))


def test_a_generator_streams_without_end(configure: Configure) -> None:
    batches = take(open_live(configure(mode="synthesize", samples=None), start=10**9), 3)
    assert [int(batch["index"][0]) for batch in batches] == [10**9 + 16 * n for n in range(3)]


def test_fresh_noise_changes_with_the_epoch_and_images_do_not(configure: Configure) -> None:
    def epochs(**changes: Any) -> list[dict[str, np.ndarray]]:
        return take(open_live(configure(samples=32, **changes), shuffle="none", batch_size=32), 3)

    first, second, third = epochs(fresh_noise=True)
    plain = epochs()
    same([first], plain[:1])
    assert np.array_equal(first["image"], second["image"])
    assert np.array_equal(first["index"], second["index"])
    assert not np.array_equal(first["b4"], second["b4"])
    assert not np.array_equal(second["b4"], third["b4"])
    same([first, second, third], epochs(fresh_noise=True))
    assert np.array_equal(plain[0]["b4"], plain[1]["b4"])


def test_quantised_levels_come_as_shards_store_them(configure: Configure) -> None:
    (batch,) = take(open_live(configure(codec="int8")), 1)
    assert batch["b4"].dtype == np.int8 and "b4.scale" in batch


def test_sources_are_mixed_in_proportion(configure: Configure, shards: Dataset) -> None:
    parts = [
        PartConfig(mode="shards", weight=2, dataset=shards.url),
        PartConfig(
            mode="encode",
            source=SourceConfig(kind="digits"),
            weight=1,
            image=ImageConfig(size=16),
            samples=32,
            seed=7,
        ),
    ]
    teacher = TeacherConfig(
        kind="noise", levels=["s4", "s8"], settings={"channels": 4, "image_size": 16}
    )
    shared: dict = {"mode": "synthesize", "samples": None, "teacher": teacher}
    config = configure(**shared, weight=5, mix=parts)
    whole = take(open_live(config, shuffle="full", batch_size=8), 30)
    drawn = take(open_live(configure(**shared), batch_size=5), 30)
    order = np.concatenate([batch["index"] for batch in whole])
    images = np.concatenate([batch["image"] for batch in whole])
    # The pattern has a period of 8: five drawn samples, two from shards, one encoded.
    places = Mix([5, 2, 1]).parts(0, 240)
    assert [int(np.count_nonzero(places == part)) for part in range(3)] == [150, 60, 30]
    for number in range(30):
        rows = np.flatnonzero(places[number * 8 : number * 8 + 8] == 0)
        got = {name: values[rows] for name, values in whole[number].items()}
        same([got], [drawn[number]])
    recorded = shards.snapshot()
    cached = order[places == 1]
    assert np.array_equal(images[places == 1], read_rows(recorded, "image", cached))
    assert len(set(cached[:96].tolist())) == 60, "no sample twice within an epoch"
    # And ranks, resume: the same again in two halves from the middle.
    halves = [
        take(open_live(config, shuffle="full", batch_size=8, start=80, rank=r, world_size=2), 20)
        for r in range(2)
    ]
    joined = [
        {name: np.concatenate([left[name], right[name]]) for name in left}
        for left, right in zip(*halves, strict=True)
    ]
    same(joined, whole[10:])


def test_unusable_images_are_replaced_by_their_neighbours(
    configure: Configure, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(16):
        Image.new("L", (16, 16), 10 * number).save(folder / f"{number:02d}.png")
    (folder / "05.png").write_bytes(b"no image")
    source = SourceConfig(kind="folder", path=str(folder))
    (batch,) = take(open_live(configure(source=source, samples=None), shuffle="none"), 1)
    assert batch["index"].tolist() == [0, 1, 2, 3, 4, 6, 6, 7, *range(8, 16)]
    assert np.array_equal(batch["b4"][5], batch["b4"][6])


def test_what_does_not_fit_is_told_all_at_once(configure: Configure, shards: Dataset) -> None:
    config = configure(
        mix=[
            PartConfig(mode="shards", dataset=shards.url),
            PartConfig(
                mode="encode", source=SourceConfig(kind="digits"), image=ImageConfig(size=32)
            ),
        ],
        codec="int8",
    )
    with pytest.raises(ConfigError) as caught:
        resolve_stream(config.stream())
    text = str(caught.value)
    assert "mix.0: level b4: got float16 float16[4, 4, 4], allowed int8 int8[4, 4, 4]" in text
    assert "mix.1.image.size: got (32, 32), allowed (16, 16)" in text
    with pytest.raises(ConfigError, match="batch_size: got 15"):
        open_live(configure(), batch_size=15, world_size=2)


def test_a_run_that_goes_on_reads_the_shards_it_began_with(
    configure: Configure, tmp_path: Path
) -> None:
    half = make_offline(configure(root=str(tmp_path / "shards"), samples=64))
    config = configure(mix=[PartConfig(mode="shards", dataset=half.url)])
    begun = resolve_stream(config.stream())
    make_offline(configure(root=str(tmp_path / "shards")))
    now = resolve_stream(config.stream())
    assert [stream.parts[1].num_samples for stream in (begun, now)] == [64, 96]
    pinned = now.at(begun.versions())
    assert pinned.versions() == begun.versions() != now.versions()
    assert pinned.parts[1].num_samples == 64 and pinned.parts[0] is now.parts[0]
    assert now.at(now.versions()) is now


class LosesTheFirst(LiveTransport):
    """A transport whose first answer is lost on the way."""

    lost = False

    def poll(self, timeout_s: float) -> list[Answer]:
        events = super().poll(timeout_s)
        for place, event in enumerate(events):
            if isinstance(event, Done) and not self.lost:
                self.lost = True
                events[place] = Lost(event.work, OSError("the node is gone"))
        return events


def test_retries_are_counted_for_the_dashboard(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[tuple[str, int, dict[str, str]]] = []

    class Counter:
        def __init__(self, name: str) -> None:
            self.name = name

        def inc(self, value: int, tags: dict[str, str]) -> None:
            counted.append((self.name, value, tags))

        set = inc

    monkeypatch.setattr(metrics, "_metric", Counter)
    monkeypatch.setattr(metrics, "_in_ray", lambda: True)
    stream = resolve_stream(configure().stream())
    levels = [level.name for level in stream.levels]
    transport = LosesTheFirst(stream)
    reader = StreamReader(stream, transport, levels=levels, share=Share(batch_size=16))
    disturbed = take(reader, 3)
    assert transport.lost and reader.retries == 1
    same(disturbed, take(open_live(configure()), 3))
    retries = [call[1:] for call in counted if call[0] == "dreamshard_retries"]
    assert retries == [(1, {"part": "online", "run": stream.name})]
