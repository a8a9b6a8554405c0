"""Serve a teacher's features to trainers: `python pipeline/serve.py --config FILE`.

Starts named actors on the Ray cluster there is, or on one of its own, and keeps them until it is
asked to stop. Trainers find them by name; they may come, go and come back.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # By path, also from an uninstalled checkout: the repository's root takes the place of this
    # folder.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dreamshard.config import load_config
from dreamshard.errors import run_main
from dreamshard.progress import begin, is_interactive, stage
from dreamshard.runfolder import RunFolder
from pipeline.cluster.join import EMBEDDED, Cluster, cluster
from pipeline.learning.signals import StopSignal
from pipeline.streaming.config import ServeConfig

if TYPE_CHECKING:
    from pipeline.streaming.stream import Stream

PROG = "dreamshard serve"
INTERRUPTED = 130
STATUS_S = 10.0
"""Seconds between two status lines."""
CLIENTS = 4
"""Clients that the object store of a cluster of our own has room for."""
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
TOKEN_FILE = "ray-token"


def main(argv: Sequence[str]) -> int:
    """Read the config and serve."""
    config = load_config(ServeConfig, argv, prog=PROG, description=str(ServeConfig.__doc__))
    begin(f"serve: {config.action} {config.name}")
    return serve(config, command=[*PROG.split(), *argv])


def serve(config: ServeConfig, *, command: Sequence[str]) -> int:
    """Start, show or stop a service.

    Returns:
        Exit code: 0, or 130 where it served until it was asked to stop.

    Raises:
        ConfigError: settings, an address nobody answers at, another service of that name.
        TeacherError, DataError: the actors cannot load what they are to serve.
    """
    config = config.settled()
    if config.action in ("status", "stop"):
        with cluster(config.ray, num_cpus=1, num_gpus=0):
            return _status(config.name) if config.action == "status" else _stop(config.name)
    from pipeline.streaming.stream import resolve_stream

    stream = resolve_stream(config.stream())  # every mistake before Ray starts
    size = config.actor_size()
    actors = size.count(config.actors)
    with cluster(
        config.ray,
        num_cpus=actors * size.threads,
        num_gpus=actors * size.num_gpus,
        object_store_bytes=stream.store_bytes(config.window, clients=CLIENTS),
    ) as joined:
        return _serve_on(joined, config, stream, command)


def _serve_on(joined: Cluster, config: ServeConfig, stream: Stream, command: Sequence[str]) -> int:
    from pipeline.streaming.actors import end_actors, start_actors, wait_ready
    from pipeline.teachers.base import say

    folder = RunFolder(config.run_dir, config=config, command=command)
    count = joined.actors(config.actor_size(), asked=config.actors)
    leave = config.action == "start" and joined.where != EMBEDDED
    say(stream.notes)
    stage(f"serve: {config.name!r}, {count} actors on {joined.where}")
    handles = start_actors(config.stream(), config.actor_size(), count=count, detached=True)
    with StopSignal() as stopping:
        try:
            wait_ready(
                handles,
                stream.identity,
                service=config.name,
                on_ready=lambda ready: stage(f"serve: {ready} of {count} actors are ready"),
                stopping=stopping,
            )
            sys.stdout.write(_how_to_connect(config.name, folder.path))
            sys.stdout.flush()
            if leave:
                return 0
            _watch(config.name, stopping, keep=config.keep)
        except BaseException:
            leave = False
            raise
        finally:
            if not leave:
                stage("serve: stopping; units being committed are finished first")
                end_actors(handles)
    return INTERRUPTED


def _how_to_connect(name: str, folder: Path) -> str:
    import ray

    address = ray.get_runtime_context().gcs_address
    lines = [f"export RAY_ADDRESS={address}"]
    loopback = os.environ.get(LOOPBACK)
    if address.startswith("127.") and loopback:
        # Ray takes 127.0.0.1 for the host's own address otherwise, where nobody listens.
        lines.append(f"export {LOOPBACK}={loopback}")
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode:
        lines.append(f"export RAY_AUTH_MODE={mode}")
    token = os.environ.get("RAY_AUTH_TOKEN")
    if mode == "token" and token:
        path = folder / TOKEN_FILE
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text(token, encoding="utf-8")
        lines.append(f"export RAY_AUTH_TOKEN_PATH={path}")
    text = "".join(f"  {line}\n" for line in lines)
    return (
        f"service {name!r} is ready. A trainer connects to it with\n{text}"
        "  dreamshard train --config FILE --data.kind stream --data.stream.name "
        f"{name}\n"
    )


def _watch(name: str, stopping: Callable[[], bool], *, keep: bool) -> None:
    """Show what the actors do until asked to stop."""
    before, then = 0, time.monotonic()
    while not stopping():
        deadline = time.monotonic() + STATUS_S
        while not stopping() and time.monotonic() < deadline:
            time.sleep(0.2)
        rows = _ask(name)
        images, now = sum(int(row["images"]) for row in rows), time.monotonic()
        rate = max(0, images - before) / (now - then)  # an actor that came back counts from 0
        before, then = images, now
        _line(name, rows, rate, keep=keep)


def _line(name: str, rows: Sequence[dict], rate: float, *, keep: bool) -> None:
    kept = sum(int(row["units_kept"]) for row in rows)
    replaced = sum(int(row["replaced"]) for row in rows)
    text = f"serve: {name!r}: {len(rows)} actors, {rate:,.4g} img/s"
    text += f", {kept} units kept" if keep else ""
    text += f", {replaced} unusable images replaced" if replaced else ""
    end = "\r" if is_interactive() else "\n"
    sys.stderr.write(f"{text}{end}")
    sys.stderr.flush()


def _ask(name: str) -> list[dict]:
    """Return the status of every actor that answers."""
    import ray
    from ray.exceptions import RayError

    from pipeline.streaming.actors import find_actors

    asked = [handle.status.remote() for handle in find_actors(name).values()]
    if not asked:
        return []
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=5)
    rows = []
    for reference in ready:
        try:
            rows.append(ray.get(reference))
        except RayError:  # it died; Ray starts it again
            continue
    return rows


def _status(name: str) -> int:
    rows = _ask(name)
    for row in rows:
        sys.stdout.write(
            f"{row['host']} pid {row['pid']}: {row['images']:,} samples, busy "
            f"{100 * row['busy_share']:.0f} %, up {row['seconds']:,.0f} s\n"
        )
    sys.stdout.write(f"service {name!r}: {len(rows)} actors answer\n")
    return 0


def _stop(name: str) -> int:
    from pipeline.streaming.actors import stop_actors

    sys.stdout.write(f"service {name!r}: {stop_actors(name)} actors stopped\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main, sys.argv[1:]))
