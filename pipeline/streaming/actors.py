"""Ray's side of the online pipeline: named actors that serve, and the way to them by name.

Actors keep no state that matters. Ray restarts one that died (also on another node), under the same
name; clients look the names up every second and greet who is new. Values travel as numpy arrays,
which a client on the same node reads out of the object store without a copy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray import exceptions as ray_errors

from dreamshard.errors import ConfigError, DreamshardError
from dreamshard.permissions import adopt_umask
from pipeline.cluster.outcomes import Done, Failed, Lost, Returned, unwrap
from pipeline.cluster.worker import ActorSize
from pipeline.streaming.config import StreamRequest
from pipeline.streaming.server import CALLS, Server, StoppingError
from pipeline.streaming.stream import differences, resolve_stream
from pipeline.streaming.window import Answer, PositionRequest

NAMESPACE = "dreamshard"
LOOK_S = 1.0
"""Seconds between two looks for actors that came or came back."""
CLOSING_S = 30.0
"""Seconds that actors have to finish what they commit."""

log = logging.getLogger(__name__)


def actor_name(service: str, number: int) -> str:
    """Return the name under which an actor of a service is found."""
    return f"{_prefix(service)}{number:04d}"


class StreamActor:
    """Serve micro-batches of a stream.

    It is told what to serve and works the rest out by itself, so that Ray can start it again when
    whoever started it, and owned the long list of its images, is gone.
    """

    def __init__(self, asked: StreamRequest) -> None:
        adopt_umask()
        stream = resolve_stream(asked)
        self._identity = stream.identity
        self._name = stream.name
        self._server = Server([part.served for part in stream.parts], name=stream.name)
        self._server.load()

    def __repr__(self) -> str:
        """Name the actor in Ray's logs and in the list of processes."""
        return f"StreamActor({self._name})"

    @ray.method(concurrency_group="serve")
    def serve(
        self, part: int, samples: np.ndarray, epoch: int, shared: bool
    ) -> dict[str, np.ndarray]:
        """Make one micro-batch; see `pipeline.streaming.server.Server.serve`."""
        return self._server.serve(part, samples, epoch, shared)

    @ray.method(concurrency_group="talk")
    def identity(self) -> dict[str, object]:
        """Return what is served, by dotted key.

        Raises:
            StoppingError: nothing any more.
        """
        self._server.check_open()
        return self._identity

    @ray.method(concurrency_group="talk")
    def status(self) -> dict[str, float | int | str]:
        """Return who this is and what it did so far."""
        return self._server.status()

    @ray.method(concurrency_group="talk")
    def close(self) -> None:
        """Finish the units being committed."""
        self._server.close()


def start_actors(asked: StreamRequest, size: ActorSize, *, count: int, detached: bool) -> list[Any]:
    """Start a service's actors, those that are missing; do not wait until they are ready.

    Args:
        asked: what they serve.
        size: of each.
        count: actors to have.
        detached: whether they outlive this process.
    """
    remote: Any = ray.remote(concurrency_groups={"serve": CALLS, "talk": 1})  # pyright: ignore
    actor = remote(StreamActor)
    return [
        actor.options(
            name=actor_name(asked.name, number),
            namespace=NAMESPACE,
            lifetime="detached" if detached else None,
            get_if_exists=True,
            max_restarts=-1,  # wherever there is room: it has no state to lose
            max_task_retries=0,  # clients ask another actor, which is sooner
            **size.options(),
        ).remote(asked)
        for number in range(count)
    ]


def wait_ready(
    handles: Sequence[Any],
    identity: Mapping[str, object],
    *,
    service: str,
    on_ready: Callable[[int], None] = lambda count: None,
    stopping: Callable[[], bool] = lambda: False,
) -> int:
    """Wait until actors have loaded their teachers; return how many have.

    Raises:
        ConfigError: a service of that name serves something else.
        TeacherError, DataError: an actor cannot load its teacher.
    """
    waiting = {handle.identity.remote(): handle for handle in handles}
    ready = 0
    while waiting and not stopping():
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=0.5)
        for reference in done:
            handle = waiting.pop(reference)
            try:
                check_identity(ray.get(reference), identity, service=service)
            except ray_errors.ActorUnavailableError:  # it died while loading and comes back
                waiting[handle.identity.remote()] = handle
                time.sleep(LOOK_S)
                continue
            except ray_errors.RayError as error:
                raise unwrap(error) from error
            ready += 1
            on_ready(ready)
    return ready


def find_actors(service: str) -> dict[str, Any]:
    """Return the actors of a service by name, those that are starting included."""
    prefix = _prefix(service)
    actors = {}
    for entry in ray.util.list_named_actors(all_namespaces=True):
        name = entry["name"]  # pyright: ignore[reportArgumentType]
        if entry["namespace"] == NAMESPACE and name.startswith(prefix):  # pyright: ignore
            try:
                actors[name] = ray.get_actor(name, namespace=NAMESPACE)
            except ValueError:  # it went between the two calls
                continue
    return dict(sorted(actors.items()))


