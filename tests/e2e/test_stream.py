"""The online pipeline on a real Ray: the same batches whatever is killed, in bounded memory."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dreamshard.errors import ConfigError
from pipeline.cluster.config import RayConfig
from pipeline.cluster.join import cluster
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.streaming import window as window_module
from pipeline.streaming.client import Share, StreamReader
from pipeline.streaming.config import StreamConfig
from pipeline.streaming.live import LiveTransport
from pipeline.streaming.stream import Stream, resolve_stream
from pipeline.teachers.base import TeacherConfig

ray = pytest.importorskip("ray")
actors = importlib.import_module("pipeline.streaming.actors")
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    with cluster(RayConfig(), num_cpus=4, num_gpus=0, object_store_bytes=400 << 20):
        yield


def configure(name: str, root: Path, **changes: Any) -> StreamConfig:
    teacher = TeacherConfig(
        kind="noise", levels=["s2"], settings={"channels": 512, "delay_s": 0.02}
    )
    values: dict = {
        "name": name,
        "root": str(root / "data"),
        "teacher": teacher,
        "image": ImageConfig(size=16),
        "source": SourceConfig(kind="digits"),
        "samples": 256,
        "samples_per_unit": 64,
        "micro_batch": 16,
        "fsync": False,
        "actors": 2,
    }
    return StreamConfig(**(values | changes))


class Service:
    """Two actors of a stream."""

    def __init__(self, config: StreamConfig) -> None:
        self.config, self.stream = config, resolve_stream(config.stream())
        self.start()

    def start(self) -> None:
        self.handles = actors.start_actors(
            self.config.stream(), self.config.actor_size(), count=2, detached=True
        )
        self.wait()

    def wait(self) -> None:
        """Wait until both are there, also after a death."""
        actors.wait_ready(self.handles, self.stream.identity, service=self.config.name)
        self.pids = [row["pid"] for row in self.status()]

    def stop(self) -> None:
        assert actors.stop_actors(self.config.name) == 2
        assert not actors.find_actors(self.config.name), "nobody is left"

    def status(self) -> list[dict[str, Any]]:
        return ray.get([handle.status.remote() for handle in self.handles])

    def read(self, **share: Any) -> StreamReader:
        transport = actors.RayTransport(self.config.name, self.stream.identity)
        return open_reader(self.stream, transport, **share)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(configure("shared", tmp_path_factory.mktemp("shared")))
    yield made
    made.stop()


def open_reader(stream: Stream, transport: Any, **share: Any) -> StreamReader:
    chosen: dict = {"batch_size": 16, **share}
    levels = [level.name for level in stream.levels]
    return StreamReader(stream, transport, levels=levels, share=Share(**chosen))


def digest(batch: Any) -> bytes:
    parts = (batch.index, batch.image, *batch.levels.values())
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).digest()


def undisturbed(config: StreamConfig, count: int, **share: Any) -> list[bytes]:
    """Return what a teacher in this process gives."""
    stream = resolve_stream(config.stream())
    with open_reader(stream, LiveTransport(stream), **share) as reader:
        return [digest(reader.next()) for _ in range(count)]


def follow(
    reader: StreamReader, count: int, act: dict[int, Callable[[], object]]
) -> tuple[list[bytes], float]:
    """Return digests of batches, and the longest wait; do something before some of them."""
    found, waits = [], []
    for step in range(count):
        act.get(step, lambda: None)()
        started = time.monotonic()
        found.append(digest(reader.next()))
        waits.append(time.monotonic() - started)
    return found, max(waits[1:])


def test_a_killed_actor_is_hidden_and_changes_nothing(service: Service) -> None:
    with service.read() as reader:
        kill = {20: lambda: os.kill(service.pids[0], signal.SIGKILL)}
        found, longest = follow(reader, 80, kill)
        assert reader.retries >= 1
    assert found == undisturbed(service.config, 80)
    assert longest < 3.0, "two seconds on a machine of one's own"
    service.wait()  # Ray brings it back


def test_a_paused_actor_is_hidden_by_the_deadline(service: Service) -> None:
    with service.read() as reader:
        pause = {
            20: lambda: os.kill(service.pids[1], signal.SIGSTOP),
            79: lambda: os.kill(service.pids[1], signal.SIGCONT),
        }
        found, longest = follow(reader, 80, pause)
    assert found == undisturbed(service.config, 80)
    assert longest < 4.0


def test_several_trainers_share_a_service(service: Service) -> None:
    orders: list[dict[str, Any]] = [
        {"seed": 1},
        {"seed": 2, "shuffle": "none"},
        {"seed": 1, "rank": 1, "world_size": 2},
    ]
    readers = [service.read(**order) for order in orders]
    found = [[digest(reader.next()) for reader in readers] for _ in range(20)]
    for reader in readers:
        reader.close()
    expected = [undisturbed(service.config, 20, **order) for order in orders]
    assert [list(column) for column in zip(*found, strict=True)] == expected


def store_bytes() -> int:
    """Return what the object store of this node holds."""
    from ray._private.internal_api import node_stats

    (node,) = [node for node in ray.nodes() if node["Alive"]]
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False)
    return stats.store_stats.object_store_bytes_used


def test_memory_is_bounded_at_four_windows(service: Service) -> None:
    """A trainer that takes its time, and a deadline so short that much is made twice."""
    window, most, before = 8 * 16 * (512 * 8 * 8 * 2 + 16 * 16 * 3), 0, store_bytes()
    with service.read(window=8, deadline_s=0.02) as reader:
        for step in range(60):
            reader.next()
            if step % 5 == 0:
                time.sleep(0.4)  # time for the window to fill
            most = max(most, store_bytes() - before)
        assert reader.retries
    sys.stderr.write(f"object store: {most / window:.2f} windows, {reader.retries} asked twice\n")
    assert window * 0.5 <= most <= 4 * window, (most, window)
    deadline = time.monotonic() + 20
    while store_bytes() - before > window // 8:
        assert time.monotonic() < deadline, "closed, and all is freed"
        time.sleep(0.2)


def test_another_service_of_that_name_is_refused_with_the_differences(service: Service) -> None:
    other = resolve_stream(dataclasses.replace(service.config, seed=3, micro_batch=8).stream())
    transport = actors.RayTransport(service.config.name, other.identity)
    with open_reader(other, transport) as reader, pytest.raises(ConfigError) as caught:
        reader.next()
    text = str(caught.value)
    assert "content.seed: 0 served, 3 asked for" in text
    assert "micro_batch: 16 served, 8 asked for" in text


def test_a_trainer_survives_a_restart_of_its_service(
    service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_module, "NOTICE_S", 0.5)
    with service.read() as reader:
        found = [digest(reader.next()) for _ in range(20)]
        service.stop()
        time.sleep(2.5)
        assert "waiting for service 'shared' on the cluster at" in caplog.text
        assert "dreamshard serve --name" in caplog.text
        service.start()
        found += [digest(reader.next()) for _ in range(40)]
    assert found == undisturbed(service.config, 60)


def test_two_actors_fill_a_dataset_that_later_epochs_read(tmp_path: Path) -> None:
    share: dict = {"shuffle": "runs", "window_units": 4, "batch_size": 32}
    config = configure("kept", tmp_path, samples=512, keep=True)
    service = Service(config)
    with service.read(**share) as reader:
        found = [digest(reader.next()) for _ in range(16)]
    service.stop()
    part = resolve_stream(config.stream()).parts[0]
    assert part.keep is not None
    kept = part.keep.committed()
    assert len(kept) >= 6, "of 8 units"
    # The same from shards; what is missing is made by this process.
    stream = resolve_stream(config.stream())
    transport = LiveTransport(stream)
    with open_reader(stream, transport, start=512, **share) as reader:
        found += [digest(reader.next()) for _ in range(16)]
        again = int(transport._server.status()["images"])
    assert found == undisturbed(configure("kept", tmp_path, samples=512), 32, **share)
    assert again < 512, (
        "of the units kept none is made again, whatever is read ahead or asked for twice"
    )
