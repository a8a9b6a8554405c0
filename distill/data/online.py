"""Train on features while they are made: the trainer's side of `pipeline/streaming/client.py`.

`data.kind: stream` pulls them from a service on a Ray cluster, `live` runs the teacher in this
process. Everything else about a run is as with shards: the same batches at the same steps.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from distill.data.open import ShardBatches, TrainingSet
from dreamshard.errors import ConfigError, Problem
from dreamshard.progress import stage
from pipeline.cluster.config import RayConfig
from pipeline.cluster.join import Cluster, cluster
from pipeline.streaming.client import Share, StreamReader
from pipeline.streaming.config import StreamConfig
from pipeline.streaming.live import LiveTransport
from pipeline.streaming.order import Shuffle
from pipeline.streaming.stream import Stream, resolve_stream
from pipeline.streaming.window import Transport
from storage.codecs.arrays import Codec
from storage.schema import Level, Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distill.configs.train import DataConfig, TrainConfig
    from distill.training.state import TrainState

SHUFFLES: dict[str, Shuffle] = {"full": "full", "block": "runs", "none": "none"}


@dataclass(frozen=True)
class Licence:
    """What is known of the teacher's weights; methods that need labels need shards."""

    licence: str
    labels: bool = False


class StreamedDataset:
    """What a run needs to know of a dataset, of one that is being made.

    Args:
        stream: what is streamed.
        window_units: units mixed with one another where runs are shuffled.
    """

    def __init__(self, stream: Stream, *, window_units: int) -> None:
        first = stream.parts[0]
        self.stream = stream
        self.url = f"stream {stream.name!r}"
        self.levels, self.image_size = stream.levels, first.image_size
        self.about = Licence(first.licence)
        content: dict[str, object] = {
            **first.recipe.content,
            "stream": stream.identity,
            "parts": [
                [part.weight, part.num_samples, part.recipe.content] for part in stream.parts
            ],
            "window_units": window_units,
        }
        self.recipe = Recipe(first.recipe.name, content, first.recipe.layout)

    def snapshot(self, version: str | None = None) -> StreamedSnapshot:
        """Show what is streamed, cached shards of the mix at an earlier version if one is given."""
        stream = self.stream if version is None else self.stream.at(version)
        return StreamedSnapshot(stream, self.url)


class StreamedSnapshot:
    """What a run needs to know of a snapshot, of a stream.

    Args:
        stream: what is streamed.
        url: its name, for messages.
    """

    def __init__(self, stream: Stream, url: str) -> None:
        self.stream, self.url = stream, url
        self.version = stream.versions()
        self.levels: tuple[Level, ...] = stream.levels

    @property
    def num_valid(self) -> int:
        """Samples of an epoch over all sources; a generator without end counts as none."""
        return sum(part.num_samples or 0 for part in self.stream.parts)

    @property
    def num_samples(self) -> int:
        """Samples of an epoch, as num_valid."""
        return self.num_valid

    def codec(self, level: str) -> Codec:
        """Return how a level's values are stored in batches."""
        return self.stream.codec(level)


def open_stream(config: DataConfig) -> StreamedDataset:
    """Work out what a run streams; no teacher is loaded and no cluster joined.

    Raises:
        ConfigError: everything that is wrong with it, keys starting with `data.stream`.
    """
    settled = config.stream.settled()
    stream = resolve_stream(settled.stream(), prefix="data.stream")
    return StreamedDataset(stream, window_units=settled.window_units)


class StreamBatches(ShardBatches):
    """Pull one rank's share of every global batch from a service; see `ShardBatches`."""

    def _open_reader(
        self,
        training_set: TrainingSet,
        *,
        config: TrainConfig,
        accelerator: Accelerator,
        state: TrainState,
    ) -> Any:
        stream = cast(StreamedSnapshot, training_set.snapshot).stream
        settings = config.data.stream.settled()
        share = Share(
            batch_size=config.part_size,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            start=state.position,
            seed=config.seed,
            shuffle=SHUFFLES[config.data.shuffle],
            window=settings.window,
            window_units=settings.window_units,
            deadline_s=settings.deadline_s,
            patience_s=settings.patience_s,
            prefetch=config.data.prefetch,
        )
        levels = [level.name for level in training_set.levels]
        self._stack = ExitStack()
        try:
            transport = self._transport(stream, settings, accelerator)
            return StreamReader(stream, transport, levels=levels, share=share)
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        """Stop asking, and leave the cluster; actors of this run end with it."""
        super().close()
        self._stack.close()

    def _transport(
        self, stream: Stream, config: StreamConfig, accelerator: Accelerator
    ) -> Transport:
        store = stream.store_bytes(config.window, clients=accelerator.num_processes)
        there = _join(self._stack, config, accelerator, store_bytes=store)
        from pipeline.streaming import actors

        starts = accelerator.is_main_process and config.start_actors == "auto"
        if starts and not actors.find_actors(config.name):
            size = config.actor_size()
            count = there.actors(size, asked=config.actors)
            stage(f"stream: starting {count} teacher actors of service {config.name!r}")
            handles = actors.start_actors(config.stream(), size, count=count, detached=False)
            self._stack.callback(actors.end_actors, handles)
            actors.wait_ready(handles, stream.identity, service=config.name)
        return actors.RayTransport(config.name, stream.identity)


class LiveBatches(StreamBatches):
    """Run the teacher in this process; see `ShardBatches`."""

    def _transport(
        self, stream: Stream, config: StreamConfig, accelerator: Accelerator
    ) -> Transport:
        return LiveTransport(stream)


def _join(
    stack: ExitStack, config: StreamConfig, accelerator: Accelerator, *, store_bytes: int
) -> Cluster:
    """Join the cluster, all ranks the same one; the main process starts one if there is none."""
    given = config.ray.address or os.environ.get("RAY_ADDRESS")
    alone = accelerator.num_processes == 1
    facts: list[Any] = ["", "", "", ""]
    size = config.actor_size()
    actors = size.count(config.actors)
    if given or alone or accelerator.is_main_process:
        there = stack.enter_context(
            cluster(
                config.ray,
                num_cpus=actors * size.threads,
                num_gpus=actors * size.num_gpus,
                object_store_bytes=store_bytes,
            )
        )
        if given or alone:
            return there
        import ray

        address = ray.get_runtime_context().gcs_address
        token = os.environ.get("RAY_AUTH_TOKEN", "")
        facts = [address, os.environ.get("RAY_AUTH_MODE", ""), token, socket.gethostname()]
    else:
        there = None
    from accelerate.utils import broadcast_object_list

    address, mode, token, host = broadcast_object_list(facts)
    if there is not None:
        return there
    if host != socket.gethostname():
        hint = "Start a cluster with `ray start --head` and `ray start`, then set RAY_ADDRESS."
        allowed = f"a cluster's address, as ranks run on {host} and {socket.gethostname()}"
        raise ConfigError(Problem("data.stream.ray.address", "nothing", allowed, hint))
    os.environ.update({"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token} if mode else {})
    joined = cluster(RayConfig(address=address), num_cpus=1, num_gpus=0, embedded=True)
    return stack.enter_context(joined)