def end_actors(handles: Sequence[Any]) -> None:
    """Let actors finish the units they commit, then end them."""
    if handles:
        closing = [handle.close.remote() for handle in handles]
        ray.wait(closing, num_returns=len(closing), timeout=CLOSING_S)
    for handle in handles:
        ray.kill(handle)


def stop_actors(service: str) -> int:
    """Let a service's actors finish the units they commit, then end them; return how many."""
    handles = list(find_actors(service).values())
    end_actors(handles)
    patience_ends = time.monotonic() + CLOSING_S
    while find_actors(service) and time.monotonic() < patience_ends:
        time.sleep(0.1)  # their names are free only when Ray has noticed
    return len(handles)


def check_identity(
    theirs: Mapping[str, object], ours: Mapping[str, object], *, service: str
) -> None:
    """Refuse a service that serves something else.

    Raises:
        ConfigError: with every difference.
    """
    lines = differences(theirs, ours)
    if lines:
        listed = "".join(f"\n  {line}" for line in lines)
        raise ConfigError(
            f"name: the service {service!r} on this cluster serves something else:{listed}\n"
            "Ask for what it serves, or start another one under a --name of its own."
        )


class RayTransport:
    """Ask a service's actors; see `pipeline.streaming.window.Transport`.

    Args:
        service: its name.
        identity: what it must serve.
    """

    def __init__(self, service: str, identity: Mapping[str, object]) -> None:
        self._service, self._identity = service, identity
        self._ready: dict[str, Any] = {}
        self._greeted: dict[Any, tuple[str, Any]] = {}
        self._asked: dict[Any, str] = {}
        self._names: list[str] = []
        self._next_look = 0.0

    def workers(self) -> Sequence[str]:
        """Name the actors that have answered a greeting."""
        return sorted(self._ready)

    def submit(self, worker: str, request: PositionRequest) -> Hashable:
        """Ask an actor."""
        batch = request.batch
        reference = self._ready[worker].serve.remote(
            batch.part, batch.samples, batch.epoch, request.shared
        )
        self._asked[reference] = worker
        return reference

    def poll(self, timeout_s: float) -> list[Answer]:
        """Return what arrived; greet who is new.

        Raises:
            ConfigError: an actor of this name serves something else.
        """
        self._look()
        waiting = [*self._asked, *self._greeted]
        if not waiting:
            time.sleep(timeout_s)
            return []
        ready, _ = ray.wait(waiting, num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        events: list[Answer] = []
        for reference in ready:
            if reference in self._greeted:
                self._welcome(reference)
            else:
                events.append(self._take(reference))
        return events

    def forget(self, ticket: Hashable) -> None:
        """Let go of an answer: the object store frees it."""
        self._asked.pop(ticket, None)

    def absence(self) -> str:
        """Say what is being waited for."""
        where = ray.get_runtime_context().gcs_address
        if self._greeted or self._names:
            return f"the {len(self._names)} actors of service {self._service!r} to be ready"
        return (
            f"service {self._service!r} on the cluster at {where}: it has no actors there. Start "
            f"it with `dreamshard serve --name {self._service} ...`"
        )

    def close(self) -> None:
        """Let go of everything."""
        self._asked.clear()
        self._greeted.clear()
        self._ready.clear()

    def _look(self) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        actors = find_actors(self._service)
        self._names = list(actors)
        greeted = {name for name, _ in self._greeted.values()}
        for name in [name for name in self._ready if name not in actors]:
            del self._ready[name]
        for name, handle in actors.items():
            if name not in self._ready and name not in greeted:
                self._greeted[handle.identity.remote()] = (name, handle)

    def _welcome(self, reference: Any) -> None:
        name, handle = self._greeted.pop(reference)
        try:
            identity: Any = ray.get(reference)
        except ray_errors.RayError as error:
            cause = unwrap(error)
            if isinstance(cause, DreamshardError) and not isinstance(cause, StoppingError):
                raise cause from None  # it cannot load what it is to serve
            log.debug("%s is not ready: %s", name, cause)  # greeted again at the next look
            return
        check_identity(identity, self._identity, service=self._service)
        self._ready[name] = handle

    def _take(self, reference: Any) -> Answer:
        worker = self._asked.pop(reference)
        try:
            return Done(reference, ray.get(reference))
        except ray_errors.RayTaskError as error:
            cause = unwrap(error)
            if isinstance(cause, StoppingError):
                self._ready.pop(worker, None)
                return Returned(reference, cause)
            return Failed(reference, cause)
        except ray_errors.RayError as error:
            self._ready.pop(worker, None)
            return Lost(reference, error)


def _prefix(service: str) -> str:
    return f"dreamshard:{service}:"
