"""Samples made while they are used: the trainer's side of `pipeline/streaming/client.py`.

`data.kind: stream` pulls them from a service on a Ray cluster, `live` runs the teacher in this
process. Everything else about a run is as with shards: the same batches at the same steps.
"""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from distill.data.source import Reader
from dreamshard.errors import ConfigError, Problem
from dreamshard.progress import stage
from pipeline.cluster.config import RayConfig
from pipeline.cluster.join import Cluster, cluster
from pipeline.learning.ranks import decided_by_chief
from pipeline.streaming.client import Share, StreamReader
from pipeline.streaming.config import StreamConfig
from pipeline.streaming.live import LiveTransport
from pipeline.streaming.order import Shuffle
from pipeline.streaming.stream import Stream, resolve_stream
from pipeline.streaming.window import Transport
from storage.batches.filler import Share as RankShare
from storage.codecs.base import Codec
from storage.schema import Level, Recipe

if TYPE_CHECKING:
    from distill.configs.train import DataConfig

SHUFFLES: dict[str, Shuffle] = {"full": "full", "block": "runs", "none": "none"}


def open_stream(config: DataConfig) -> StreamSource:
    """Work out what a run streams; no teacher is loaded and no cluster joined.

    Raises:
        ConfigError: everything that is wrong with it, keys starting with `data.stream`.
    """
    settings = config.stream.settled()
    make = LiveSource if config.kind == "live" else StreamSource
    return make(config, settings, resolve_stream(settings.stream(), prefix="data.stream"))


class StreamSource:
    """Pull samples from a service; see `Source` for the rest.

    Args:
        config: in which order, how far ahead.
        settings: of the stream, with whole paths.
        stream: the same, understood.
    """

    labelled = False
    stored = None
    joined = ()

    def __init__(self, config: DataConfig, settings: StreamConfig, stream: Stream) -> None:
        first = stream.parts[0]
        self._config, self._settings, self.stream = config, settings, stream
        self.url = f"stream {stream.name!r}"
        self.levels: tuple[Level, ...] = stream.levels
        self.teachers = {level.name: 0 for level in stream.levels}
        self.image_size, self.licence = first.image_size, first.licence
        content: dict[str, object] = {
            **first.recipe.content,
            "stream": stream.identity,
            "parts": [
                [part.weight, part.num_samples, part.recipe.content] for part in stream.parts
            ],
            "window_units": settings.window_units,
        }
        self.recipe = Recipe(first.recipe.name, content, first.recipe.layout)

    @property
    def version(self) -> str:
        """Versions of the cached shards of the mix."""
        return self.stream.versions()

    @property
    def num_valid(self) -> int:
        """Samples of an epoch over all sources; a generator without end counts as none."""
        return sum(part.num_samples or 0 for part in self.stream.parts)

    def at(self, version: str) -> StreamSource:
        """Return the same with the cached shards of the mix at an earlier version."""
        other = copy.copy(self)
        other.stream = self.stream.at(version)
        return other

    def codec(self, level: str) -> Codec:
        """Return how a level's values are stored in batches."""
        return self.stream.codec(level)

    def read(
        self,
        levels: Sequence[str],
        *,
        share: RankShare,
        seed: int,
        labels: bool = False,
        kept: np.ndarray | None = None,
    ) -> Reader:
        """Open a reader; all ranks join one cluster, which rank zero starts if there is none."""
        assert not labels and kept is None, "refused where the set is opened"
        settings = self._settings
        told = Share(
            batch_size=share.batch_size,
            rank=share.rank,
            world_size=share.world_size,
            start=share.start,
            seed=seed,
            shuffle=SHUFFLES[self._config.shuffle],
            window=settings.window,
            window_units=settings.window_units,
            deadline_s=settings.deadline_s,
            patience_s=settings.patience_s,
            prefetch=self._config.prefetch,
        )
        with ExitStack() as stack:
            transport = self._transport(share, stack)
            reader = _StreamReader(self.stream, transport, levels=levels, share=told)
            reader.cluster = stack.pop_all()
            return reader

    def _transport(self, share: RankShare, stack: ExitStack) -> Transport:
        settings = self._settings
        store = self.stream.store_bytes(settings.window, clients=share.world_size)
        joined = _join(stack, settings, share, store_bytes=store)
        from pipeline.streaming import actors

        starts = share.rank == 0 and settings.start_actors == "auto"
        if starts and not actors.find_actors(settings.name):
            size = settings.actor_size()
            count = joined.actors(size, asked=settings.actors)
            stage(f"stream: starting {count} teacher actors of service {settings.name!r}")
            handles = actors.start_actors(settings.stream(), size, count=count, detached=False)
            stack.callback(actors.end_actors, handles)
            actors.wait_ready(handles, self.stream.identity, service=settings.name)
        return actors.RayTransport(settings.name, self.stream.identity)


class LiveSource(StreamSource):
    """Run the teacher in this process."""

    def _transport(self, share: RankShare, stack: ExitStack) -> Transport:
        return LiveTransport(self.stream)


class _StreamReader(StreamReader):
    """Leave the cluster when reading ends; actors of this run end with it."""

    cluster: ExitStack

    def close(self) -> None:
        super().close()
        self.cluster.close()


def _join(
    stack: ExitStack, settings: StreamConfig, share: RankShare, *, store_bytes: int
) -> Cluster:
    """Join the cluster, all ranks the same one; rank zero starts one if there is none."""
    address = settings.ray.address or os.environ.get("RAY_ADDRESS")
    size = settings.actor_size()

    def enter() -> Cluster:
        actors = size.count(settings.actors)
        return stack.enter_context(
            cluster(
                settings.ray,
                num_cpus=actors * size.threads,
                num_gpus=actors * size.num_gpus,
                object_store_bytes=store_bytes,
            )
        )

    if address or share.world_size == 1:
        return enter()
    own: list[Cluster] = []

    def start() -> list[str]:
        import ray

        own.append(enter())
        token = os.environ.get("RAY_AUTH_TOKEN", "")
        mode = os.environ.get("RAY_AUTH_MODE", "")
        return [ray.get_runtime_context().gcs_address, mode, token, socket.gethostname()]

    address, mode, token, host = decided_by_chief(start)  # where it fails, all ranks are told
    if own:
        return own[0]
    if host != socket.gethostname():
        hint = "Start a cluster with `ray start --head` and `ray start`, then set RAY_ADDRESS."
        allowed = f"a cluster's address, as ranks run on {host} and {socket.gethostname()}"
        raise ConfigError(Problem("data.stream.ray.address", "nothing", allowed, hint))
    os.environ.update({"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token} if mode else {})
    joined = cluster(RayConfig(address=address), num_cpus=1, num_gpus=0, embedded=True)
    return stack.enter_context(joined)
