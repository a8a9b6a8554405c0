"""What is streamed is committed, too, and is what an offline run would have made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dreamshard.errors import ConfigError
from pipeline.streaming import keeper as keeper_module
from pipeline.streaming.client import Share, StreamReader
from pipeline.streaming.config import StreamConfig
from pipeline.streaming.keeper import Keeper
from pipeline.streaming.live import LiveTransport
from pipeline.streaming.server import Server
from pipeline.streaming.stream import resolve_stream
from storage.dataset import Dataset
from storage.verbs.verify import verify_dataset
from tests.stream_runs import make_offline
from tests.unit.pipeline.streaming.test_client import take

Configure = Callable[..., StreamConfig]


def files(dataset: Dataset) -> dict[str, str]:
    base = Path(dataset.url)
    return {
        str(path.relative_to(base)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((base / "data.zarr").rglob("*"))
        if path.is_file()
    }


def open_kept(config: StreamConfig, **share: object) -> tuple[StreamReader, LiveTransport]:
    stream = resolve_stream(config.stream())
    transport = LiveTransport(stream)
    chosen: dict = {"batch_size": 16, "shuffle": "runs", "window_units": 2, **share}
    levels = [level.name for level in stream.levels]
    return StreamReader(stream, transport, levels=levels, share=Share(**chosen)), transport


def dataset_of(config: StreamConfig) -> Dataset:
    (part, *_) = resolve_stream(config.stream()).parts
    assert part.keep is not None
    return Dataset.open(part.keep.url)


@pytest.mark.parametrize("samples", [96, None])
def test_an_epoch_fills_the_very_dataset_of_an_offline_run(
    configure: Configure, tmp_path: Path, samples: int | None
) -> None:
    config = configure(keep=True, samples=samples)
    reader, _ = open_kept(config, batch_size=16)
    epoch = 96 if samples else 1297
    take(reader, -(-epoch // 16))
    kept, made = (
        dataset_of(config),
        make_offline(configure(root=str(tmp_path / "offline"), samples=samples)),
    )
    assert files(kept) == files(made)
    ours, theirs = kept.committed(), made.committed()
    assert ours.keys() == theirs.keys()
    for unit, commit in ours.items():
        assert (commit.digests, commit.input_digest, commit.keys) == (
            theirs[unit].digests,
            theirs[unit].input_digest,
            theirs[unit].keys,
        )
    report = verify_dataset(kept)
    assert not report.findings and not report.missing and not report.notes


def test_later_epochs_read_what_the_first_one_filled(configure: Configure) -> None:
    config = configure(keep=True)
    plain, _ = open_kept(configure())
    expected = take(plain, 18)
    reader, transport = open_kept(config)
    first = take(reader, 6)
    requests = transport._server.status()["requests"]
    assert 12 <= requests <= 12 + 12, "96 samples in micro-batches of 8, and what is read ahead"
    reader, transport = open_kept(config, start=96)
    later = take(reader, 12)
    assert transport._server.status()["requests"] == 0
    for mine, theirs in zip([*first, *later], expected, strict=True):
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)


def test_only_natural_micro_batches_count(configure: Configure) -> None:
    config = configure(keep=True)
    (part, *_) = resolve_stream(config.stream()).parts
    assert part.served is not None
    server = Server([part.served], name="test")
    server.load()
    for samples in ([0, 1, 2, 3], list(range(4, 12)), list(range(8))[::-1]):
        server.serve(0, np.array(samples), 0)
    for first in (0, 0, 8, 16):  # the same one twice; the last one is missing
        server.serve(0, np.arange(first, first + 8), 0)
    server.close()
    assert not dataset_of(config).committed()


def test_open_units_are_bounded(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(keep=True)
    (part, *_) = resolve_stream(config.stream()).parts
    assert part.served is not None and part.keep is not None
    server = Server([part.served], name="test")
    server.load()
    monkeypatch.setattr(keeper_module, "OPEN_UNITS", 1)
    keeper = Keeper(part.keep.url, fsync=False)
    server._keepers = {0: keeper}
    for row in (0, 8, 16, 24):  # two units in turns: each drops the other
        for unit in (0, 1):
            first = unit * 32 + row
            server.serve(0, np.arange(first, first + 8), 0)
            assert len(keeper._units) <= 1
    for row in (0, 8, 16, 24):
        server.serve(0, np.arange(64 + row, 72 + row), 0)
    server.close()
    assert set(dataset_of(config).committed()) == {2}


def test_a_full_disk_stops_keeping_and_not_the_stream(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Keeper, "_commit", no_space)
    config = configure(keep=True)
    reader, _ = open_kept(config)
    assert len(take(reader, 12)) == 12
    assert "was not kept: [Errno 28] No space left on device" in caplog.text
    assert not dataset_of(config).committed()


def test_settings_that_cannot_keep_are_refused(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="samples_per_unit: got 20, .*Try --samples_per_unit 16"):
        resolve_stream(configure(keep=True, samples_per_unit=20).stream())
    with pytest.raises(ConfigError, match="shuffle: got full, allowed block where keep is true"):
        open_kept(configure(keep=True), shuffle="full")
    problems = configure(keep=True, fresh_noise=True, window=0, codec="lowrank2-int4").problems()
    assert [problem.key for problem in problems] == ["codec", "window", "keep"]
