"""Online runs that are disturbed see the batches of quiet ones: two ranks, two actors.

A few schedules here; `make chaos` plays DREAMSHARD_CHAOS of them, and every seed that ever found
something stays in FOUND.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.cluster.config import RayConfig
from pipeline.cluster.join import cluster
from pipeline.streaming.live import LiveTransport
from pipeline.streaming.stream import resolve_stream
from tests.chaos.online_trainer import (
    RANKS,
    STEPS,
    configure,
    digest,
    open_reader,
    saved_step,
)
from tests.processes import children_named

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
FEW = 1
FULL = int(os.environ.get("DREAMSHARD_CHAOS", "0"))
FOUND = {
    2: "a service stopped and started at once: the names of its actors were not free yet, and "
    "starting failed",
}
"""Seeds that found a failure once, and what it was."""
SEEDS = list(dict.fromkeys([*FOUND, *range(FULL or FEW)]))
DEADLINE_S = 240.0
"""Time for one seed: actors and ranks start several times over."""
KINDS = ("kill", "kill", "kill all", "pause", "rank", "restart")


@dataclass(frozen=True)
class Blow:
    """One thing that goes wrong: what, at which step of the trainer, how long."""

    step: int
    kind: str
    which: int
    seconds: float


def draw(seed: int) -> list[Blow]:
    """Draw what goes wrong under a seed, in order."""
    rng = random.Random(f"online/{seed}")
    long = 20.0 if FULL and seed % 20 == 0 else 3.0
    blows = [
        Blow(
            rng.randrange(2, STEPS - 5), rng.choice(KINDS), rng.randrange(2), rng.uniform(0.5, long)
        )
        for _ in range(rng.randint(1, 3))
    ]
    return sorted(blows, key=lambda blow: blow.step)


@dataclass
class Stage:
    """A service of two actors, and the two-rank trainer that is watched."""

    folder: Path
    trainer: subprocess.Popen[bytes]
    struck: int = 0
    falls: int = 0
    """Times the trainer may still fall over: its ranks that were killed."""
    asleep: list[threading.Timer] = field(default_factory=list)

    def actors(self) -> list[int]:
        return children_named("StreamActor")

    def strike(self, blow: Blow) -> None:
        victims = self.actors()
        if blow.kind == "rank":
            victims = [int((self.folder / f"rank-{blow.which}.pid").read_text())]
            self.falls += 1
        elif blow.kind == "restart":
            restart(self.folder)
            self.struck += 1
            return
        elif blow.kind != "kill all":
            victims = victims[blow.which : blow.which + 1] or victims[:1]
        for victim in victims:
            _send(victim, signal.SIGSTOP if blow.kind == "pause" else signal.SIGKILL)
            if blow.kind == "pause":
                timer = threading.Timer(blow.seconds, _send, (victim, signal.SIGCONT))
                timer.start()
                self.asleep.append(timer)
        self.struck += bool(victims)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def restart(folder: Path) -> None:
    """Stop the service and start it anew, as an operator would."""
    from pipeline.streaming import actors

    config = configure(folder / "data")
    actors.stop_actors(config.name)
    actors.start_actors(config.stream(), config.actor_size(), count=2, detached=True)


def progress(folder: Path, seed: int) -> int:
    """Return the step that rank 0 has reached, 0 before it began."""
    path = folder / f"{seed}-0.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(lines[-1].split()[0]) if lines else 0


def launch(folder: Path) -> subprocess.Popen[bytes]:
    """Start the two ranks, as a user does who starts a training again."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(RANKS))
    script = ("-m", "tests.chaos.online_trainer", str(folder), *map(str, SEEDS))
    address = ray.get_runtime_context().gcs_address
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *launcher, "--monitor-interval", "0.2", *script],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": address, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )


def when(condition: Callable[[], bool], stage: Stage, what: str) -> None:
    ends = time.monotonic() + DEADLINE_S
    while not condition():
        code = stage.trainer.poll()
        if code:
            assert stage.falls, f"{what}: the trainer ended with {code}"
            stage.falls -= 1
            stage.trainer = launch(stage.folder)
        assert time.monotonic() < ends, f"{what}: nothing happened"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    from pipeline.streaming import actors

    folder = tmp_path_factory.mktemp("online")
    config = configure(folder / "data")
    with cluster(RayConfig(), num_cpus=2, num_gpus=0, object_store_bytes=100 << 20):
        handles = actors.start_actors(config.stream(), config.actor_size(), count=2, detached=True)
        actors.wait_ready(handles, resolve_stream(config.stream()).identity, service=config.name)
        made = Stage(folder, launch(folder))
        try:
            yield made
        finally:
            for timer in made.asleep:
                timer.join()
            made.trainer.terminate()
            made.trainer.wait(30)
            actors.stop_actors(config.name)
    assert not made.actors(), "none is leaked"


def expected(folder: Path, seed: int, rank: int) -> list[str]:
    stream = resolve_stream(configure(folder / "data", delay_s=0.0).stream())
    transport = LiveTransport(stream)
    with open_reader(stream, transport, seed=seed, rank=rank, step=0) as reader:
        return [digest(reader.next()) for _ in range(STEPS)]


def test_seeds_draw_what_they_drew() -> None:
    drawn = [blow.kind for seed in range(200) for blow in draw(seed)]
    assert [blow.kind for seed in range(200) for blow in draw(seed)] == drawn
    assert set(drawn) == set(KINDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_sequence_of_batches_is_that_of_an_undisturbed_run(stage: Stage, seed: int) -> None:
    for blow in draw(seed):
        when(
            lambda blow=blow: (
                progress(stage.folder, seed) >= blow.step or saved_step(stage.folder, seed) >= STEPS
            ),
            stage,
            f"seed {seed}, before {blow}",
        )
        stage.strike(blow)
    when(lambda: saved_step(stage.folder, seed) >= STEPS, stage, f"seed {seed}")
    for rank in range(RANKS):
        lines = (stage.folder / f"{seed}-{rank}.txt").read_text().splitlines()
        pairs = [line.split() for line in lines if len(line.split()) == 2]
        wanted = expected(stage.folder, seed, rank)
        # A step that was done again after a restart must have given the same batch again.
        assert all(wanted[int(step)].startswith(text) for step, text in pairs)
        assert {int(step) for step, _ in pairs} == set(range(STEPS))
    assert stage.struck
